"""Ops that move or resample pixels: flatten, resize, upsample, pixel shuffle."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from convjax.ops.arguments import Sizes, describe, each_dimension, floating, spatial, wide_dtype


def flatten(x: ArrayLike) -> Array:
    """Makes one axis of all but the batch, channels fastest: [batch, numbers].

    >>> flatten(jnp.ones((2, 4, 4, 3))).shape
    (2, 48)
    """
    x = jnp.asarray(x)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def resize(x: ArrayLike, size: Sizes, *, method: str = "linear", antialias: bool = False) -> Array:
    """Resamples the image to `size` pixels, with pixel centres at half-integers.

    x: [batch, *spatial, channels]; floating, but for "nearest", which takes any dtype.
    method: "linear" and "cubic" equal PyTorch's `interpolate(align_corners=False)`: a cubic has
        the coefficient -0.75 that PyTorch and ONNX take, and -0.5 with antialias, as in PyTorch.
        "nearest" takes the pixel under the centre: PyTorch's "nearest-exact" (its "nearest" is
        kept for old networks only). Weights and sums are in float32.
    antialias: widen the filter when the image gets smaller, so that all pixels count.

    Returns [batch, *size, channels].

    >>> resize(jnp.array([0.0, 4.0]).reshape(1, 2, 1), 4).ravel().tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    x = jnp.asarray(x) if method == "nearest" else floating("resize", x)
    rank = len(spatial("resize", x))
    size = each_dimension("resize", "size", size, rank)
    if method == "nearest":
        if antialias:
            raise ValueError('resize: method="nearest" has no filter to widen: antialias=False')
        for axis, pixels in enumerate(size, 1):
            # The pixel that (i + 1/2) * old / new lies in, by exact integer arithmetic.
            nearest = (2 * np.arange(pixels) + 1) * x.shape[axis] // (2 * pixels)
            x = jnp.take(x, nearest, axis=axis, mode="clip")
        return x
    if method not in ("linear", "cubic"):
        raise ValueError(f'resize: unknown method {method!r}: take "nearest", "linear" or "cubic"')
    return jax.image.resize(
        x.astype(wide_dtype(x)),
        (x.shape[0], *size, x.shape[-1]),
        "linear" if method == "linear" else "cubic-pytorch",
        antialias=antialias,
    ).astype(x.dtype)


def upsample(x: ArrayLike, factor: Sizes = 2, *, method: str = "nearest") -> Array:
    """Makes the image `factor` times as large, by `resize`.

    >>> upsample(jnp.array([1.0, 2.0]).reshape(1, 2, 1)).ravel().tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    x = jnp.asarray(x)
    sizes = spatial("upsample", x)
    factors = each_dimension("upsample", "factor", factor, len(sizes))
    return resize(x, [n * times for n, times in zip(sizes, factors, strict=True)], method=method)


def pixel_shuffle(x: ArrayLike, factor: int) -> Array:
    """Makes channels into pixels: the image grows `factor` times in each spatial dimension.

    Shi et al., Real-Time Single Image Super-Resolution, 2016 (arXiv 1609.05158), in the channel
    order of PyTorch (ONNX's DepthToSpace in CRD mode): channel `c * factor^2 + i * factor + j`
    becomes pixel (i, j) of channel c.

    x: [batch, *spatial, channels * factor^rank]. Raises ValueError where the channels do not
    divide so.

    >>> pixel_shuffle(jnp.arange(4.0).reshape(1, 1, 1, 4), 2)[0, :, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    x = jnp.asarray(x)
    sizes = spatial("pixel_shuffle", x)
    rank = len(sizes)
    if factor < 1 or x.shape[-1] % factor**rank:
        raise ValueError(
            f"pixel_shuffle: the channels of x {describe(x)} do not divide by factor^{rank} with "
            f"factor={factor}: give channels * {factor**rank}"
        )
    channels = x.shape[-1] // factor**rank
    split = x.reshape(x.shape[0], *sizes, channels, *(factor,) * rank)
    order = [axis for i in range(rank) for axis in (1 + i, 2 + rank + i)]
    return split.transpose(0, *order, 1 + rank).reshape(
        x.shape[0], *(n * factor for n in sizes), channels
    )


def pixel_unshuffle(x: ArrayLike, factor: int) -> Array:
    """Undoes `pixel_shuffle`: pixels become channels, and the image shrinks `factor` times.

    x: [batch, *spatial, channels]. Raises ValueError where the factor does not divide the sizes.

    Returns [batch, *(spatial / factor), channels * factor^rank].

    >>> pixel_unshuffle(jnp.ones((1, 4, 6, 3)), 2).shape
    (1, 2, 3, 12)
    """
    x = jnp.asarray(x)
    sizes = spatial("pixel_unshuffle", x)
    rank = len(sizes)
    if factor < 1 or any(n % factor for n in sizes):
        raise ValueError(
            f"pixel_unshuffle: the spatial sizes of x {describe(x)} do not divide by "
            f"factor={factor}: crop or pad x first"
        )
    split = x.reshape(x.shape[0], *(n for size in sizes for n in (size // factor, factor)), -1)
    outer = [1 + 2 * i for i in range(rank)]
    inner = [2 + 2 * i for i in range(rank)]
    return split.transpose(0, *outer, 1 + 2 * rank, *inner).reshape(
        x.shape[0], *(n // factor for n in sizes), x.shape[-1] * factor**rank
    )
