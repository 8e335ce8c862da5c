"""A network as a table: each layer with what it puts out, learns, computes, holds and sees.

    found = summarize(net, jax.ShapeDtypeStruct((1, 28, 28, 1), "float32"))
    print(tables.text(found))                     # of convjax.insight; or markdown, or as_json

Nothing is computed but shapes: the figures are read from the network's program. How long its layers
take is measured by `convjax.insight.inspection.timing`, and stands in the table where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax

from convjax import tree
from convjax.insight.inspection import cost, receptive, windows
from convjax.insight.inspection.program import Part, traced
from convjax.insight.inspection.receptive import ReceptiveField
from convjax.insight.inspection.timing import Timing
from convjax.insight.inspection.windows import Window
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
    window: what a convolution or a pool sees at once; None of anything else.
    weights: the memory of its parameters in bytes, by dtype.
    frozen: how many of its parameters are not trained.
    """

    path: str
    kind: str
    output: str
    parameters: int = 0
    multiply_adds: int = 0
    bytes: int = 0
    field: ReceptiveField | None = None
    calls: int = 1
    layers: int = 1
    seconds: float | None = None
    roofline: float | None = None
    window: Window | None = None
    weights: Mapping[str, int] = {}
    frozen: int = 0


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
    net: Layer,
    spec: Any,
    *,
    deep: bool = True,
    name: str = "",
    timing: Timing | None = None,
    frozen: Collection[str] = (),
) -> Summary:
    """The rows of a network, in the order of their calls, and their total.

    spec: of a batch `[batch, ...]`, or a pytree of them.
    deep: a row for each layer without parts of its own; otherwise what lies deeper than in a part
        of a part, such as a block of a stage, stands in one row. Layers that give back their input
        have none, nor have parts that are never called.
    timing: what `timing.measure` has found for the same network.
    frozen: the paths of the parameters that are not trained.

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
    figures = _Figures(
        *(program.parts, tree.leaves(program.params), frozenset(frozen), cost.of_parts(program)),
        *(receptive.of_program(program), windows.of_parts(program), batch, timing),
    )
    rows = [_row(path, leaves, figures) for path in paths]
    total = Row(
        *("total", "", ""),
        multiply_adds=sum(figures.counts.values()) // batch,
        bytes=sum(row.bytes for row in rows),
        layers=len(leaves),
        seconds=None if timing is None else sum(timing.layers.values()),
        **_learned([*figures.params], figures),
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


class _Figures(NamedTuple):
    """What is known of a network, each by path: of its parts, of its parameters, of its layers."""

    parts: Mapping[str, Part]
    params: Mapping[str, Any]
    frozen: frozenset[str]
    counts: Mapping[str, int]
    fields: Mapping[str, ReceptiveField]
    windows: Mapping[str, Window]
    batch: int
    timing: Timing | None


def _row(path: str, leaves: list[str], known: _Figures) -> Row:
    part, inside = known.parts[path], [each for each in leaves if _lies_in(each, path)]
    counts = (count for each, count in known.counts.items() if _lies_in(each, path))
    seconds = ideal = None
    if known.timing is not None:
        found = [each for each in known.timing.layers if _lies_in(each, path)]
        seconds = sum(known.timing.layers[each] for each in found) if found else None
        ideal = sum(known.timing.shortest[each] for each in found)
    return Row(
        *(path, part.kind, show(part.output)),
        multiply_adds=sum(counts) // known.batch,
        bytes=sum(known.parts[each].bytes for each in inside),
        field=known.fields.get(path),
        calls=part.calls,
        layers=len(inside),
        seconds=seconds,
        roofline=ideal / seconds if seconds and ideal is not None else None,
        window=known.windows.get(path) if inside == [path] else None,
        **_learned([each for each in known.params if _lies_in(each, path)], known),
    )


def _learned(paths: list[str], known: _Figures) -> dict[str, Any]:
    """How many numbers these parameters have, in how many bytes, and how many are not trained."""
    weights: Counter[str] = Counter()
    for path in paths:
        leaf = known.params[path]
        weights[leaf.dtype.name] += leaf.size * leaf.dtype.itemsize
    return {
        "parameters": sum(known.params[path].size for path in paths),
        "weights": dict(weights),
        "frozen": sum(known.params[path].size for path in paths if path in known.frozen),
    }


def _lies_in(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}/")
