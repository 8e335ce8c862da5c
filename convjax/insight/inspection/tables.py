"""Summaries of networks as text, as Markdown and as JSON.

print(text(summarize(net, spec)))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from convjax.insight.inspection.layout import Table, large, seconds, shown, size
from convjax.insight.inspection.summary import Row, Summary
from convjax.insight.inspection.windows import per_axis

FORMATS = ("text", "json", "markdown")


def text(summary: Summary) -> str:
    """The rows of a network as text, with its input above and their total below.

    With times it has these in place of the receptive field, for which there is no room.

    >>> import jax
    >>> from convjax import conv, serial
    >>> from convjax.insight.inspection.summary import summarize
    >>> print(text(summarize(serial(conv(4, 3)), jax.numpy.zeros((1, 8, 8, 1)))))
                                                                         field   field   field
    layer  kind, kernel  output  parameters  multiply-adds  activations   size  stride  offset
    input                8x8x1
    conv1  conv 3x3      8x8x4           40          2,304      1.02 kB      3       1      -1
    total                                40          2,304      1.02 kB
    <BLANKLINE>
    for float32[1,8,8,1]; parameters take 160 B in float32
    """
    fields = summary.timing is None
    return "\n".join([shown(_table(summary, fields), "text"), "", *notes(summary)])


def markdown(summary: Summary) -> str:
    """The same as a table of Markdown, which has the receptive field and the times."""
    return "\n".join([shown(_table(summary), "markdown"), "", *notes(summary)])


def as_json(summary: Summary) -> str:
    """The same as a JSON object, every figure in full; see docs/inspect.md."""
    return json.dumps(as_dict(summary), indent=2)


def as_dict(summary: Summary) -> dict[str, Any]:
    """The same as nested dicts and lists of numbers and text."""
    found = {
        "name": summary.name,
        "input": summary.input,
        "layers": [_row_dict(row) for row in summary.rows],
        "total": _sums(summary.total) | {"layers": summary.total.layers},
    }
    if summary.timing is not None:
        found["total"]["seconds"] = summary.total.seconds
        timing = summary.timing._asdict()
        found["timing"] = {key: timing[key] for key in timing if key not in ("layers", "shortest")}
    return found


def notes(summary: Summary) -> list[str]:
    """What is to be known of a table, a line each."""
    total, timing = summary.total, summary.timing
    memory = " and ".join(f"{size(count)} in {name}" for name, count in total.weights.items())
    found = [f"for {summary.input}"]
    if memory:
        found[0] += f"; parameters take {memory}"
    if total.frozen:
        trained = total.parameters - total.frozen
        found[0] += f"; {trained:,} are trained, {total.frozen:,} frozen"
    if timing is not None:
        work = total.multiply_adds * timing.batch / timing.whole
        found += [
            f"as one program: {seconds(timing.whole)}, {large(work)} multiply-adds a second",
            f"peak of {timing.device} in this run: {large(timing.multiply_adds_per_second)} "
            f"multiply-adds a second, {size(timing.bytes_per_second)} a second; "
            f"an empty program takes {seconds(timing.idle)}",
        ]
    return found


def figures(spec: str) -> dict[str, Callable[[Row], str]]:
    """What is shown of each row of a network for such an input, by the head of its column."""
    return {
        "kind, kernel": _kind,
        "output": lambda row: shape(row.output, spec),
        "parameters": lambda row: _count(row.parameters),
        "frozen": lambda row: _count(row.frozen),
        "multiply-adds": lambda row: _count(row.multiply_adds),
        "activations": lambda row: size(row.bytes),
        "field\nsize": _field_size,
        "field\nstride": lambda row: _moving(row, "stride"),
        "field\noffset": lambda row: _moving(row, "offset"),
    }


def shape(spec: str, like: str) -> str:
    """The shape of one example of what a layer puts out, and its dtype where that is another.

    >>> shape("float32[8,28,28,6]", like="float32[8,28,28,1]")
    '28x28x6'
    >>> shape("(bfloat16[8,10], float32[98,4])", like="float32[8,28,28,1]")
    '(10 bfloat16, [98,4])'
    """
    known = re.match(r"(\w+)\[(\d+),", like)
    if known is None:
        return spec

    def one(found: re.Match[str]) -> str:
        dtype, first, *rest = found[1], *found[2].split(",")
        text = "x".join(rest) if rest and first == known[2] else f"[{found[2]}]"
        return text if dtype == known[1] else f"{text} {dtype}"

    return re.sub(r"(\w+)\[([\d,]+)\]", one, spec)


# -- Cells -----------------------------------------------------------------------------------------


def _table(summary: Summary, fields: bool = True) -> Table:
    shows = figures(summary.input)
    if not summary.total.frozen:
        del shows["frozen"]
    if not fields:
        shows = {name: figure for name, figure in shows.items() if not name.startswith("field")}
    if summary.timing is not None:
        shows |= _times(summary.total.seconds)
    head = ["layer", *shows]

    def line(row: Row) -> list[str]:
        return [row.path, *(figure(row) for figure in shows.values())]

    lines = [line(row) for row in summary.rows]
    outside = {
        name: getattr(summary.total, name) - sum(getattr(row, name) for row in summary.rows)
        for name in ("parameters", "frozen", "multiply_adds")
    }
    if any(outside.values()):  # So that every column adds up.
        cells = {name.replace("_", "-"): _count(count) for name, count in outside.items()}
        lines.append([cells.get(name, "") for name in head])
        lines[-1][0] = "outside of layers"
    above = ["input", "", shape(summary.input, summary.input), *[""] * (len(head) - 3)]
    right = [False] * 3 + [True] * (len(head) - 3)
    return Table(head, right, [above, *lines, line(summary.total)])


def _kind(row: Row) -> str:
    several = f" of {row.layers}" if row.kind and row.layers != 1 else ""
    window = "" if row.window is None else f" {row.window}"
    calls = f", {row.calls} calls" if row.calls > 1 else ""
    return f"{row.kind}{several}{window}{calls}"


def _field_size(row: Row) -> str:
    if row.field is None:
        return ""
    return "all" if row.field.sees_all else per_axis(row.field.size)


def _moving(row: Row, name: str) -> str:
    """What says where a field lies, unless all places see the same."""
    if row.field is None or not any(row.field.stride):
        return ""
    return per_axis(getattr(row.field, name))


def _times(whole: float | None) -> dict[str, Callable[[Row], str]]:
    def cell(figure: Callable[[Row, float], str]) -> Callable[[Row], str]:
        return lambda row: "" if row.seconds is None or not whole else figure(row, row.seconds)

    return {
        "time": cell(lambda row, took: seconds(took)),
        "share": cell(lambda row, took: f"{took / whole:.1%}" if whole else ""),
        "roofline": cell(lambda row, _: "" if row.roofline is None else f"{row.roofline:.0%}"),
    }


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


# -- JSON ------------------------------------------------------------------------------------------


def _sums(row: Row) -> dict[str, Any]:
    return {
        "parameters": row.parameters,
        "frozen_parameters": row.frozen,
        "parameter_bytes": dict(row.weights),
        "multiply_adds": row.multiply_adds,
        "activation_bytes": row.bytes,
    }


def _row_dict(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {
        "path": row.path,
        "kind": row.kind,
        "kernel": None,
        "output": row.output,
        **_sums(row),
        "calls": row.calls,
        "layers": row.layers,
        "receptive_field": None,
    }
    if row.window is not None:
        window = row.window._asdict()
        of_window = {name: list(window[name]) for name in ("size", "stride", "dilation")}
        found["kernel"] = {**of_window, "groups": row.window.groups}
    if row.field is not None:
        names = ("size", "stride", "offset")
        of_field = {name: list(getattr(row.field, name)) for name in names}
        found["receptive_field"] = {**of_field, "sees_all": row.field.sees_all}
    if row.seconds is not None:
        found |= {"seconds": row.seconds, "roofline": row.roofline}
    return found
