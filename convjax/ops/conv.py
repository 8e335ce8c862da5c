"""Convolution over one, two or three spatial dimensions; the rank is that of the array.

    y = conv(x, kernel, bias, stride=2)        # x [batch, *spatial, in], kernel [*window, in, out]

As in every deep learning library the kernel is not flipped: this is cross-correlation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from convjax.ops.arguments import Sizes, describe, each_dimension, floating, spatial
from convjax.ops.correlation import correlate, paint
from convjax.ops.geometry import Geometry
from convjax.ops.padding import Padding, explicit, extents, padded, same
from convjax.ops.sums import spread_along


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """Slides a window over `x` and takes its inner products with `kernel`, as `torch.conv2d` does.

    x: [batch, *spatial, channels], with 1, 2 or 3 spatial dimensions; its dtype is that of the
        computation and of the result, to which kernel and bias are cast.
    kernel: [*window, channels / groups, features]; output feature f of group g sees the g-th of
        the `groups` equal slices of the channels, and features are numbered group by group.
    bias: [features].
    padding: see `convjax.ops.padding`; "SAME" makes the output `ceil(size / stride)`.
    dilation: the step between the pixels that a window sees.

    Returns [batch, *spatial, features]. Raises ValueError where shapes or sizes do not fit.

    >>> conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 16)), stride=2).shape
    (1, 4, 4, 16)
    """
    x, kernel = floating("conv", x), jnp.asarray(kernel)
    window = _window("conv", x, kernel, groups)
    rank = len(window)
    stride = each_dimension("conv", "stride", stride, rank)
    dilation = each_dimension("conv", "dilation", dilation, rank)
    x, pads = padded("conv", x, window, stride, padding, dilation)
    geometry = Geometry(x.shape[1:-1], window, stride, dilation, pads, groups)
    return _add_bias("conv", correlate(x, kernel.astype(x.dtype), geometry), bias)


def depthwise_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
) -> Array:
    """Convolves every channel of `x` by itself, with kernels of its own: groups = channels.

    kernel: [*window, 1, channels * multiplier]; channel c makes the features
        `c * multiplier ... (c + 1) * multiplier - 1`, as in PyTorch.
    Everything else is as in `conv`.

    >>> depthwise_conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 1, 6))).shape
    (1, 8, 8, 6)
    """
    x = floating("depthwise_conv", x)
    spatial("depthwise_conv", x)
    return conv(
        x, kernel, bias, stride=stride, padding=padding, dilation=dilation, groups=x.shape[-1]
    )


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: int = 1,
    output_padding: Sizes = 0,
) -> Array:
    """Lets every pixel of `x` paint the window, times its value, onto a larger output.

    It is the gradient of `conv` with respect to its input, as `torch.conv_transpose2d` and ONNX
    define it, but for the layout of the kernel.

    x: [batch, *spatial, channels].
    kernel: [*window, channels / groups, features], input before output as in `conv`, in the
        orientation in which it is painted. A PyTorch weight [channels, features, *window] of
        one group is transposed to it and not flipped.
    padding: takes pixels away from the full output `(size - 1) * stride + extent of the window`.
        Explicit padding is PyTorch's; "VALID" takes none away; "SAME" and "SAME_LOWER" make the
        output `size * stride` (ONNX's SAME_UPPER and SAME_LOWER).
    output_padding: pixels more at the end; not with "SAME", which fixes the size already.

    Returns [batch, *spatial, features], with spatial sizes
    `(size - 1) * stride + dilation * (window - 1) + 1 - low - high + output_padding`.
    Raises ValueError where shapes or sizes do not fit.

    >>> conv_transpose(jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 8, 5)), stride=2).shape
    (1, 8, 8, 5)
    """
    x, kernel = floating("conv_transpose", x), jnp.asarray(kernel)
    window = _window("conv_transpose", x, kernel, groups)
    rank = len(window)
    stride = each_dimension("conv_transpose", "stride", stride, rank)
    dilation = each_dimension("conv_transpose", "dilation", dilation, rank)
    more = each_dimension("conv_transpose", "output_padding", output_padding, rank, least=0)
    spans = extents(window, dilation)
    if padding == "SAME" or padding == "SAME_LOWER":
        if any(more):
            raise ValueError(
                f"conv_transpose: padding={padding!r} makes the output size * stride, so "
                f"output_padding={output_padding!r} has no place: leave it, or pad explicitly"
            )
        outputs = [size * step for size, step in zip(x.shape[1:-1], stride, strict=True)]
        less = same(outputs, window, stride, dilation, lower=padding == "SAME_LOWER")
        more = tuple(max(step - span, 0) for step, span in zip(stride, spans, strict=True))
    elif isinstance(padding, str) and padding != "VALID":
        raise ValueError(
            f"conv_transpose: no transposed form of padding={padding!r}: "
            'take "SAME", "SAME_LOWER", "VALID" or explicit padding'
        )
    else:
        less = explicit("conv_transpose", 0 if isinstance(padding, str) else padding, rank)
    sizes = tuple(
        (n - 1) * step + span - sum(cut) + extra
        for n, step, span, cut, extra in zip(x.shape[1:-1], stride, spans, less, more, strict=True)
    )
    if min(sizes) < 1:
        raise ValueError(
            f"conv_transpose: padding={padding!r} takes away more than {describe(x)} makes with a "
            f"window of {window} and stride {stride}: take less"
        )
    # Pixels that are added at the end are not seen by the conv whose transpose this is.
    pads = tuple((low, high - extra) for (low, high), extra in zip(less, more, strict=True))
    geometry = Geometry(sizes, window, stride, dilation, pads, groups)
    # A conv takes this output to this input, and its kernel has the channels the other way round.
    split = kernel.astype(x.dtype).reshape(*kernel.shape[:-1], groups, kernel.shape[-1] // groups)
    kernel = jnp.moveaxis(split, (-3, -2, -1), (-1, -2, -3))
    kernel = kernel.reshape(*window, kernel.shape[-3], x.shape[-1])
    return _add_bias("conv_transpose", paint(x, kernel, geometry), bias)


def _window(op: str, x: Array, kernel: Array, groups: int) -> tuple[int, ...]:
    """The window of a kernel that fits `x`; a ValueError that names both where it does not."""
    rank, channels = len(spatial(op, x)), x.shape[-1]
    if kernel.ndim != x.ndim:
        raise ValueError(
            f"{op}: x {describe(x)} has {rank} spatial dimension(s), but kernel "
            f"{describe(kernel)} has {kernel.ndim - 2}: x is [batch, *spatial, channels] and "
            "kernel [*window, channels / groups, features]; give a single example as x[None]"
        )
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{op}: the {channels} channels of x {describe(x)} do not divide into groups={groups}: "
            "take a divisor of the channels"
        )
    if kernel.shape[-2] * groups != channels:
        raise ValueError(
            f"{op}: kernel {describe(kernel)} takes {kernel.shape[-2]} channels a group and "
            f"groups={groups}, but x {describe(x)} has {channels}: "
            f"kernel needs the shape [*window, {channels // groups}, features]"
        )
    if kernel.shape[-1] % groups:
        raise ValueError(
            f"{op}: the {kernel.shape[-1]} features of kernel {describe(kernel)} do not divide "
            f"into groups={groups}: take a multiple of the groups"
        )
    return kernel.shape[:-2]


def _add_bias(op: str, y: Array, bias: ArrayLike | None) -> Array:
    return y if bias is None else y + spread_along(op, "bias", bias, y)
