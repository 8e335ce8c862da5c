"""Summaries of networks as text, as Markdown and as JSON, and two of them side by side.

print(text(summarize(net, spec)))
print(difference(summarize(one, spec), summarize(other, spec), "markdown"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from convjax.insight.inspection.receptive import ReceptiveField
from convjax.insight.inspection.summary import Row, Summary

FORMATS = ("text", "json", "markdown")


class Table(NamedTuple):
    """Cells with a head; `right` says which columns hold numbers."""

    head: Sequence[str]
    right: Sequence[bool]
    lines: Sequence[Sequence[str]]


def text(summary: Summary) -> str:
    """The rows of a network as text, with its input above and their total below.

    >>> import jax
    >>> from convjax import conv, serial
    >>> from convjax.insight.inspection.summary import summarize
    >>> print(text(summarize(serial(conv(4, 3)), jax.numpy.zeros((1, 8, 8, 1)))))
    layer  kind  output            parameters  multiply-adds  activations  field  stride  offset
    input        float32[1,8,8,1]
    conv1  conv  float32[1,8,8,4]          40          2,304      1.02 kB      3       1      -1
    total                                  40          2,304      1.02 kB
    """
    return shown(_table(summary), "text")


def markdown(summary: Summary) -> str:
    """The same as a table of Markdown."""
    return shown(_table(summary), "markdown")


def as_json(summary: Summary) -> str:
    """The same as a JSON object, every figure in full; see docs/inspect.md."""
    return json.dumps(as_dict(summary), indent=2)


def as_dict(summary: Summary) -> dict[str, Any]:
    """The same as nested dicts and lists of numbers and text."""
    found = {
        "name": summary.name,
        "input": summary.input,
        "layers": [_row_dict(row) for row in summary.rows],
        "total": {
            "parameters": summary.total.parameters,
            "multiply_adds": summary.total.multiply_adds,
            "activation_bytes": summary.total.bytes,
            "layers": summary.total.layers,
        },
    }
    if summary.timing is not None:
        found["total"]["seconds"] = summary.total.seconds
        timing = summary.timing._asdict()
        found["timing"] = {key: timing[key] for key in timing if key not in ("layers", "shortest")}
    return found


def notes(summary: Summary) -> list[str]:
    """What is to be known of the times in a table, a line each."""
    timing = summary.timing
    if timing is None:
        return []
    work = summary.total.multiply_adds * timing.batch / timing.whole
    return [
        f"as one program: {seconds(timing.whole)}, {large(work)} multiply-adds a second",
        f"peak of {timing.device} in this run: {large(timing.multiply_adds_per_second)} "
        f"multiply-adds a second, {size(timing.bytes_per_second)} a second; "
        f"an empty program takes {seconds(timing.idle)}",
    ]


def difference(one: Summary, other: Summary, form: str = "text") -> str:
    """What differs between two networks: the rows, by path, and the totals with their ratio.

    A figure that differs is written as `this → that`, and "-" stands for a layer that is not there.

    form: one of FORMATS.
    """
    if form == "json":
        return json.dumps({"networks": [as_dict(one), as_dict(other)]}, indent=2)
    pairs = _pairs(one.rows, other.rows)
    changed = [(a, b) for a, b in pairs if a is None or b is None or _differ(a, b)]
    names = one.name or "one", other.name or "other"
    figures: list[tuple[str, Callable[[Row], str]]] = [
        ("output", lambda row: row.output),
        ("parameters", lambda row: _count(row.parameters) or "0"),
        ("multiply-adds", lambda row: _count(row.multiply_adds) or "0"),
        ("field", lambda row: _field(row.field)),
        ("stride", lambda row: _each(row.field.stride) if row.field is not None else ""),
    ]
    lines = [
        [(a or b or one.total).path, *(_change(a, b, figure) for _, figure in figures)]
        for a, b in changed
    ]
    head = ["layer", *(title for title, _ in figures)]
    rows = Table(head, [False, False, True, True, True, True], lines)
    totals = [
        ("layers", one.total.layers, other.total.layers),
        ("parameters", one.total.parameters, other.total.parameters),
        ("multiply-adds", one.total.multiply_adds, other.total.multiply_adds),
        ("activations in bytes", one.total.bytes, other.total.bytes),
    ]
    sums = Table(
        ["total", *names, "ratio"],
        [False, True, True, True],
        [[what, f"{a:,}", f"{b:,}", f"{b / a:.3f}" if a else ""] for what, a, b in totals],
    )
    same = len(pairs) - len(changed)
    note = f"{same} of {len(pairs)} rows are alike and not shown."
    title = f"{names[0]} → {names[1]}"
    above = [title, "", shown(rows, form), ""] if changed else []
    return "\n".join([*above, note, "", shown(sums, form)])


def shown(table: Table, form: str) -> str:
    """A table as text or as Markdown."""
    if form == "markdown":
        rule = ["---:" if right else "---" for right in table.right]
        lines = [table.head, rule, *table.lines]
        return "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines)
    lines = [table.head, *table.lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, table.right)
        ).rstrip()
        for line in lines
    )


def seconds(value: float) -> str:
    """A time in three digits.

    >>> seconds(0.01234), seconds(0.0000456), seconds(2.0)
    ('12.3 ms', '45.6 µs', '2 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def large(count: float) -> str:
    """A large number in three digits.

    >>> large(4_089_184_256), large(40_551_040), large(640)
    ('4.09 billion', '40.6 million', '640')
    """
    for word, word_size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if count >= word_size:
            return f"{count / word_size:.3g} {word}"
    return f"{count:.3g}"


def size(count: float) -> str:
    """A number of bytes in three digits.

    >>> size(40), size(1024), size(98_760_000)
    ('40 B', '1.02 kB', '98.8 MB')
    """
    for unit, unit_size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= unit_size:
            return f"{count / unit_size:.3g} {unit}"
    return f"{count} B"


# -- Cells -----------------------------------------------------------------------------------------


def _table(summary: Summary) -> Table:
    head = ["layer", "kind", "output", "parameters", "multiply-adds", "activations"]
    head += ["field", "stride", "offset"]
    timed = summary.timing is not None
    head += ["time", "share", "roofline"] if timed else []
    whole = summary.total.seconds
    lines = [[*_cells(row), *(_times(row, whole) if timed else ())] for row in summary.rows]
    above = ["input", "", summary.input, *[""] * (len(head) - 3)]
    total = [*_cells(summary.total), *(_times(summary.total, whole) if timed else ())]
    outside = [
        getattr(summary.total, name) - sum(getattr(row, name) for row in summary.rows)
        for name in ("parameters", "multiply_adds")
    ]
    if any(outside):  # So that every column adds up.
        cells = ["outside of layers", "", "", *map(_count, outside)]
        lines.append([*cells, *[""] * (len(head) - len(cells))])
    return Table(head, [False] * 3 + [True] * (len(head) - 3), [above, *lines, total])


def _cells(row: Row) -> list[str]:
    field = row.field
    moves = field is not None and any(field.stride)
    kind = row.kind if row.layers == 1 or not row.kind else f"{row.kind}, {row.layers} layers"
    return [
        row.path,
        f"{kind}, {row.calls} calls" if row.calls > 1 else kind,
        row.output,
        _count(row.parameters),
        _count(row.multiply_adds),
        size(row.bytes),
        _field(field),
        _each(field.stride) if field is not None and moves else "",
        _each(field.offset) if field is not None and moves else "",
    ]


def _times(row: Row, whole: float | None) -> list[str]:
    if row.seconds is None or not whole:
        return ["", "", ""]
    roofline = "" if row.roofline is None else f"{row.roofline:.0%}"
    return [seconds(row.seconds), f"{row.seconds / whole:.1%}", roofline]


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _field(field: ReceptiveField | None) -> str:
    if field is None:
        return ""
    return "all" if field.sees_all else _each(field.size)


def _each(values: Sequence[float]) -> str:
    """One number for all dimensions, or one for each."""
    listed = [f"{value:g}" for value in values]
    return listed[0] if len(set(listed)) == 1 else "x".join(listed)


def _row_dict(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {
        "path": row.path,
        "kind": row.kind,
        "output": row.output,
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
        "activation_bytes": row.bytes,
        "calls": row.calls,
        "layers": row.layers,
        "receptive_field": None,
    }
    if row.field is not None:
        names = ("size", "stride", "offset")
        of_field = {name: list(getattr(row.field, name)) for name in names}
        found["receptive_field"] = {**of_field, "sees_all": row.field.sees_all}
    if row.seconds is not None:
        found |= {"seconds": row.seconds, "roofline": row.roofline}
    return found


def _change(one: Row | None, other: Row | None, figure: Callable[[Row], str]) -> str:
    """A figure of both rows, where they differ; "-" where there is no such row."""
    mine, theirs = ("-" if row is None else figure(row) for row in (one, other))
    return mine if mine == theirs else f"{mine} → {theirs}"


def _pairs(one: Sequence[Row], other: Sequence[Row]) -> list[tuple[Row | None, Row | None]]:
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


def _differ(one: Row, other: Row) -> bool:
    return _cells(one) != _cells(other)
