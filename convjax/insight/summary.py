"""A network as a table: each layer with its output's shape and its parameters.

print(summary.table(net, jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from convjax import tree
from convjax.combine import serial
from convjax.layer import Context, Layer, show
from convjax.surgery import capture, walk


class Row(NamedTuple):
    """One layer: where it is, what it is, what it puts out and how many numbers it learns."""

    path: str
    kind: str
    output: str
    parameters: int


def rows(net: Layer, spec: Any) -> list[Row]:
    """One row for each part without parts of its own, in the order of `walk`; nothing is computed.

    What stands in a `shaped` layer counts as one row. A part that is never called has no row.
    """
    if not net.parts:  # It is the only row itself.
        net = serial(net)
    paths = {path: part for path, part in walk(net) if not part.parts}
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec)
    seeing = capture(net, list(paths))

    def run(params: Any, state: Any, x: Any) -> Any:
        return seeing.apply(params, state, x, Context())[0]

    _, seen = jax.eval_shape(run, params, state, spec)
    sizes = tree.leaves(params)
    return [
        Row(
            path,
            part.kind,
            show(seen[path]),
            tree.count([leaf for name, leaf in sizes.items() if name.startswith(f"{path}/")]),
        )
        for path, part in paths.items()
        if path in seen
    ]


def table(net: Layer, spec: Any) -> str:
    """The rows as text, with the input above and the total below.

    >>> from convjax import conv, flatten, dense, relu, serial
    >>> print(table(serial(conv(4, 3), relu, flatten, dense(10)), jax.numpy.zeros((1, 8, 8, 1))))
    layer     kind     output             parameters
    input              float32[1,8,8,1]
    conv1     conv     float32[1,8,8,4]           40
    relu1     relu     float32[1,8,8,4]
    flatten1  flatten  float32[1,256]
    dense1    dense    float32[1,10]           2,570
    total                                      2,610
    """
    found = rows(net, spec)
    cells = [("layer", "kind", "output", "parameters"), ("input", "", show(spec), "")]
    cells += [(*row[:3], f"{row.parameters:,}" if row.parameters else "") for row in found]
    cells.append(("total", "", "", f"{sum(row.parameters for row in found):,}"))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column == 3 else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in cells
    )
