"""Convolutions of 3x3 and 5x5 windows with a fraction of the multiplications, as Winograd has them.

Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, 2015 (arXiv 1509.09308). A tile of 4x4 outputs is a sum of products
in a domain of 6x6 points, or 8x8 for 5x5 windows: for each point one dot over the channels. That is
a quarter, or a sixth, of the multiplications.

The images are taken in turns, of as many as keep what is between input and output in the cache.
In float32 the result is within 1e-4 of the largest number of the output, and mostly within 2e-5.
As a tile is computed as one, a number that is not finite reaches all 16 of its outputs, and where
inputs come within a factor of 100 of float32's largest, so does an overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.ops.algorithms import turned_geometry
from convjax.ops.geometry import Geometry, divisor, total

TILE = 4


class _Form(NamedTuple):
    """The matrices of a size of window: `[points, points]`, `[points, window]`, `[tile, points]`.

    input: takes a row of pixels to the points. kernel: takes a row of taps there. output: takes the
    products of both to a tile.
    """

    input: np.ndarray
    kernel: np.ndarray
    output: np.ndarray


def _form(points: Sequence[float]) -> _Form:
    """The form of Toom and Cook that evaluates polynomials at these points and at infinity."""
    number = len(points) + 1
    window = number - TILE + 1
    others = [[b for b in points if b != a] for a in points]
    products = [np.poly(each)[::-1] for each in [*others, points]]
    vandermonde = np.vander(points, number, increasing=True)
    scale = [math.prod(a - b for b in each) for a, each in zip(points, others, strict=True)]
    infinity = np.eye(1, number, number - 1)
    return _Form(
        np.stack([np.pad(each, (0, number - len(each))) for each in products]),
        np.concatenate([vandermonde[:, :window] / np.array(scale)[:, None], infinity[:, -window:]]),
        np.concatenate([vandermonde[:, :TILE], infinity[:, -TILE:]]).T,
    )


# By the size of the window. Small points, as their powers are what is rounded.
FORMS = {3: _form([0, 1, -1, 2, -2]), 5: _form([0, 1, -1, 2, -2, 0.5, -0.5])}

# What a turn may hold at the points, in bytes, and how many tiles a dot wants at least: measured on
# 2 cores with 1 MB of second-level cache each, from 1 MB to 20 MB.
TURN_BYTES = 10 * 2**20
TURN_TILES = 128


def applies(geometry: Geometry) -> bool:
    """Whether it is a 3x3 or 5x5 window with a stride of 1, and neither dilation nor groups."""
    plain = geometry[2:4] == ((1, 1), (1, 1)) and geometry.groups == 1
    return plain and geometry.window in [(size, size) for size in FORMS]


def winograd_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """As `convjax.ops.algorithms` has it."""
    return _convolve(x, kernel, 1, geometry)


def winograd_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """As `convjax.ops.algorithms` has it: the forward convolution with the flipped kernel."""
    return _convolve(g, kernel[::-1, ::-1], 2, turned_geometry(geometry))


def winograd_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """As `convjax.ops.algorithms` has it, with the transposed steps of the forward convolution."""
    channels, features = x.shape[-1], g.shape[-1]
    form = FORMS[geometry.window[0]]
    number = len(form.input)
    images = _images_a_turn(len(x), geometry, max(channels, features))
    x, g = _filled_up(x, images), _filled_up(g, images)

    def more(turn: Array | int, points: Array) -> Array:
        a = _input_points(lax.dynamic_slice_in_dim(x, turn * images, images), geometry, form)
        b = _gradient_points(lax.dynamic_slice_in_dim(g, turn * images, images), form)
        return points + lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))))

    points = jnp.zeros((number**2, channels, features), x.dtype)
    turns = len(x) // images
    points = more(0, points) if turns == 1 else lax.fori_loop(0, turns, more, points)
    rows = _combine(form.kernel.T, points.reshape(number, number, channels, features), 0, 0)
    return _combine(form.kernel.T, rows, 1, 1)


def _convolve(x: Array, kernel: Array, contracted: int, geometry: Geometry) -> Array:
    """contracted: which axis of the kernel, after its window, is that of the channels of `x`."""
    batch, (height, width) = len(x), geometry.out
    form = FORMS[geometry.window[0]]
    points = _kernel_points(kernel, form)
    images = _images_a_turn(batch, geometry, max(points.shape[1:]))
    x = _filled_up(x, images)

    def some(first: Array | int) -> Array:
        part = lax.dynamic_slice_in_dim(x, first, images)
        both = (((2,), (contracted,)), ((0,), (0,)))
        y = lax.dot_general(_input_points(part, geometry, form), points, both)
        tiles = (images, -(-height // TILE), -(-width // TILE))
        return _output(y, tiles, form)[:, :height, :width]

    return _in_turns(some, len(x), images, filling=x.ravel()[0])[:batch]


def _images_a_turn(batch: int, geometry: Geometry, channels: int) -> int:
    """As many as the cache holds; a divisor of the batch, if that is not much less."""
    tiles = -(-geometry.out[0] // TILE) * -(-geometry.out[1] // TILE)
    points = geometry.window[0] + TILE - 1
    cached = TURN_BYTES // (4 * points**2 * tiles * channels)
    most = min(batch, max(cached, TURN_TILES // tiles, 1))
    even = divisor(batch, most)
    return even if 2 * even >= most else -(-batch // -(-batch // most))


def _filled_up(x: Array, images: int) -> Array:
    """With images of zeros, which add nothing, up to a multiple of those of a turn."""
    more = -len(x) % images
    return jnp.pad(x, ((0, more), *((0, 0),) * (x.ndim - 1))) if more else x


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


def _input_points(x: Array, geometry: Geometry, form: _Form) -> Array:
    """`[points, tiles, channels]` of images."""
    number = len(form.input)
    tiles = [-(-n // TILE) for n in geometry.out]
    pads = [
        (low, n * TILE + number - TILE - size - low)
        for n, size, (low, _) in zip(tiles, geometry.size, geometry.pads, strict=True)
    ]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    columns = [x[:, :, at : at + tiles[1] * TILE : TILE] for at in range(number)]
    x = jnp.stack(_sums(form.input, columns))
    rows = [x[:, :, at : at + tiles[0] * TILE : TILE] for at in range(number)]
    return jnp.stack(_sums(form.input, rows)).reshape(number**2, -1, x.shape[-1])


def _kernel_points(kernel: Array, form: _Form) -> Array:
    """`[points, channels, features]` of a kernel."""
    window = range(len(kernel))
    columns = jnp.stack(_sums(form.kernel, [kernel[:, at] for at in window]))
    rows = jnp.stack(_sums(form.kernel, [columns[:, at] for at in window]))
    return rows.reshape(-1, *kernel.shape[-2:])


def _gradient_points(g: Array, form: _Form) -> Array:
    """`[points, tiles, features]` of the gradient of outputs: the transpose of `_output`."""
    batch, *size, features = g.shape
    pads = [(0, -n % TILE, 0) for n in size]
    g = lax.pad(g, np.zeros((), g.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    height, width = g.shape[1] // TILE, g.shape[2] // TILE
    g = g.reshape(batch, height * TILE, width, TILE, features)
    g = jnp.stack(_sums(form.output.T, [g[:, :, :, at] for at in range(TILE)]))
    g = g.reshape(-1, batch, height, TILE, width, features)
    rows = jnp.stack(_sums(form.output.T, [g[:, :, :, at] for at in range(TILE)]))
    return rows.reshape(-1, batch * height * width, features)


def _output(y: Array, tiles: tuple[int, int, int], form: _Form) -> Array:
    """`[batch, height, width, features]` of `[points, tiles, features]`."""
    batch, height, width = tiles
    number = len(form.input)
    y = y.reshape(number, number, batch, height, width, -1)
    columns = _sums(form.output, [y[:, at] for at in range(number)])
    y = jnp.stack(columns, -2).reshape(number, batch, height, width * TILE, -1)
    rows = _sums(form.output, [y[at] for at in range(number)])
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
