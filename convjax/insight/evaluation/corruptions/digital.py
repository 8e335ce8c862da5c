"""What cameras and programs do: contrast, saturation, lenses that warp, pixels made large."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates

from convjax.insight.evaluation.corruptions.sampling import boxes, resampled, smoothing


def contrast(key: Array, image: Array, factor: float) -> Array:
    """Moves the levels towards the mean of their channel, to `factor` of their distance."""
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * factor + mean


def saturate(key: Array, image: Array, factor: float, more: float) -> Array:
    """Makes `factor` times the saturation of HSV, and `more`; hue and value stay.

    A grey pixel has the hue of red. For images of 3 channels.
    """
    value, least = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
    # How far each channel is from the value, as a share of how far the least one is.
    red = jnp.array([0.0, 1.0, 1.0], image.dtype)[None, None]
    away = jnp.where(
        value > least, (value - image) / jnp.where(value > least, value - least, 1), red
    )
    saturation = (value - least) / jnp.where(value > 0, value, 1)
    return value * (1 - (saturation * factor + more).clip(0, 1) * away)


def elastic_transform(
    key: Array, image: Array, strength: float, sigma: float, turn: float
) -> Array:
    """A random affine map, and then places moved by random numbers that are smoothed.

    strength: of these, as a share of the shorter side; sigma: of the smoothing, likewise, cut off
    at 3 of them; turn: how far each of three points that fix the affine map may go, likewise.
    Interpolation is linear, and the image is mirrored at its edges.
    """
    height, width, _ = image.shape
    side = min(height, width)
    turns, downs, rights = jax.random.split(key, 3)
    middle = jnp.array([width // 2, height // 2], jnp.float32)[None]
    corners = jnp.array([[1, 1], [1, -1], [-1, -1]], jnp.float32) * (side // 3) + middle
    far = turn * side
    moved = corners + jax.random.uniform(turns, (3, 2), minval=-far, maxval=far)
    # The affine map backwards: from where the corners come to lie to where they lay.
    back = jnp.linalg.solve(jnp.concatenate([moved, jnp.ones((3, 1))], 1), corners)
    row, col = jnp.meshgrid(
        *(jnp.arange(size, dtype=jnp.float32) for size in (height, width)), indexing="ij"
    )
    right, down = (back[0, i] * col + back[1, i] * row + back[2, i] for i in (0, 1))
    image = _taken(image, down, right, "mirror")

    smooth = [smoothing(size, sigma * side, truncate=3, mirrored=True) for size in (height, width)]

    def field(key: Array) -> Array:
        draws = jax.random.uniform(key, (height, width, 1), minval=-1, maxval=1)
        return strength * side * resampled(draws, *smooth)[..., 0]

    return _taken(image, row + field(downs), col + field(rights), "reflect")


def pixelate(key: Array, image: Array, factor: float) -> Array:
    """Shrinks the image to `factor` of its size and back, by `PIL.Image.resize` with `BOX`."""
    height, width, _ = image.shape
    small = max(1, int(height * factor)), max(1, int(width * factor))
    for (rows, cols), (down, across) in (((height, width), small), (small, (height, width))):
        # Along the columns first, and whole levels after each, as Pillow does.
        image = _levels(resampled(image, np.eye(rows), boxes(cols, across)))
        image = _levels(resampled(image, boxes(rows, down), np.eye(across)))
    return image


def _levels(image: Array) -> Array:
    return jnp.floor(image * 255 + 0.5) / 255


def _taken(image: Array, rows: Array, cols: Array, mode: str) -> Array:
    """The image at places between its pixels, by linear interpolation."""

    def channel(plane: Array) -> Array:
        return map_coordinates(plane, [rows, cols], order=1, mode=mode)

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)
