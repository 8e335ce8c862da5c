"""Smoothing and resizing as matrices: what each place of the result takes of a line of pixels.

    weights = smoothing(28, sigma=1.0)              # [28, 28], rows that sum to 1
    blurred = resampled(image, weights, weights)    # down the rows, then along the columns

The matrices are NumPy's, in double precision, and made while a program is traced: what runs are two
products of matrices, whatever the width of a filter.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def resampled(image: Array, down: np.ndarray, across: np.ndarray) -> Array:
    """An image `[height, width, channels]` times a matrix for each axis, in float32.

    down: `[new height, height]`. across: `[new width, width]`.
    """
    rows, cols = (jnp.asarray(each, jnp.float32) for each in (down, across))
    half = jnp.einsum("ih,hwc->iwc", rows, image, precision=lax.Precision.HIGHEST)
    return jnp.einsum("jw,iwc->ijc", cols, half, precision=lax.Precision.HIGHEST)


def cut(image: Array) -> Array:
    """Numbers in [0, 1] as whole levels 0 to 255, by cutting off the rest, as `numpy.uint8` does.

    What lies outside goes to the nearest end. In float32 a whole level may come out a little below
    itself: what lacks less than a thousandth counts as whole.
    """
    return jnp.floor(image.clip(0, 1) * 255 + 2.0**-10)


def smoothing(
    size: int, sigma: float, *, truncate: float = 4.0, mirrored: bool = False
) -> np.ndarray:
    """A Gaussian of `sigma` pixels, cut off at `truncate` of them: `scipy.ndimage.gaussian_filter`.

    mirrored: whether the line goes on as its mirror image, (b a | a b c | c b); else by its ends,
        (a a | a b c | c c). A sigma of 0 changes nothing.
    """
    if sigma <= 0:
        return np.eye(size)
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = np.arange(size)[:, None] + offsets[None]
    if mirrored:
        places %= 2 * size
        places = np.where(places < size, places, 2 * size - 1 - places)
    else:
        places = places.clip(0, size - 1)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), weights / weights.sum())
    return matrix


def zooming(size: int, factor: float) -> np.ndarray:
    """Zooms in on the middle by `factor`, 1 or more, and keeps the size: linear interpolation.

    As `scipy.ndimage.zoom` of order 1 does with the middle `ceil(size / factor)` pixels, whose ends
    stay the ends, and of which the middle `size` places are taken.
    """
    crop = math.ceil(size / factor)
    first = (size - crop) // 2
    into = round(crop * factor)
    trim = (into - size) // 2
    places = (trim + np.arange(size)) * ((crop - 1) / max(into - 1, 1))
    low = np.minimum(places.astype(int), crop - 1)
    high = np.minimum(low + 1, crop - 1)
    matrix = np.zeros((size, size))
    row = np.arange(size)
    np.add.at(matrix, (row, first + low), 1 - (places - low))
    np.add.at(matrix, (row, first + high), places - low)
    return matrix


def boxes(size: int, into: int) -> np.ndarray:
    """The mean of the pixels whose centres lie in each of `into` equal boxes: `PIL.Image.BOX`."""
    scale = size / into
    support = max(scale, 1.0) / 2
    centre = (np.arange(into) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    last = np.minimum((centre + support + 0.5).astype(int), size)
    pixel = np.arange(size)[None]
    inside = (pixel >= first[:, None]) & (pixel < last[:, None])
    return inside / inside.sum(1, keepdims=True)
