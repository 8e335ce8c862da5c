"""The maximum over windows as a primitive: its gradient goes to the first of the largest.

On the CPU XLA looks for the largest once more for the gradient, one window after the other
(`select_and_scatter`); here the taps of all windows are compared at once.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.interpreters import ad, batching

from convjax.ops import choice
from convjax.ops.geometry import Geometry, painted, shifted, total
from convjax.ops.primitive import make, unmarked

# Beyond so many taps a window is read often enough that XLA's own way is no slower.
MOST_TAPS = 25


def window_max(x: Array, geometry: Geometry) -> Array:
    """The largest number in each window, without dilation.

    x: `[batch, *size, channels]`. Returns `[batch, *out, channels]`.
    """
    few = math.prod(geometry.window) <= MOST_TAPS
    if not few or choice.forced("max_pool") == "lax" or not unmarked(x):
        return _reduce(x, geometry=geometry)
    return _max.bind(x, geometry=geometry)


def _reduce(x: Array, *, geometry: Geometry) -> Array:
    return lax.reduce_window(
        x,
        lowest(x.dtype),
        lax.max,
        window_dimensions=(1, *geometry.window, 1),
        window_strides=(1, *geometry.stride, 1),
        padding=((0, 0), *geometry.pads, (0, 0)),
    )


def _taps(x: Array, *, geometry: Geometry) -> Array:
    return functools.reduce(lax.max, _seen(x, geometry))


def _reduce_pick(t: Array, x: Array, *, geometry: Geometry) -> Array:
    return jax.jvp(functools.partial(_reduce, geometry=geometry), (x,), (t,))[1]


def _taps_pick(t: Array, x: Array, *, geometry: Geometry) -> Array:
    first = _first(x, geometry)
    seen = shifted(t, geometry)
    return total([jnp.where(first == at, a, 0) for at, a in enumerate(seen)])


def _reduce_place(g: Array, x: Array, *, geometry: Geometry) -> Array:
    return jax.vjp(functools.partial(_reduce, geometry=geometry), x)[1](g)[0]


def _taps_place(g: Array, x: Array, *, geometry: Geometry) -> Array:
    if geometry.window == geometry.stride:
        return _apart_place(g, x, geometry)

    def piece(number: int, seen: tuple[Array, Array]) -> Array:
        first, given = seen
        return jnp.where(first == number, given, 0)

    return painted(piece, (_first(x, geometry), g), geometry)


def _apart_place(g: Array, x: Array, geometry: Geometry) -> Array:
    """The gradient placed where windows do not overlap: every pixel asks the one that it is in.

    Pixels that are interleaved from one array for each tap are computed one by one, as XLA has it;
    these are rows of channels.
    """
    out, window = geometry.out, geometry.window
    shape = [len(g), *itertools.chain(*zip(out, window, strict=True)), g.shape[-1]]
    of_window = [0, *range(1, 2 * len(out), 2), 2 * len(out) + 1]
    first, given = (lax.broadcast_in_dim(a, shape, of_window) for a in (_first(x, geometry), g))
    numbers = np.arange(math.prod(window), dtype=np.int8).reshape(window)
    taps = lax.broadcast_in_dim(numbers, shape, range(2, 2 * len(out) + 1, 2))
    placed = jnp.where(first == taps, given, 0)
    placed = placed.reshape(len(g), *map(operator.mul, out, window), g.shape[-1])
    pads = [
        (-low, size + low - have, 0)
        for (low, _), size, have in zip(
            geometry.pads, geometry.size, placed.shape[1:-1], strict=True
        )
    ]
    return lax.pad(placed, np.asarray(0, g.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _first(x: Array, geometry: Geometry) -> Array:
    """The number of the first tap that sees the largest, int8 `[batch, *out, channels]`."""
    seen = _seen(x, geometry)
    largest, first = seen[0], jnp.zeros(seen[0].shape, jnp.int8)
    for number, a in enumerate(seen[1:], 1):
        # As in PyTorch a NaN counts as the largest, and the last one of several.
        first = jnp.where((a > largest) | (a != a), np.int8(number), first)
        largest = lax.max(largest, a)
    return first


def _seen(x: Array, geometry: Geometry) -> list[Array]:
    return shifted(x, geometry, lowest(x.dtype))


def lowest(dtype: np.dtype) -> np.ndarray:
    """The number of `dtype` that no other is smaller than: the identity of a maximum."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(-np.inf, dtype)
    return np.asarray(jnp.iinfo(dtype).min, dtype)


def _out(x: Any, *_: Any, geometry: Geometry) -> tuple[int, ...]:
    return (x.shape[0], *geometry.out, x.shape[-1])


# The maximum, the tangent of what it picks, and the gradient placed where it was picked.
_max = make("max", _out, _reduce, _taps)
_pick = make("max_pick", _out, _reduce_pick, _taps_pick)
_place = make("max_place", lambda g, x, *, geometry: x.shape, _reduce_place, _taps_place)

ad.defjvp(_max, _pick.bind)
ad.defjvp(_pick, lambda t, _, x, **params: _pick.bind(t, x, **params), None)
ad.defjvp(_place, lambda t, _, x, **params: _place.bind(t, x, **params), None)
ad.primitive_transposes[_pick] = lambda g, _, x, **params: (
    _place.bind(ad.instantiate_zeros(g), x, **params),
    None,
)
ad.primitive_transposes[_place] = lambda t, _, x, **params: (
    _pick.bind(ad.instantiate_zeros(t), x, **params),
    None,
)


def _batcher(primitive: Any) -> Any:
    """Every member is so many images more."""

    def batch(args, dims, **params):
        number = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
        args = [
            jnp.broadcast_to(a, (number, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
            for a, d in zip(args, dims, strict=True)
        ]
        images = args[0].shape[1]
        flat = [a.reshape(number * images, *a.shape[2:]) for a in args]
        y = primitive.bind(*flat, **params)
        return y.reshape(number, images, *y.shape[1:]), 0

    return batch


for _primitive in (_max, _pick, _place):
    batching.primitive_batchers[_primitive] = _batcher(_primitive)
