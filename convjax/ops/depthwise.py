"""Convolutions of every channel by itself, as sums of products, element by element.

The functions are those of `convjax.ops.algorithms`, for as many groups as channels. XLA's own
depthwise convolution is 50 to 100 times slower on the CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax.ops.geometry import Geometry, divisor, painted, shifted, total
from convjax.ops.sums import sum_places

# How many products are added up in one go: more take longer to compile, fewer store more often.
PRODUCTS = 32


def depthwise_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """A product for each place of the window, summed up."""
    seen = shifted(_repeated(x, kernel), geometry)
    taps = zip(seen, geometry.taps, strict=True)
    return total([a * _along(kernel[tap], a) for a, tap in taps])


def depthwise_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """A product for each place of the window, painted back."""

    def piece(number: int, seen: Array) -> Array:
        return seen * _along(kernel[geometry.taps[number]], seen)

    x = painted(piece, g, geometry)
    multiplier = kernel.shape[-1] // geometry.groups
    return x if multiplier == 1 else x.reshape(*x.shape[:-1], -1, multiplier).sum(-1)


def depthwise_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """Sums of products over all places; a few images at a time, which stay in the cache.

    The first spatial dimension is summed up within a turn, and the turns one after the other; the
    rest at the end. With more than nine taps the turns take one row of them each.
    """
    batch, height = g.shape[:2]
    x = _repeated(x, g)
    config = [(0, 0, 0), *((low, high, 0) for low, high in geometry.pads), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    images = divisor(batch, PRODUCTS // height)
    rows = divisor(height, PRODUCTS // images)
    parts = height // rows
    step, gap = geometry.stride[0], geometry.dilation[0]
    reach = (rows - 1) * step + 1
    within = Geometry(
        (reach, *x.shape[2:-1]),
        (1, *geometry.window[1:]),
        geometry.stride,
        geometry.dilation,
        ((0, 0),) * (x.ndim - 2),
    )

    def products(image: Array | int, row: Array | int, tap: Array | int) -> list[Array]:
        """For each tap of a row of the window: `[*width, channels]`."""
        start = (image, row * step + tap * gap, *(0,) * (x.ndim - 2))
        seen = lax.dynamic_slice(x, start, (images, reach, *x.shape[2:]))
        start = (image, row, *(0,) * (g.ndim - 2))
        given = lax.dynamic_slice(g, start, (images, rows, *g.shape[2:]))
        return [
            total([a[i, h] * given[i, h] for i in range(images) for h in range(rows)])
            for a in shifted(seen, within)
        ]

    def at(turn: Array | int) -> tuple[Array | int, Array | int]:
        return turn // parts * images, turn % parts * rows

    turns = batch // images * parts
    first = range(geometry.window[0])
    if len(geometry.taps) <= 9:

        def all_rows(turn: Array | int) -> list[Array]:
            return [product for tap in first for product in products(*at(turn), tap)]

        def add(turn: Array, sums: list[Array]) -> list[Array]:
            return [a + b for a, b in zip(sums, all_rows(turn), strict=True)]

        zeros = [jnp.zeros(a.shape, a.dtype) for a in jax.eval_shape(all_rows, 0)]
        sums = lax.fori_loop(0, turns, add, zeros)
        kernel = jnp.stack([sum_places(a) for a in sums])
    else:
        kernel = _row_by_row(lambda turn, tap: products(*at(turn), tap), turns, len(first))
    return kernel.reshape(*geometry.window, 1, -1)


def _row_by_row(products, turns: int, rows: int) -> Array:
    """`[rows, taps in a row, channels]`: sums over turns of `products(turn, row)`.

    A step stores what the last one made: XLA would otherwise join the making to the storing, which
    it does on a single thread.
    """

    def store(sums: list[Array], last: list[Array], row: Array | int) -> list[Array]:
        pairs = zip(sums, last, strict=True)
        return [lax.dynamic_update_index_in_dim(a, b, row, 0) for a, b in pairs]

    def step(number: Array, carry: tuple[list[Array], list[Array]]):
        sums, last = carry
        sums = store(sums, last, (number - 1) % rows)
        row = number % rows
        before = [lax.dynamic_index_in_dim(a, row, 0, keepdims=False) for a in sums]
        made = products(number // rows, row)
        return sums, [a + b for a, b in zip(before, made, strict=True)]

    shapes = jax.eval_shape(products, 0, 0)
    last = [jnp.zeros(a.shape, a.dtype) for a in shapes]
    sums = [jnp.zeros((rows, *a.shape), a.dtype) for a in shapes]
    # Before the first step there is nothing to store: the zeros are overwritten.
    sums, last = lax.fori_loop(0, turns * rows, step, (sums, last))
    sums = store(sums, last, rows - 1)
    return jnp.stack([sum_places(a, keep=1) for a in sums], 1)


def _repeated(x: Array, outputs: Array) -> Array:
    """Each channel as often as there are outputs of it: a kernel's, or those of a gradient."""
    multiplier = outputs.shape[-1] // x.shape[-1]
    return jnp.repeat(x, multiplier, -1) if multiplier > 1 else x


def _along(values: Array, x: Array) -> Array:
    """The one row of `[1, channels]` for every place of `x`."""
    return lax.broadcast_in_dim(values[0], x.shape, (x.ndim - 1,))
