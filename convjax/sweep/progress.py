"""How a sweep stands: its trials and points, kept up to date by what changes in the record.

progress = Progress(store, sweep, seeds=3, objective=parse("max test accuracy"))
ended = [row for row in progress.update() if is_over(row)]
progress.best(), progress.counts(), progress.seconds_left(total=60, workers=2)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from convjax.sweep import table
from convjax.sweep.objective import Objective
from convjax.sweep.sampler import Told
from convjax.sweep.store import Store
from convjax.sweep.table import Result, result_of
from convjax.sweep.trial import Row


class Progress:
    """The trials of a sweep; `update` reads what has changed, which is little, however many."""

    def __init__(self, store: Store, sweep: int, seeds: int, objective: Objective):
        self.seeds, self.objective = seeds, objective
        self._store, self._sweep, self._mark = store, sweep, None
        self._rows: dict[int, Row] = {}
        self._results: dict[int, Result] = {}
        self.update()

    def update(self) -> list[Row]:
        """The trials that have changed since the last time, or are new, in their order."""
        changed, self._mark = self._store.changes(self._sweep, self._mark)
        for row in changed:
            self._rows[row.trial.number] = row
        for point in {row.trial.number // self.seeds for row in changed}:
            places = range(point * self.seeds, (point + 1) * self.seeds)
            own = [self._rows[place] for place in places if place in self._rows]
            self._results[point] = result_of(own, self.objective)
        return changed

    @property
    def rows(self) -> list[Row]:
        """All trials in their order."""
        return [self._rows[place] for place in sorted(self._rows)]

    @property
    def results(self) -> list[Result]:
        """What came of each point, in their order."""
        return [self._results[point] for point in sorted(self._results)]

    def told(self) -> list[Told]:
        """What came of each point, for a sampler."""
        return [result.told for result in self.results]

    def best(self) -> Result | None:
        """The best point so far."""
        return table.best(self._results.values(), self.objective)

    def counts(self) -> Counter[str]:
        """How many trials are in each state."""
        return Counter(row.state for row in self._rows.values())

    def over(self) -> int:
        """How many trials have ended."""
        return sum(map(is_over, self._rows.values()))

    def seconds_left(self, total: int, workers: int) -> float | None:
        """How long `total` trials in all will take yet; None before one has ended.

        The rest is taken to last as long as what has ended did on average, as many at once as work
        now, or could.
        """
        return _left(list(self._rows.values()), total, workers, time.time())


def is_over(row: Row) -> bool:
    """Whether nothing more will come of a trial, unless it is asked for."""
    return row.state not in ("waiting", "running")


def seconds_of(row: Row, now: float) -> float:
    """How long all attempts at a trial have lasted."""
    return sum((each.ended or now) - each.began for each in row.attempts)


def _left(rows: Sequence[Row], total: int, workers: int, now: float) -> float | None:
    ended = [seconds_of(row, now) for row in rows if is_over(row)]
    if not ended:
        return None
    each = sum(ended) / len(ended)
    running = [max(each - seconds_of(row, now), 0.0) for row in rows if row.state == "running"]
    waiting = max(total - len(ended) - len(running), 0)
    at_once = max(workers, len(running))
    last = each if waiting else max(running, default=0.0)
    return max((sum(running) + waiting * each) / at_once, last)
