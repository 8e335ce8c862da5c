"""What is written down of a population: how it stands, and the way that a member came.

way = lineage(lines, member)                # {"from", "to", "member", "numbers", "score"}, ...

A line of `population.jsonl` is about a member at an evaluation:

    step, epoch, member     after how many steps, and which
    loss, accuracy, ...     on the images by which the best are chosen
    score                   that of the objective, null for a member that diverged
    numbers                 those with which it has trained since the evaluation before
    parent                  from whom it goes on, with other numbers; null: from itself
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]


def lineage(lines: Sequence[Line], member: int) -> list[dict[str, Any]]:
    """The way of what a member has at the end, from the first step on: who trained it with what.

    lines: all of `population.jsonl`.

    >>> rows = [(10, 0, None, 0.1), (10, 1, 0, 0.5), (20, 0, None, 0.1), (20, 1, None, 0.08)]
    >>> lines = [{"step": step, "member": member, "parent": parent, "score": 1.0,
    ...           "numbers": {"rate": rate}} for step, member, parent, rate in rows]
    >>> for part in lineage(lines, 1):
    ...     print(part["from"], part["to"], part["member"], part["numbers"]["rate"])
    0 10 0 0.1
    10 20 1 0.08
    """
    steps = sorted({line["step"] for line in lines})
    at = {(line["step"], line["member"]): line for line in lines}
    way: list[dict[str, Any]] = []
    for begin, end in reversed(list(zip([0, *steps], steps))):
        # Who goes on from another at the end of a part trained something else in it.
        parent = at[end, member]["parent"] if way else None
        member = member if parent is None else parent
        line = at[end, member]
        part = {"from": begin, "to": end, "member": member, "numbers": line["numbers"]}
        way.append(part | {"score": line["score"]})
    return way[::-1]


def best_of(lines: Sequence[Line], sign: int) -> int | None:
    """The member with the best score of these; the first of several; None if none has one.

    sign: 1 if greater scores are better, else -1.
    """
    scored = [line for line in lines if line["score"] is not None]
    return max(scored, key=lambda line: sign * line["score"], default={"member": None})["member"]


def table(lines: Sequence[Line], seed: int, objective: str) -> str:
    """`results.csv`: a line for each member as it stands at the newest evaluation.

    seed: that of member 0.
    """
    newest = max((line["step"] for line in lines), default=None)
    rows = sorted(
        (line for line in lines if line["step"] == newest), key=lambda line: line["member"]
    )
    paths = list(rows[0]["numbers"]) if rows else []
    text = io.StringIO()
    written = csv.writer(text)
    written.writerow(["member", *paths, "seed", "state", objective, "step", "replaced"])
    for row in rows:
        times = sum(line["parent"] is not None for line in lines if line["member"] == row["member"])
        state = "diverged" if row["score"] is None else "trained"
        score = "" if row["score"] is None else row["score"]
        numbers = [row["numbers"][path] for path in paths]
        written.writerow(
            [row["member"], *numbers, seed + row["member"], state, score, row["step"], times]
        )
    return text.getvalue()
