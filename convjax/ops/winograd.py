"""Convolutions of 3x3 windows with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, 2015 (arXiv 1509.09308), whose matrices these are. A tile of 4x4
outputs is a sum of products in a domain of 6x6 points: for each point one dot over the channels.

The images are taken in turns, of as many as keep what is between input and output in the cache.
In float32 the result is within 1e-4 of the largest number of the output, and mostly within 2e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.ops.algorithms import turned_geometry
from convjax.ops.geometry import Geometry, divisor, total

TILE, POINTS = 4, 6
# Rows of B^T take six pixels to six points, G three taps, and A^T six points to four outputs.
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)

# What a turn may hold at the points, in bytes, and how many tiles a dot wants at least: measured on
# 2 cores with 1 MB of second-level cache each, from 1 MB to 20 MB.
TURN_BYTES = 10 * 2**20
TURN_TILES = 128


def applies(geometry: Geometry) -> bool:
    """Whether it is a 3x3 window with a stride of 1, and neither dilation nor groups."""
    return geometry[1:4] == ((3, 3), (1, 1), (1, 1)) and geometry.groups == 1


def winograd_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """As `convjax.ops.algorithms` has it."""
    return _convolve(x, _kernel_points(kernel), 1, geometry)


def winograd_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """As `convjax.ops.algorithms` has it: the forward convolution with the flipped kernel."""
    return _convolve(g, _kernel_points(kernel[::-1, ::-1]), 2, turned_geometry(geometry))


def winograd_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """As `convjax.ops.algorithms` has it, with the transposed steps of the forward convolution."""
    channels, features = x.shape[-1], g.shape[-1]
    images = _images_a_turn(len(x), geometry, max(channels, features))

    def more(turn: Array | int, points: Array) -> Array:
        a = _input_points(lax.dynamic_slice_in_dim(x, turn * images, images), geometry)
        b = _gradient_points(lax.dynamic_slice_in_dim(g, turn * images, images))
        return points + lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))))

    points = jnp.zeros((POINTS**2, channels, features), x.dtype)
    turns = len(x) // images
    points = more(0, points) if turns == 1 else lax.fori_loop(0, turns, more, points)
    rows = _combine(KERNEL.T, points.reshape(POINTS, POINTS, channels, features), 0, 0)
    return _combine(KERNEL.T, rows, 1, 1)


def _convolve(x: Array, kernel: Array, contracted: int, geometry: Geometry) -> Array:
    """kernel: at the points, `[points, channels, features]`, of which one axis is contracted."""
    height, width = geometry.out
    images = _images_a_turn(len(x), geometry, max(kernel.shape[1:]))

    def some(first: Array | int) -> Array:
        part = lax.dynamic_slice_in_dim(x, first, images)
        both = (((2,), (contracted,)), ((0,), (0,)))
        y = lax.dot_general(_input_points(part, geometry), kernel, both)
        tiles = (images, -(-height // TILE), -(-width // TILE))
        return _output(y, tiles)[:, :height, :width]

    return _in_turns(some, len(x), images, filling=x.ravel()[0])


def _images_a_turn(batch: int, geometry: Geometry, channels: int) -> int:
    tiles = -(-geometry.out[0] // TILE) * -(-geometry.out[1] // TILE)
    cached = TURN_BYTES // (4 * POINTS**2 * tiles * channels)
    return divisor(batch, max(cached, TURN_TILES // tiles, 1))


def _in_turns(
    some: Callable[[Array | int], Array], batch: int, images: int, filling: Array
) -> Array:
    """Concatenates `some(0), some(images), ...`.

    A turn stores what the last one made: XLA would otherwise join the making to the storing, which
    it does on a single thread.

    filling: a scalar that no other convolution has, to be overwritten. Zeros would be one array
        for all convolutions of the network, which lives as long as they do and is copied for each.
    """
    if images == batch:
        return some(0)

    def turn(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        done, last = carry
        # Before the first turn there is nothing to store: the second overwrites the filling.
        done = lax.dynamic_update_slice_in_dim(done, last, (number - 1) * images, 0)
        return done, some(number * images)

    shape = jax.eval_shape(some, 0)
    start = jnp.full((batch, *shape.shape[1:]), filling), jnp.full(shape.shape, filling)
    done, last = lax.fori_loop(0, batch // images, turn, start)
    return lax.dynamic_update_slice_in_dim(done, last, batch - images, 0)


def _input_points(x: Array, geometry: Geometry) -> Array:
    """`[points, tiles, channels]` of images."""
    tiles = [-(-n // TILE) for n in geometry.out]
    pads = [
        (low, n * TILE + 2 - size - low)
        for n, size, (low, _) in zip(tiles, geometry.size, geometry.pads, strict=True)
    ]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    columns = [x[:, :, at : at + tiles[1] * TILE : TILE] for at in range(POINTS)]
    x = jnp.stack(_sums(INPUT, columns))
    rows = [x[:, :, at : at + tiles[0] * TILE : TILE] for at in range(POINTS)]
    return jnp.stack(_sums(INPUT, rows)).reshape(POINTS**2, -1, x.shape[-1])


def _kernel_points(kernel: Array) -> Array:
    """`[points, channels, features]` of a kernel."""
    columns = jnp.stack(_sums(KERNEL, [kernel[:, at] for at in range(3)]))
    rows = jnp.stack(_sums(KERNEL, [columns[:, at] for at in range(3)]))
    return rows.reshape(POINTS**2, *kernel.shape[-2:])


def _gradient_points(g: Array) -> Array:
    """`[points, tiles, features]` of the gradient of outputs: the transpose of `_output`."""
    batch, *size, features = g.shape
    pads = [(0, -n % TILE, 0) for n in size]
    g = lax.pad(g, np.zeros((), g.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    height, width = g.shape[1] // TILE, g.shape[2] // TILE
    g = g.reshape(batch, height * TILE, width, TILE, features)
    g = jnp.stack(_sums(OUTPUT.T, [g[:, :, :, at] for at in range(TILE)]))
    g = g.reshape(POINTS, batch, height, TILE, width, features)
    rows = _sums(OUTPUT.T, [g[:, :, :, at] for at in range(TILE)])
    return jnp.stack(rows).reshape(POINTS**2, -1, features)


def _output(y: Array, tiles: tuple[int, int, int]) -> Array:
    """`[batch, height, width, features]` of `[points, tiles, features]`."""
    batch, height, width = tiles
    y = y.reshape(POINTS, POINTS, batch, height, width, -1)
    columns = _sums(OUTPUT, [y[:, at] for at in range(POINTS)])
    y = jnp.stack(columns, -2).reshape(POINTS, batch, height, width * TILE, -1)
    rows = _sums(OUTPUT, [y[at] for at in range(POINTS)])
    return jnp.stack(rows, 2).reshape(batch, height * TILE, width * TILE, -1)


def _combine(matrix: np.ndarray, x: Array, axis: int, out: int) -> Array:
    parts = [lax.index_in_dim(x, at, axis, keepdims=False) for at in range(x.shape[axis])]
    return jnp.stack(_sums(matrix, parts), out)


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """`matrix @ parts`, row by row, leaving out what is zero."""
    dtype = parts[0].dtype
    return [
        total(
            [
                part if weight == 1 else part * np.asarray(weight, dtype)
                for weight, part in zip(row, parts, strict=True)
                if weight
            ]
        )
        for row in matrix.tolist()
    ]
