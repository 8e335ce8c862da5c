"""Pooling and changes of shape: plain functions of an image, with their options chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jax import Array

from convjax import ops
from convjax.ops.arguments import Sizes
from convjax.ops.padding import Padding


def max_pool(
    window: Sizes, *, stride: Sizes | None = None, padding: Padding = "VALID"
) -> Callable[[Array], Array]:
    """Keeps the largest of each window; the stride is the window unless given."""
    return partial(ops.max_pool, window=window, stride=stride, padding=padding)


def avg_pool(
    window: Sizes,
    *,
    stride: Sizes | None = None,
    padding: Padding = "VALID",
    count_padding: bool = False,
) -> Callable[[Array], Array]:
    """Keeps the mean of each window; the stride is the window unless given."""
    return partial(
        ops.avg_pool, window=window, stride=stride, padding=padding, count_padding=count_padding
    )


def adaptive_avg_pool(size: Sizes) -> Callable[[Array], Array]:
    """Means over as many windows as make an output of that size (PyTorch's bins)."""
    return partial(ops.adaptive_avg_pool, size=size)


def adaptive_max_pool(size: Sizes) -> Callable[[Array], Array]:
    """Maxima over as many windows as make an output of that size (PyTorch's bins)."""
    return partial(ops.adaptive_max_pool, size=size)


def blur_pool(*, stride: int = 2, size: int = 3) -> Callable[[Array], Array]:
    """Blurs, then keeps every `stride`-th place: downsampling without aliasing (Zhang 2019)."""
    return partial(ops.blur_pool, stride=stride, size=size)


def resize(size: Sizes, *, method: str = "linear") -> Callable[[Array], Array]:
    """Resizes to a size in pixels, with half-pixel centres: method linear, nearest or cubic."""
    return partial(ops.resize, size=size, method=method)


def pixel_shuffle(factor: int) -> Callable[[Array], Array]:
    """Turns channels into pixels: `factor` times as high and wide (Shi et al. 2016)."""
    return partial(ops.pixel_shuffle, factor=factor)


def pixel_unshuffle(factor: int) -> Callable[[Array], Array]:
    """Turns pixels into channels, the inverse of `pixel_shuffle`."""
    return partial(ops.pixel_unshuffle, factor=factor)
