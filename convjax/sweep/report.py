"""The page of a sweep, from its record alone: curves, pictures of the space, best config, table.

    write_page("sweeps/mine")               # sweeps/mine/sweep.html, one file that opens offline

Beside the record it reads the metrics of the runs; what of them is gone or torn is left out, and
the page says so. Plotly draws. The folder `html` holds the page without its numbers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from convjax import durable
from convjax.config import ConfigError, UserError, from_dict
from convjax.html.page import render
from convjax.ranges import METRICS
from convjax.sweep.axes import axes, distributions_of, shown
from convjax.sweep.command import command
from convjax.sweep.database import told
from convjax.sweep.importance import ENOUGH, FEWEST, importances
from convjax.sweep.objective import Objective
from convjax.sweep.objective import parse as parse_objective
from convjax.sweep.store import Store
from convjax.sweep.table import Result, best, by_point, value_of
from convjax.sweep.trial import Outcome, Row

CURVES = 200  # trials whose curves are drawn
_BEST = 50  # of these, the best ones
_DOTS = 100  # of one curve
_SCRIPTS = ("basics.js", "curves.js", "space.js", "map.js", "table.js", "start.js")


def write_page(folder: str | os.PathLike[str], sweep: int | None = None) -> Path:
    """Writes `sweep.html` into the folder of a sweep, and returns its path.

    sweep: its number in the record, by default the newest.

    Raises:
        UserError: if Plotly is missing, if the folder holds no such sweep, if its record cannot be
            read, or if the page cannot be written.
    """
    folder = Path(folder)
    if not (folder / "sweep.db").is_file():
        raise UserError(f"{folder} holds no sweep (no sweep.db): give the --workdir of one")
    with Store(folder) as store:
        numbers = list(store.sweeps())
        if not numbers or sweep not in (None, *numbers):
            there = f"there are {', '.join(map(str, numbers))}" if numbers else "start one in it"
            raise UserError(f"{folder} holds no sweep {'yet' if sweep is None else sweep}: {there}")
        data = page_data(store, numbers[-1] if sweep is None else sweep)
    # The shaders of parallel coordinates are compiled.
    page = render(
        *("convjax.sweep", "page.html"), data=data, scripts=_SCRIPTS, plotly=True, compiles=True
    )
    with told(folder / "sweep.html"):
        durable.replace(folder / "sweep.html", page.encode())
    return folder / "sweep.html"


def page_data(store: Store, sweep: int) -> dict[str, Any]:
    """All that the page shows, as JSON can hold it."""
    definition, rows = store.sweeps()[sweep], store.rows(sweep)
    objective = parse_objective(definition["objective"])
    results = by_point(rows, definition["seeds"], objective)
    good = [result for result in results if result.value is not None]
    varied = distributions_of(definition)
    curves, unread = _curves(store, rows, objective)
    return {
        "title": definition.get("config", {}).get("name") or store.folder.name,
        "objective": objective._asdict(),
        "sampler": definition.get("sampler"),
        "pruner": definition.get("pruner"),
        "seeds": definition["seeds"],
        "counts": store.counts(sweep),
        "asked": len(results),
        "times": _times(rows),
        "best": _best(store, results, objective),
        "points": [_point(result) for result in good],
        "axes": [axis._asdict() for axis in axes([each.point for each in good], varied)],
        "importance": _importance(good, varied, objective),
        "curves": curves,
        "unread": unread,
        "table": _table(store, rows, objective),
    }


# -- What the page is made of ----------------------------------------------------------------------


def _times(rows: Sequence[Row]) -> dict[str, Any]:
    """When the sweep began, when anything last ended, and the seconds of all attempts together."""
    attempts = [attempt for row in rows for attempt in row.attempts]
    ends = [each.ended for each in attempts if each.ended is not None]
    spent = [each.ended - each.began for each in attempts if each.ended is not None]
    return {
        "began": _utc(min((each.began for each in attempts), default=None)),
        "ended": _utc(max(ends, default=None)),
        "seconds": math.fsum(spent),
        "written": _utc(datetime.now(UTC).timestamp()),
    }


def _best(store: Store, results: Sequence[Result], objective: Objective) -> dict[str, Any] | None:
    """The best point, and the command that trains it with its first seed."""
    found = best(results, objective)
    if found is None or found.value is None:
        return None
    done = [row for row in found.rows if row.state == Outcome.FINISHED]
    first = done[0].trial
    config = f"{store.folder_of(first.digest).relative_to(store.folder).as_posix()}/config.json"
    try:
        text = command(from_dict(first.config))
    except ConfigError:
        text = f"python -m experiments.train --config={config}"
    mean, half = found.value
    return {
        "mean": mean,
        "half": half,
        "finished": found.finished,
        "asked": len(found.rows),
        "point": {path: str(value) for path, value in found.point.items()},
        "command": text,
        "seed": first.seed,
        "others": [row.trial.seed for row in done[1:]],
    }


def _point(result: Result) -> dict[str, Any]:
    assert result.value is not None
    mean, half = result.value
    return {
        "value": mean,
        "half": half,
        "finished": result.finished,
        "text": _text(result.point),
        "trials": [row.trial.number for row in result.rows],
    }


def _importance(
    results: Sequence[Result], varied: Mapping[str, Any], objective: Objective
) -> dict[str, Any]:
    """Shares by path, none if there are too few points; and how many there were.

    The seeds that are left of a point are its best ones where others were pruned: it counts not.
    """
    results = [result for result in results if not result.pruned]
    few = {"shares": {}, "points": len(results), "fewest": FEWEST, "enough": ENOUGH}
    if len(results) < FEWEST:
        return few
    values = [result.value[0] for result in results if result.value is not None]
    points = [result.point for result in results]
    return few | {"shares": importances(points, values, varied, objective.direction)}


def _curves(
    store: Store, rows: Sequence[Row], objective: Objective
) -> tuple[list[dict[str, Any]], int]:
    """The curves of up to `CURVES` trials, and how many lines of their metrics cannot be read."""
    found, unread = [], 0
    for row in _chosen(rows, objective):
        lines, bad = _lines(store.folder_of(row.trial.digest) / "metrics.jsonl")
        unread += bad
        splits = {
            split: _curve([line for line in lines if line["split"] == split])
            for split in dict.fromkeys((objective.split, "train"))
        }
        splits = {split: curve for split, curve in splits.items() if curve["step"]}
        if splits:
            found.append(
                {
                    "number": row.trial.number,
                    "text": f"{_text(row.trial.point)}, seed {row.trial.seed}",
                    "state": row.state,
                    "value": value_of(row, objective),
                    "splits": splits,
                }
            )
    return found, unread


def _chosen(rows: Sequence[Row], objective: Objective) -> list[Row]:
    """All trials that began, or the best ones and an even choice of the others; each once."""
    begun = list({row.trial.digest: row for row in rows if row.attempts}.values())
    if len(begun) <= CURVES:
        return begun
    sign = -1 if objective.direction == "max" else 1
    values = {row.trial.digest: value_of(row, objective) for row in begun}

    def rank(row: Row) -> float:
        value = values[row.trial.digest]
        return math.inf if value is None or row.state != Outcome.FINISHED else sign * value

    ranked = sorted(begun, key=rank)
    rest = ranked[_BEST:]
    count = CURVES - _BEST
    return ranked[:_BEST] + [rest[index * len(rest) // count] for index in range(count)]


def _curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Steps, epochs and each metric of the lines of one split, of which many are thinned out."""
    if len(lines) > _DOTS:
        last = len(lines) - 1
        lines = [lines[round(dot * last / (_DOTS - 1))] for dot in range(_DOTS)]
    names = ("step", "epoch", *METRICS)
    return {name: [_finite(line.get(name)) for line in lines] for name in names}


def _lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics, and how many are none; no run, no lines."""
    try:
        content = file.read_bytes()
    except OSError:
        return [], 0
    found, bad = [], 0
    for text in filter(None, content.split(b"\n")):
        try:
            line = json.loads(text)
            if _finite(line["step"]) is None or not isinstance(line["split"], str):
                raise ValueError(text)
            found.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            bad += 1
    return found, bad


def _table(store: Store, rows: Sequence[Row], objective: Objective) -> dict[str, Any]:
    """Every trial with its state, value, cause of failure, and the paths of its files."""
    paths = list(dict.fromkeys(path for row in rows for path in row.trial.point))
    return {
        "paths": paths,
        "rows": [_row(store, row, objective, paths) for row in rows],
    }


def _row(store: Store, row: Row, objective: Objective, paths: Sequence[str]) -> dict[str, Any]:
    folder = store.folder_of(row.trial.digest)
    point = row.trial.point
    return {
        "number": row.trial.number,
        "name": row.trial.name,
        "state": row.state,
        "value": value_of(row, objective),
        "point": [_cell(point[path]) if path in point else None for path in paths],
        "seed": row.trial.seed,
        "causes": [attempt.cause for attempt in row.attempts if attempt.cause],
        "folder": f"{folder.relative_to(store.folder).as_posix()}/" if folder.is_dir() else None,
        "logs": [
            attempt.log.relative_to(store.folder).as_posix() if attempt.log.is_file() else None
            for attempt in row.attempts
        ],
    }


def _cell(value: Any) -> float | str:
    """A number that sorts as one, or a text."""
    number = None if isinstance(value, bool) else _finite(value)
    return str(value) if number is None else number


def _text(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={shown(value)}" for path, value in point.items())


def _utc(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _finite(value: Any) -> float | None:
    """A number that JSON and JavaScript can hold, None for anything else."""
    return value if isinstance(value, int | float) and -1e300 < value < 1e300 else None
