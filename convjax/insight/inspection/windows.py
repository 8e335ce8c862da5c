"""The window of each layer of a network, read from its program: how large it is, and how it moves.

program = traced(net, jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"))
str(of_parts(program)["stem/conv1"])                        # "7x7/2" for a ResNet-50
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.core import JaxprEqn

from convjax.insight.inspection.program import Program
from convjax.ops.geometry import Geometry


class Window(NamedTuple):
    """What a convolution or a pool sees at once, in pixels of its input; an entry a dimension.

    stride: from one place to the next; a transposed convolution moves so far in its output.
    dilation: from one pixel that is seen to the next.
    groups: equal slices of the channels, each with kernels of its own.

    >>> str(Window((3, 3), (2, 2), (1, 1), 32)), str(Window((1, 7), (1, 1), (2, 2)))
    ('3x3/2 g32', '1x7 d2')
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __str__(self) -> str:
        moves = f"/{per_axis(self.stride)}" if set(self.stride) != {1} else ""
        gaps = f" d{per_axis(self.dilation)}" if set(self.dilation) != {1} else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{'x'.join(map(str, self.size))}{moves}{gaps}{groups}"


def per_axis(values: Sequence[float]) -> str:
    """One number for all dimensions, or one for each.

    >>> per_axis((2, 2)), per_axis((3, 5))
    ('2', '3x5')
    """
    listed = [f"{value:g}" for value in values]
    return listed[0] if len(set(listed)) == 1 else "x".join(listed)


def of_parts(program: Program) -> dict[str, Window]:
    """The window of each layer that has one, by path; of several unlike ones it has none.

    >>> import jax
    >>> from convjax import conv, max_pool, serial
    >>> from convjax.insight.inspection.program import traced
    >>> net = serial(conv(4, 3, dilation=2), max_pool(2))
    >>> found = of_parts(traced(net, jax.ShapeDtypeStruct((1, 8, 8, 2), "float32")))
    >>> {path: str(window) for path, window in found.items()}
    {'conv1': '3x3 d2', 'max_pool1': '2x2/2'}
    """
    found: dict[str, set[Window]] = {}
    for equation in program.equations():
        # A mean over windows divides by how many pixels lie in each, which are no windows of ours.
        if not all(equation.constant) and (window := _of(equation.equation)) is not None:
            found.setdefault(equation.path, set()).add(window)
    return {path: windows.pop() for path, windows in found.items() if len(windows) == 1}


def _of(equation: JaxprEqn) -> Window | None:
    name, params = equation.primitive.name, equation.params
    geometry = params.get("geometry")
    if isinstance(geometry, Geometry):
        return Window(geometry.window, geometry.stride, geometry.dilation, geometry.groups)
    if name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval, params["dimension_numbers"].rhs_spec
        transposed = set(params["lhs_dilation"]) != {1}
        return Window(
            tuple(kernel.shape[axis] for axis in spec[2:]),  # type: ignore[attr-defined]
            params["lhs_dilation" if transposed else "window_strides"],
            params["rhs_dilation"],
            params["feature_group_count"],
        )
    if name.startswith("reduce_window"):
        of = (params[key] for key in ("window_dimensions", "window_strides", "window_dilation"))
        size, stride, dilation = ((*map(int, values),) for values in of)
        # Over batch or channels it is no window of an image.
        if size[0] == size[-1] == 1 and len(size) > 2:
            return Window(size[1:-1], stride[1:-1], dilation[1:-1])
    return None
