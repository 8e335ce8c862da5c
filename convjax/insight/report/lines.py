"""What a run has written line by line, as it stands: a run may be at work, or have died in a line.

lines, torn = read_lines(log.metrics_file)      # torn: how many could not be read
curves(lines)["test"]["accuracy"]               # a number for each line, None where there is none
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOTS = 1000  # of one curve; more would be heavy, and nobody could tell them apart
METRICS = ("loss", "accuracy", "learning_rate", "gradient_norm", "images_per_second")


def read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file of JSON that have a step, and how many have none; no file, no lines.

    Raises:
        OSError: if it is there and cannot be read.
    """
    if not file.exists():
        return [], 0
    found, torn = [], 0
    for text in filter(None, file.read_bytes().split(b"\n")):
        try:
            line = json.loads(text)
            if number_of(line["step"]) is None:
                raise ValueError(text)
            found.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            torn += 1
    return found, torn


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """The numbers of the lines of each split, of which many are thinned out.

    What is marked as of the end alone is no curve.

    >>> line = {"step": 5, "epoch": 0.5, "split": "train", "loss": 2.0, "learning_rate": "?"}
    >>> found = curves([line])["train"]
    >>> found["step"], found["loss"], found["learning_rate"]
    ([5], [2.0], [None])
    """
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if isinstance(line.get("split"), str) and not line.get("final"):
            splits.setdefault(line["split"], []).append(line)
    names = ("step", "epoch", "seconds", *METRICS)
    return {
        split: {name: [number_of(line.get(name)) for line in thinned(own)] for name in names}
        for split, own in splits.items()
    }


def spreads(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How weights and gradients were spread, by leaf, with `step` and `epoch` of each line.

    Of each leaf there are rows by kind, `weights` and `gradients`, one for each line; None where a
    line has none, as of gradients before the first step.
    """
    lines = [line for line in thinned(lines, 200) if isinstance(line.get("leaves"), dict)]
    paths = dict.fromkeys(path for line in lines for path in line["leaves"])
    return {
        "step": [line["step"] for line in lines],
        "epoch": [number_of(line.get("epoch")) for line in lines],
        "leaves": {
            path: {
                kind: [_row(line["leaves"].get(path), kind) for line in lines]
                for kind in ("weights", "gradients")
            }
            for path in paths
        },
    }


def thinned(lines: Sequence[Any], most: int = DOTS) -> Sequence[Any]:
    """At most so many lines, spread evenly, with the first and the last."""
    if len(lines) <= most:
        return lines
    last = len(lines) - 1
    return [lines[round(dot * last / (most - 1))] for dot in range(most)]


def number_of(value: Any) -> float | None:
    """A number that JSON and JavaScript can hold, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) and abs(value) < 1e300 else None


def _row(leaf: Any, kind: str) -> list[float | None] | None:
    row = leaf.get(kind) if isinstance(leaf, dict) else None
    return [number_of(each) for each in row] if isinstance(row, list) else None
