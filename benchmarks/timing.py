"""Interleaved rounds: everybody takes a turn, the order rotates, disturbed turns are dropped."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.machine import Seen

DISTURBED = 0.05  # share of the cores' time that others may take during a turn
LEAST = 2  # turns that each takes, however long they last


class Plan(NamedTuple):
    """How much is measured.

    rounds: turns that are kept of each player.
    seconds: time after which a player takes no more turns, unless it has fewer than `LEAST`.
    """

    rounds: int
    seconds: float


@dataclass
class Series:
    """The turns of one player: seconds of each kept one; how many others there were, and why.

    error: what went wrong, if anything did.
    """

    kept: list[float] = field(default_factory=list)
    dropped: int = 0
    spent: float = 0.0
    error: str | None = None

    def enough(self, plan: Plan) -> bool:
        """Whether no more turns are to be taken: on a machine that is never quiet, at some time."""
        if self.error is not None or len(self.kept) >= plan.rounds:
            return True
        turns = len(self.kept) + self.dropped
        late = self.spent >= plan.seconds
        if late and (len(self.kept) >= LEAST or turns >= 3 * LEAST):
            return True
        return turns >= 3 * plan.rounds

    def summary(self) -> dict[str, Any]:
        """Median, quartiles, extremes in seconds, and the number of turns kept and dropped.

        >>> Series([3.0, 1.0, 2.0], dropped=1).summary()["median"]
        2.0

        Raises:
            ValueError: if no turn was kept.
        """
        if not self.kept:
            raise ValueError(
                f"every one of {self.dropped} turns was disturbed by other processes, which took "
                f"more than {DISTURBED:.0%} of the cores: end them, and measure again"
            )
        low, median, high = quartiles(self.kept)
        return {
            "median": median,
            "quartiles": [low, high],
            "min": min(self.kept),
            "max": max(self.kept),
            "n": len(self.kept),
            "dropped": self.dropped,
        }

    def result(self) -> dict[str, Any]:
        """The summary, or why there is none: {"error": TEXT}."""
        if self.error is not None:
            return {"error": self.error}
        try:
            return self.summary()
        except ValueError as error:
            return {"error": str(error)}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The three quartiles, interpolated; of one value, that value three times.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def interleaved(
    players: Mapping[str, Callable[[], float]],
    plan: Plan,
    watch: Callable[[], contextlib.AbstractContextManager[Seen]],
) -> dict[str, Series]:
    """The turns of all players, one at a time.

    players: functions that take a turn and return what it measured, in seconds.
    watch: a context around each turn that sees what other processes take.

    A player that raises is not called again; its series says why.
    """
    series = {name: Series() for name in players}
    names = list(players)
    for number in itertools.count():
        first = number % max(len(names), 1)
        waiting = [name for name in names[first:] + names[:first] if not series[name].enough(plan)]
        if not waiting:
            return series
        for name in waiting:
            _turn(series[name], players[name], watch)
    raise AssertionError("rounds end when nobody waits")


def _turn(series: Series, player: Callable[[], float], watch: Callable[[], Any]) -> None:
    begin = time.perf_counter()
    try:
        with watch() as seen:
            seconds = player()
    except Exception as error:
        series.error = str(error) or type(error).__name__
        return
    series.spent += time.perf_counter() - begin
    if seen.others > DISTURBED:
        series.dropped += 1
    else:
        series.kept.append(seconds)
