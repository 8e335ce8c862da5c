"""What people look at of a sweep: what came of each point, and `results.csv`."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from convjax import durable
from convjax.sweep.objective import Objective, summary
from convjax.sweep.sampler import HOPELESS, Told, joined
from convjax.sweep.space import shown
from convjax.sweep.store import Store
from convjax.sweep.trial import Row


class Result(NamedTuple):
    """What came of a point, over its seeds.

    value: (mean, half of its 95 % confidence interval or None), None if no seed has finished, or
        one of them diverged or took too much memory.
    finished: how many seeds have. pruned: how many were given up.
    told: the same for a sampler.
    """

    point: Mapping[str, Any]
    value: tuple[float, float | None] | None
    finished: int
    pruned: int
    rows: Sequence[Row]
    told: Told

    def __str__(self) -> str:
        if self.value is None:
            return f"no result at {shown(self.point)}"
        mean, half = self.value
        spread = "" if half is None else f" ± {half:.4f}"
        missing = self.finished < len(self.rows)
        of = f" ({self.finished} of {len(self.rows)} seeds)" if missing else ""
        return f"{mean:.4f}{spread}{of} at {shown(self.point)}"


def value_of(row: Row, objective: Objective) -> float | None:
    """The figure of a trial; None if it has none."""
    if row.result is None:
        return None
    return objective.value(row.result, row.result.get("last", {}).values())


def by_point(rows: Sequence[Row], seeds: int, objective: Objective) -> list[Result]:
    """The results in the order in which points were asked for; their trials follow each other."""
    points = itertools.groupby(rows, key=lambda row: row.trial.number // seeds)
    return [result_of(list(own), objective) for _, own in points]


def result_of(rows: Sequence[Row], objective: Objective) -> Result:
    """What came of a point, of the trials of its seeds."""
    point, results = rows[0].trial.point, [(value_of(row, objective), row.state) for row in rows]
    states = [state for _, state in results]
    good = [value for value, state in results if state == "finished" and value is not None]
    value = summary(good) if good and not set(states) & set(HOPELESS) else None
    told = joined(point, results, [_epochs_of(row) for row in rows])
    return Result(point, value, len(good), states.count("pruned"), rows, told)


def best(results: Iterable[Result], objective: Objective) -> Result | None:
    """The point with the best mean; None if there is none yet.

    One of which a seed was pruned comes after all others: the seeds that are left are its best.
    """
    sign = 1 if objective.direction == "max" else -1

    def rank(result: Result) -> tuple[bool, float]:
        assert result.value is not None
        return not result.pruned, sign * result.value[0]

    return max((each for each in results if each.value is not None), key=rank, default=None)


def write_csv(store: Store, rows: Sequence[Row], objective: Objective) -> None:
    """Writes `results.csv`, a line for each trial; of a path that its point lacks, nothing."""
    paths = list(dict.fromkeys(path for row in rows for path in row.trial.point))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        ["number", *paths, "seed", "state", str(objective), "attempts", "cause", "folder"]
    )
    for row in rows:
        causes = [attempt.cause for attempt in row.attempts if attempt.cause]
        folder = store.folder_of(row.trial.digest).relative_to(store.folder)
        point = row.trial.point
        # csv would write None as nothing, too.
        values = [_cell(point[path]) if path in point else "" for path in paths]
        table.writerow(
            [row.trial.number, *values, row.trial.seed, row.state, value_of(row, objective)]
            + [len(row.attempts), _cell("; ".join(causes)), folder]
        )
    durable.replace(store.folder / "results.csv", text.getvalue().encode())


def _epochs_of(row: Row) -> float:
    """How far a trial came that has left results."""
    last = {} if row.result is None else row.result.get("last", {})
    return max((line.get("epoch", 0.0) for line in last.values()), default=0.0)


def _cell(value: Any) -> str:
    """A value as text, which no spreadsheet takes for a formula."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else str(value)
