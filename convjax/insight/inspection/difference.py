"""Two networks side by side: the layers that differ, and their totals.

print(difference(summarize(one, spec), summarize(other, spec), "markdown"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from convjax.insight.inspection import tables
from convjax.insight.inspection.layout import Table, shown
from convjax.insight.inspection.summary import Row, Summary

Pair = tuple[Row | None, Row | None]
Figure = Callable[[Row], str]

_SHOWN = ("kind, kernel", "output", "parameters", "multiply-adds", "field\nsize", "field\nstride")
_COUNTS = ("parameters", "frozen", "multiply-adds")


def difference(one: Summary, other: Summary, form: str = "text") -> str:
    """What differs between two networks: the rows, by path, and the totals with their ratio.

    A figure that differs is written as `this → that`, and "-" stands for what is not there.

    form: one of `tables.FORMATS`.
    """
    if form == "json":
        return json.dumps({"networks": [tables.as_dict(one), tables.as_dict(other)]}, indent=2)
    pairs, figures = _pairs(one.rows, other.rows), tables.figures(one.input)
    differing = [(pair, names) for pair in pairs if (names := _differing(pair, figures))]
    # Other columns only for rows that would look alike without.
    hidden = {name for _, names in differing if names.isdisjoint(_SHOWN) for name in names}
    columns = [name for name in figures if name in (*_SHOWN, *hidden)]
    lines = [
        [_path(pair), *(_change(pair, figures[name], name) for name in columns)]
        for pair, _ in differing
    ]
    rows = Table(["layer", *columns], [False] * 3 + [True] * (len(columns) - 2), lines)
    names = one.name or "one", other.name or "other"
    totals = [
        ("layers", one.total.layers, other.total.layers),
        ("parameters", one.total.parameters, other.total.parameters),
        ("parameters in bytes", sum(one.total.weights.values()), sum(other.total.weights.values())),
        ("multiply-adds", one.total.multiply_adds, other.total.multiply_adds),
        ("activations in bytes", one.total.bytes, other.total.bytes),
    ]
    sums = Table(
        ["total", *names, "ratio"],
        [False, True, True, True],
        [[what, f"{a:,}", f"{b:,}", f"{b / a:.3f}" if a else ""] for what, a, b in totals],
    )
    title = f"{_arrow(*names)}, for {_arrow(one.input, other.input)}"
    alike = f"{len(pairs) - len(lines)} of {len(pairs)} rows are alike and not shown."
    table = [shown(rows, form), ""] if lines else []
    return "\n".join([title, "", *table, alike, "", shown(sums, form)])


def _differing(pair: Pair, figures: Mapping[str, Figure]) -> set[str]:
    """The figures that differ between two rows; all of them, where there is but one row."""
    one, other = pair
    if one is None or other is None:
        return {*figures}
    return {name for name, figure in figures.items() if figure(one) != figure(other)}


def _change(pair: Pair, figure: Figure, name: str) -> str:
    """A figure of both rows."""
    none = "0" if name in _COUNTS else "-"
    return _arrow(*("-" if row is None else figure(row) or none for row in pair))


def _arrow(one: str, other: str) -> str:
    return one if one == other else f"{one} → {other}"


def _path(pair: Pair) -> str:
    row = pair[0] or pair[1]
    return "" if row is None else row.path


def _pairs(one: Sequence[Row], other: Sequence[Row]) -> list[Pair]:
    """Rows by path, in the order of the first network, those of the second alone at their place."""
    mine, theirs = ({row.path: row for row in rows} for rows in (one, other))
    paths, here = [], 0
    order = [row.path for row in one]
    for row in other:
        if row.path in mine:
            there = order.index(row.path) + 1
            paths += order[here:there]
            here = max(here, there)
        else:
            paths.append(row.path)
    return [(mine.get(path), theirs.get(path)) for path in [*paths, *order[here:]]]
