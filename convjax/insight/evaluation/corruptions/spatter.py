"""Spatter: drops of water or of mud on the lens.

Water shines by how far each of its pixels lies from the outline of its drop. For that the published
code goes through OpenCV: Canny's edges, the chamfer distance to them, a flat histogram. Here these
are written anew, to its very levels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax.insight.evaluation.corruptions.sampling import cut, resampled, smoothing

WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
MUD = (63 / 255, 42 / 255, 20 / 255)  # brown
LOW, HIGH = 50, 150  # of Canny's edges
FAR = 20  # pixels from an edge; what is farther counts as so far
_ONE = 1 << 16  # a pixel, in the fixed point that distances have
_STEPS = {(0, 1): 1.0, (1, 1): 1.4, (1, 2): 2.1969}  # Borgefors 1986, and OpenCV


def spatter(
    key: Array,
    image: Array,
    mean: float,
    scale: float,
    sigma: float,
    least: float,
    amount: float,
    mud: int,
) -> Array:
    """Drops where smoothed random numbers are large: of water, which adds light, or of mud.

    mean, scale: of the normal numbers. sigma: of the Gaussian that smooths them.
    least: smaller numbers are no drops. mud: 1, or 0 for water.
    amount: of water, how bright its brightest pixel is; of mud, how soft its edges are, in pixels.
    """
    height, width, channels = image.shape
    layer = mean + scale * jax.random.normal(key, (height, width, 1))
    layer = resampled(layer, smoothing(height, sigma), smoothing(width, sigma))[..., 0]
    if not mud:
        shine = amount * shining(cut(jnp.where(layer < least, 0, layer)).astype(jnp.int32))
        return image + shine[..., None] * _coloured(WATER, channels)
    drops = (layer > least).astype(jnp.float32)[..., None]
    drops = resampled(drops, smoothing(height, amount), smoothing(width, amount))
    drops = jnp.where(drops < 0.8, 0, drops)
    return image * (1 - drops) + drops * _coloured(MUD, channels)


def shining(layer: Array) -> Array:
    """How bright each pixel of water is, from 0 to 1: the deeper and the farther in, the more.

    layer: int32 `[height, width]`, levels 0 to 255; 0 where there is no water.
    """
    distance = chamfer(canny(layer))
    distance = jnp.minimum(distance.astype(jnp.float32) / _ONE, FAR)
    relief = equalised(jnp.floor(_box(distance)).astype(jnp.int32))
    # Light that comes from the upper left.
    kernel = [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]
    relief = _window(relief, lambda down, right: kernel[down + 1][right + 1]).clip(0, 255)
    relief = jnp.round(_box(relief.astype(jnp.float32)))
    light = layer.astype(jnp.float32) * relief
    return light / jnp.maximum(light.max(), 1)


def canny(layer: Array, low: int = LOW, high: int = HIGH) -> Array:
    """Where the edges of an image are, bool `[height, width]`: `cv2.Canny` (Canny 1986).

    An edge is where the gradient by Sobel, |down| + |right|, is above `low` and largest across the
    edge, and where a chain of such pixels leads to one above `high`.

    layer: int32 `[height, width]`, levels 0 to 255.
    """
    padded = jnp.pad(layer, 1, mode="edge")
    height, width = layer.shape

    def at(down: int, right: int) -> Array:
        return lax.dynamic_slice(padded, (1 + down, 1 + right), (height, width))

    right = sum(w * (at(i, 1) - at(i, -1)) for i, w in zip((-1, 0, 1), (1, 2, 1)))
    down = sum(w * (at(1, i) - at(-1, i)) for i, w in zip((-1, 0, 1), (1, 2, 1)))
    right, down = jnp.asarray(right), jnp.asarray(down)
    size = jnp.abs(right) + jnp.abs(down)

    def beats(below: int, beside: int, *, ties: bool) -> Array:
        one, other = (_shifted(size, sign * below, sign * beside, 0) for sign in (-1, 1))
        return (size > one) & ((size >= other) if ties else (size > other))

    # Tangents of 22.5 and 67.5 degrees, in OpenCV's fixed point of 15 bits.
    tan22 = 13573
    steep, flat = jnp.abs(down) << 15, jnp.abs(right) * tan22
    falling = (right ^ down) >= 0
    diagonal = jnp.where(falling, beats(1, 1, ties=False), beats(1, -1, ties=False))
    across = jnp.where(steep > flat + (jnp.abs(right) << 16), beats(1, 0, ties=True), diagonal)
    across = jnp.where(steep < flat, beats(0, 1, ties=True), across)
    thin = across & (size > low)

    def spreads(state: tuple[Array, Array]) -> tuple[Array, Array]:
        edges, _ = state
        near = lax.reduce_window(edges, False, lax.bitwise_or, (3, 3), (1, 1), "SAME")
        return near & thin, (near & thin & ~edges).any()

    edges, _ = lax.while_loop(
        lambda state: state[1], spreads, (thin & (size > high), jnp.bool(True))
    )
    return edges


def chamfer(edges: Array, far: int = FAR) -> Array:
    """How far the nearest edge is, int32 in 1 / 65,536 of a pixel; more than `far` may be anything.

    Along rows, columns, diagonals and the moves of a knight, of 1, 1.4 and 2.1969 pixels:
    `cv2.distanceTransform` with a mask of 5 x 5 (Borgefors 1986).

    edges: bool `[height, width]`.
    """
    beyond = (far + 1) * _ONE
    moves = {
        (i, j): int(length * _ONE + 0.5)
        for (small, large), length in _STEPS.items()
        for a in (-small, small)
        for b in (-large, large)
        for i, j in ((a, b), (b, a))
    }

    def nearer(_: Array, distance: Array) -> Array:
        steps = (_shifted(distance, i, j, beyond) + length for (i, j), length in moves.items())
        return functools.reduce(jnp.minimum, steps, distance)

    return lax.fori_loop(0, far, nearer, jnp.where(edges, 0, jnp.int32(beyond)))


def equalised(levels: Array) -> Array:
    """The same picture with a flat histogram, int32: `cv2.equalizeHist`.

    levels: int32, 0 to 255. The lowest level that there is becomes 0.
    """
    count = jnp.zeros(256, jnp.int32).at[levels.ravel()].add(1)
    lowest = levels.min()
    first = count[lowest]
    rest = levels.size - first
    scale = jnp.float32(255) / jnp.maximum(rest, 1).astype(jnp.float32)
    table = jnp.round((jnp.cumsum(count) - first).astype(jnp.float32) * scale).astype(jnp.int32)
    return jnp.where(rest > 0, table[levels], levels)


def _coloured(colour: tuple[float, float, float], channels: int) -> Array:
    """The colour, or its grey, as `[1, 1, channels]`."""
    grey = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return jnp.asarray(colour if channels == 3 else (grey,) * channels, jnp.float32)[None, None]


def _shifted(image: Array, down: int, right: int, fill: int) -> Array:
    """What lies so far from each pixel, and `fill` where that is outside."""
    pads = [(max(-move, 0), max(move, 0)) for move in (down, right)]
    padded = jnp.pad(image, pads, constant_values=fill)
    return lax.dynamic_slice(padded, (max(down, 0), max(right, 0)), image.shape)


def _window(image: Array, weight: Callable[[int, int], int]) -> Array:
    """The weighted sum over 3 x 3 pixels; the image is mirrored at its outermost ones."""
    padded = jnp.pad(image, 1, mode="reflect")
    return jnp.asarray(
        sum(
            weight(i, j) * lax.dynamic_slice(padded, (1 + i, 1 + j), image.shape)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        )
    )


def _box(image: Array) -> Array:
    """The mean over 3 x 3 pixels."""
    return _window(image, lambda down, right: 1) / 9
