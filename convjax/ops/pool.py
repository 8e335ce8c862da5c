"""Pooling: one number for each window, bin or whole image, of every channel by itself.

y = max_pool(x, 2)                         # windows of 2, stride 2
y = avg_pool(x, 3, stride=1, padding="SAME")
y = adaptive_avg_pool(x, (7, 7))           # as many bins, whatever the size
y = global_avg_pool(x)                     # [batch, channels]
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from convjax.ops.arguments import Sizes, describe, each_dimension, floating, spatial, wide_dtype
from convjax.ops.geometry import Geometry
from convjax.ops.maximum import lowest, window_max
from convjax.ops.padding import Padding, Pairs, extents, padded
from convjax.ops.sums import channel_sum


def max_pool(
    x: ArrayLike,
    window: Sizes,
    *,
    stride: Sizes | None = None,
    padding: Padding = "VALID",
    dilation: Sizes = 1,
    ceil: bool = False,
) -> Array:
    """Takes the largest number of each window; padding never wins.

    x: [batch, *spatial, channels], floating or integer.
    window, stride: sizes in pixels; the stride is the window where it is not given.
    padding: see `convjax.ops.padding`.
    dilation: the step between the pixels that a window sees.
    ceil: count a last window that begins within the image and ends beyond it, as PyTorch's and
        ONNX's `ceil_mode` do.

    Among equal numbers the gradient goes to the first in row-major order, as in PyTorch. With
    dilation the pixels that the windows see are laid out in memory, one dimension at a time.

    Returns [batch, *spatial, channels]. Raises ValueError where sizes do not fit, or a window lies
    in the padding altogether.

    >>> max_pool(jnp.arange(4.0).reshape(1, 4, 1), 2).ravel().tolist()
    [1.0, 3.0]
    """
    x = jnp.asarray(x)
    x, windows = _windows("max_pool", x, window, stride, padding, dilation, ceil)
    if any(step > 1 for step in windows.dilation):
        # XLA has no gradient for a maximum over dilated windows.
        config = ((0, 0, 0), *((*pair, 0) for pair in windows.pads), (0, 0, 0))
        x = lax.pad(x, lowest(x.dtype), config)
        return _max_over(x, windows.pixels)
    return window_max(x, Geometry(x.shape[1:-1], *windows[:4]))


def avg_pool(
    x: ArrayLike,
    window: Sizes,
    *,
    stride: Sizes | None = None,
    padding: Padding = "VALID",
    dilation: Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> Array:
    """Takes the mean of each window, summed in float32.

    count_padding: divide by the whole window, so that padded zeros count, which is PyTorch's
        default (`count_include_pad=True`); otherwise by the pixels that the window sees, which is
        TensorFlow's rule and ONNX's default. What `ceil` adds beyond the padding never counts.
    Everything else is as in `max_pool`; `x` is floating.

    >>> avg_pool(jnp.arange(4.0).reshape(1, 4, 1), 2).ravel().tolist()
    [0.5, 2.5]
    """
    x = floating("avg_pool", x)
    dtype = x.dtype
    x, windows = _windows("avg_pool", x, window, stride, padding, dilation, ceil)
    total = _reduce(x.astype(wide_dtype(x)), 0.0, lax.add, windows)
    counts = windows.counts_padded if count_padding else windows.counts
    # The number of pixels in a window is a product over the dimensions, known before tracing.
    grid = functools.reduce(np.multiply.outer, counts).astype(total.dtype)
    return (total / grid[None, ..., None]).astype(dtype)


def lp_pool(
    x: ArrayLike,
    window: Sizes,
    *,
    p: float = 2,
    stride: Sizes | None = None,
    padding: Padding = "VALID",
    dilation: Sizes = 1,
    ceil: bool = False,
) -> Array:
    """Takes the p-norm of each window, `sum(|x|^p)^(1/p)`, summed in float32.

    It is ONNX's LpPool; PyTorch's `lp_pool2d` leaves out the absolute value, which only differs
    for odd p. The gradient of a window of zeros is zero. Everything else is as in `avg_pool`.

    >>> lp_pool(jnp.array([3.0, 4.0]).reshape(1, 2, 1), 2).item()
    5.0
    """
    if not p >= 1:
        raise ValueError(f"lp_pool: p={p} is not the power of a norm: take a number of at least 1")
    x = floating("lp_pool", x)
    dtype = x.dtype
    x, windows = _windows("lp_pool", x, window, stride, padding, dilation, ceil)
    total = _reduce(jnp.abs(x.astype(wide_dtype(x))) ** p, 0.0, lax.add, windows)
    # The slope of a root is infinite at zero; times the zero slope of the power that makes a NaN.
    some = total > 0
    root = jnp.where(some, total, 1) ** (1 / p)
    return jnp.where(some, root, 0).astype(dtype)


def global_avg_pool(x: ArrayLike) -> Array:
    """Takes the mean of every channel over all pixels, in float32: [batch, channels].

    >>> global_avg_pool(jnp.ones((2, 5, 5, 3))).shape
    (2, 3)
    """
    x = floating("global_avg_pool", x)
    pixels = math.prod(spatial("global_avg_pool", x))
    return (channel_sum(x.astype(wide_dtype(x)), keep=1) / pixels).astype(x.dtype)


def global_max_pool(x: ArrayLike) -> Array:
    """Takes the largest number of every channel over all pixels: [batch, channels].

    Pixels that are equally large share the gradient, as in `torch.amax`.
    """
    x = jnp.asarray(x)
    return x.max(tuple(range(1, 1 + len(spatial("global_max_pool", x)))))


def adaptive_avg_pool(x: ArrayLike, size: Sizes) -> Array:
    """Takes the means, in float32, of `size` bins that cover the image, as PyTorch does.

    Bin i of n over `length` pixels reaches from `floor(i * length / n)` to
    `ceil((i + 1) * length / n)`, so that bins overlap where n does not divide the length.

    Returns [batch, *size, channels].

    >>> adaptive_avg_pool(jnp.arange(5.0).reshape(1, 5, 1), 2).ravel().tolist()
    [1.0, 3.0]
    """
    x = floating("adaptive_avg_pool", x)
    sizes = spatial("adaptive_avg_pool", x)
    y = x.astype(wide_dtype(x))
    for axis, bins in enumerate(each_dimension("adaptive_avg_pool", "size", size, len(sizes)), 1):
        starts, ends = _bins(x.shape[axis], bins)
        pixels = np.arange(x.shape[axis])
        inside = (starts[:, None] <= pixels) & (pixels < ends[:, None])
        means = (inside / inside.sum(1, keepdims=True)).astype(y.dtype)
        y = jnp.tensordot(means, y, (1, axis), precision=lax.Precision.HIGHEST)
        y = jnp.moveaxis(y, 0, axis)
    return y.astype(x.dtype)


def adaptive_max_pool(x: ArrayLike, size: Sizes) -> Array:
    """Takes the largest number of each of `size` bins, those of `adaptive_avg_pool`.

    Among equal numbers the gradient goes to the first in row-major order, as in PyTorch.

    Returns [batch, *size, channels].

    >>> adaptive_max_pool(jnp.arange(5.0).reshape(1, 5, 1), 2).ravel().tolist()
    [2.0, 4.0]
    """
    x = jnp.asarray(x)
    sizes = spatial("adaptive_max_pool", x)
    pixels = []
    for length, bins in zip(
        sizes, each_dimension("adaptive_max_pool", "size", size, len(sizes)), strict=True
    ):
        starts, ends = _bins(length, bins)
        offsets = np.arange((ends - starts).max())
        # A bin that is shorter than the longest sees its last pixel again.
        pixels.append(np.minimum(starts[:, None] + offsets, ends[:, None] - 1))
    return _max_over(x, pixels)


def blur_pool(x: ArrayLike, *, stride: Sizes = 2, size: int = 3) -> Array:
    """Blurs with a binomial filter before it takes every stride-th pixel, against aliasing.

    Zhang, Making Convolutional Networks Shift-Invariant Again, 2019 (arXiv 1904.11486).

    x: [batch, *spatial, channels]; the border is reflected.
    size: taps of the filter in each dimension: 3 is [1, 2, 1] / 4, 5 is [1, 4, 6, 4, 1] / 16.

    Returns [batch, *ceil(spatial / stride), channels].

    >>> blur_pool(jnp.arange(4.0).reshape(1, 4, 1)).ravel().tolist()
    [0.5, 2.0]
    """
    if size < 1:
        raise ValueError(f"blur_pool: size must be at least 1, got {size}")
    x = floating("blur_pool", x)
    rank = len(spatial("blur_pool", x))
    border = ((size - 1) // 2, size // 2)
    y = jnp.pad(x.astype(wide_dtype(x)), ((0, 0), *(border,) * rank, (0, 0)), mode="reflect")
    taps = [math.comb(size - 1, tap) / 2 ** (size - 1) for tap in range(size)]
    for axis, step in enumerate(each_dimension("blur_pool", "stride", stride, rank), 1):
        length = x.shape[axis]
        y = functools.reduce(
            operator.add,
            [
                weight * lax.slice_in_dim(y, tap, tap + length, step, axis)
                for tap, weight in enumerate(taps)
            ],
        )
    return y.astype(x.dtype)


class _Windows(NamedTuple):
    """The windows of a pool, each field with one entry a spatial dimension."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: Pairs
    pixels: list[np.ndarray]  # [windows, seen]: the places in the padded image that each sees
    counts: list[np.ndarray]  # [windows]: how many of those are in the image
    counts_padded: list[np.ndarray]  # [windows]: the same with what `padding` added


def _windows(
    op: str,
    x: Array,
    window: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
) -> tuple[Array, _Windows]:
    """Checks the arguments of a pool, and lays its windows out over the image."""
    rank = len(spatial(op, x))
    sizes = each_dimension(op, "window", window, rank)
    strides = sizes if stride is None else each_dimension(op, "stride", stride, rank)
    dilations = each_dimension(op, "dilation", dilation, rank)
    x, pairs = padded(op, x, sizes, strides, padding, dilations)
    pads, places, counts, counts_padded = [], [], [], []
    for length, size, step, gap, span, (low, high) in zip(
        x.shape[1:-1], sizes, strides, dilations, extents(sizes, dilations), pairs, strict=True
    ):
        room = low + length + high - span
        number = room // step + 1
        if ceil and room % step and number * step < low + length:
            number += 1
        pixels = np.arange(number)[:, None] * step + np.arange(size) * gap
        seen = ((pixels >= low) & (pixels < low + length)).sum(1)
        if not seen.all():
            raise ValueError(
                f"{op}: a window of {sizes} with dilation {dilations} over {describe(x)} lies "
                f"in the padding {pairs} altogether: pad less"
            )
        pads.append((low, max(high, int(pixels[-1, -1]) + 1 - low - length)))
        places.append(pixels)
        counts.append(seen)
        counts_padded.append((pixels < low + length + high).sum(1))
    return x, _Windows(sizes, strides, dilations, tuple(pads), places, counts, counts_padded)


def _reduce(x: Array, initial, reducer, windows: _Windows) -> Array:
    return lax.reduce_window(
        x,
        np.asarray(initial, x.dtype),
        reducer,
        window_dimensions=(1, *windows.size, 1),
        window_strides=(1, *windows.stride, 1),
        padding=((0, 0), *windows.pads, (0, 0)),
        window_dilation=(1, *windows.dilation, 1),
    )


def _max_over(x: Array, pixels: Sequence[np.ndarray]) -> Array:
    """The maxima over the rows of `pixels`, which hold places [number, seen] in each dimension.

    The last dimension goes first, so that the first in row-major order wins among equals.
    """
    for axis in range(len(pixels), 0, -1):
        seen = jnp.take(x, pixels[axis - 1], axis=axis, mode="clip")
        first = jnp.expand_dims(jnp.argmax(seen, axis + 1), axis + 1)
        x = jnp.take_along_axis(seen, first, axis + 1, mode="clip").squeeze(axis + 1)
    return x


def _bins(length: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Where PyTorch's adaptive bins begin and end, by integer arithmetic."""
    index = np.arange(bins)
    return index * length // bins, -(-(index + 1) * length // bins)
