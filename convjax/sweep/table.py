"""What people look at of a sweep: what came of each point, and `results.csv`."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
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
    finished: how many seeds have.
    told: the same for a sampler.
    """

    point: Mapping[str, Any]
    value: tuple[float, float | None] | None
    finished: int
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
    found = []
    for _, group in itertools.groupby(rows, key=lambda row: row.trial.number // seeds):
        own = list(group)
        point, results = own[0].trial.point, [(value_of(row, objective), row.state) for row in own]
        good = [value for value, state in results if state == "finished" and value is not None]
        hopeless = any(state in HOPELESS for _, state in results)
        value = summary(good) if good and not hopeless else None
        found.append(Result(point, value, len(good), own, joined(point, results)))
    return found


def best(results: Sequence[Result], objective: Objective) -> Result | None:
    """The point with the best mean; None if there is none yet."""
    there = [result for result in results if result.value is not None]
    sign = 1 if objective.direction == "max" else -1
    return max(there, key=lambda each: sign * (each.value or (0.0, None))[0], default=None)


def write_csv(store: Store, rows: Sequence[Row], objective: Objective) -> None:
    """Writes `results.csv`, a line for each trial."""
    paths = list(dict.fromkeys(path for row in rows for path in row.trial.point))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        ["number", *paths, "seed", "state", str(objective), "attempts", "cause", "folder"]
    )
    for row in rows:
        causes = [attempt.cause for attempt in row.attempts if attempt.cause]
        folder = store.folder_of(row.trial.digest).relative_to(store.folder)
        values = [_inert(row.trial.point.get(path)) for path in paths]
        table.writerow(
            [row.trial.number, *values, row.trial.seed, row.state, value_of(row, objective)]
            + [len(row.attempts), _inert("; ".join(causes)), folder]
        )
    durable.replace(store.folder / "results.csv", text.getvalue().encode())


def _inert(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula."""
    text = value if isinstance(value, str) else ""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else value
