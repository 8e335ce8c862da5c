"""A network as a table: each layer with what it puts out, learns, computes, holds and sees.

    found = summarize(net, jax.ShapeDtypeStruct((1, 28, 28, 1), "float32"))
    print(tables.text(found))                     # of convjax.insight; or markdown, or as_json

Nothing is computed but shapes: the figures are read from the network's program. How long its layers
take is measured by `convjax.insight.inspection.timing`, and stands in the table where it was.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from convjax import tree
from convjax.insight.inspection import cost, receptive
from convjax.insight.inspection.program import Program, traced
from convjax.insight.inspection.receptive import ReceptiveField
from convjax.insight.inspection.timing import Timing
from convjax.layer import Layer, show


class Row(NamedTuple):
    """One layer, or several that stand for one.

    path: where it is. kind: what it is. output: what it puts out.
    parameters: how many numbers it learns; those of a layer that is called twice count once.
    multiply_adds: of one image, in all of its calls; see `convjax.insight.inspection.cost`.
    bytes: the memory of the outputs of all layers in it, of the whole batch.
    field: what one place of its output sees; None without an image.
    calls: how often it is called.
    layers: how many layers without parts of their own stand here.
    seconds: how long it takes; None where that was not measured.
    roofline: the shortest time that the device allows for it, as a share of these seconds.
    """

    path: str
    kind: str
    output: str
    parameters: int
    multiply_adds: int = 0
    bytes: int = 0
    field: ReceptiveField | None = None
    calls: int = 1
    layers: int = 1
    seconds: float | None = None
    roofline: float | None = None


class Summary(NamedTuple):
    """A network's rows, and what they sum up to.

    name: of the network. input: what it was described for.
    total: path "total"; what lies outside of all layers counts here, too.
    timing: how it was measured, or None.
    """

    name: str
    input: str
    rows: list[Row]
    total: Row
    timing: Timing | None = None


def summarize(
    net: Layer, spec: Any, *, deep: bool = True, name: str = "", timing: Timing | None = None
) -> Summary:
    """The rows of a network, in the order of their calls, and their total.

    spec: of a batch `[batch, ...]`, or a pytree of them.
    deep: a row for each layer without parts of its own; otherwise what lies deeper than in a part
        of a part, such as a block of a stage, stands in one row. Layers that give back their input
        have none, nor have parts that are never called.
    timing: what `timing.measure` has found for the same network.

    >>> from convjax import conv, dense, flatten, serial
    >>> net = serial(conv(4, 3), flatten, dense(10))
    >>> found = summarize(net, jax.ShapeDtypeStruct((1, 8, 8, 1), "float32"))
    >>> [(row.path, row.output, row.parameters, row.multiply_adds) for row in found.rows]
    [('conv1', 'float32[1,8,8,4]', 40, 2304),
     ('flatten1', 'float32[1,256]', 0, 0),
     ('dense1', 'float32[1,10]', 2570, 2560)]
    """
    program = traced(net, spec)
    leaves = program.leaves()
    shown = leaves if timing is None else _timed(leaves, timing)
    paths = shown if deep else _blocks(shown)
    batch = jax.tree.leaves(spec)[0].shape[0]
    counts, fields = cost.of_parts(program), receptive.of_program(program)
    sizes = {path: leaf.size for path, leaf in tree.leaves(program.params).items()}
    rows = [_row(program, path, leaves, sizes, counts, fields, batch, timing) for path in paths]
    total = Row(
        *("total", "", "", sum(sizes.values())),
        multiply_adds=sum(counts.values()) // batch,
        bytes=sum(row.bytes for row in rows),
        layers=len(leaves),
        seconds=None if timing is None else sum(timing.layers.values()),
    )
    return Summary(name, show(spec), rows, total, timing)


def _blocks(leaves: list[str]) -> list[str]:
    """The parts of parts that hold these layers, each once."""
    return [*dict.fromkeys("/".join(path.split("/")[:2]) for path in leaves)]


def _timed(leaves: list[str], timing: Timing) -> list[str]:
    """These layers, but in the place of some the part around them that was timed as a whole."""
    outer = {
        leaf: next((path for path in timing.layers if _lies_in(leaf, path)), leaf)
        for leaf in leaves
    }
    return [*dict.fromkeys(outer.values())]


def _row(
    program: Program,
    path: str,
    leaves: list[str],
    sizes: dict[str, int],
    counts: dict[str, int],
    fields: dict[str, ReceptiveField],
    batch: int,
    timing: Timing | None,
) -> Row:
    part, inside = program.parts[path], [each for each in leaves if _lies_in(each, path)]
    seconds = ideal = None
    if timing is not None:
        found = [each for each in timing.layers if _lies_in(each, path)]
        seconds = sum(timing.layers[each] for each in found) if found else None
        ideal = sum(timing.shortest[each] for each in found)
    return Row(
        *(path, part.kind, show(part.output)),
        parameters=sum(size for each, size in sizes.items() if _lies_in(each, path)),
        multiply_adds=sum(count for each, count in counts.items() if _lies_in(each, path)) // batch,
        bytes=sum(program.parts[each].bytes for each in inside),
        field=fields.get(path),
        calls=part.calls,
        layers=len(inside),
        seconds=seconds,
        roofline=ideal / seconds if seconds and ideal is not None else None,
    )


def _lies_in(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}/")
