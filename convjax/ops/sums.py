"""Sums over all places of an image, and their transpose, fast on every platform.

Means of a batch, the gradients of a bias and of a scale, and global pooling are such sums. XLA's
own reduction over all axes but the last, as `convjax.compiler` has it compiled for the CPU, takes 5
to 10 times as long as adding up slabs of rows, which is how `sum_places` does it: the first time as
a reduction, into which XLA fuses what makes the summed, and then as sums of slices.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad, batching
from jax.typing import ArrayLike

from convjax.ops import choice
from convjax.ops.arguments import along, wide_dtype
from convjax.ops.geometry import divisor, total
from convjax.ops.primitive import make, unmarked

# Slabs that are added in one go; and rows that are left to a product with ones, which needs no code
# of its own but adds one row after the other: up to so many that loses no digits.
SLABS = 16
MOST_ROWS = 512


def sum_places(x: Array, keep: int = 0) -> Array:
    """The sum over all axes but the first `keep` and the last, by slabs.

    x: `[*kept, *places, channels]`. Returns `[*kept, channels]`.

    >>> sum_places(jnp.ones((2, 3, 5, 4)), keep=1)[:, 0].tolist()
    [15.0, 15.0]
    """
    kept, channels, dtype = x.shape[:keep], x.shape[-1], x.dtype
    x = x.reshape(*kept, math.prod(x.shape[keep:-1]), channels).astype(wide_dtype(x))
    slabs = divisor(x.shape[keep], SLABS)
    # No second reduction may follow: XLA would join the two into the slow one.
    if x.shape[keep] > MOST_ROWS and slabs > 1:
        x = x.reshape(*kept, slabs, -1, channels).sum(keep)
    while x.shape[keep] > MOST_ROWS:
        rows = x.shape[keep] // SLABS
        slices = [lax.slice_in_dim(x, at * rows, (at + 1) * rows, axis=keep) for at in range(SLABS)]
        rest = lax.slice_in_dim(x, SLABS * rows, None, axis=keep)
        x = total(slices)
        if rest.shape[keep]:
            x = jnp.concatenate([x, rest], keep)
    rows = x.shape[keep]
    batch = tuple(range(keep))
    ones = jnp.ones((*kept, 1, rows), x.dtype)
    summed = lax.dot_general(
        ones, x, (((keep + 1,), (keep,)), (batch, batch)), precision=lax.Precision.HIGHEST
    )
    return summed.reshape(*kept, channels).astype(dtype)


def channel_sum(x: Array, keep: int = 0) -> Array:
    """The sum over all axes but the first `keep` and the last, in the dtype of `x`.

    x: `[*kept, *places, channels]`. Returns `[*kept, channels]`; its gradient is `spread`.
    """
    if choice.forced("sums") == "lax" or not unmarked(x):
        return _plain_sum(x, keep=keep)
    return _sum.bind(x, keep=keep)


def spread(values: Array, shape: tuple[int, ...], keep: int = 0) -> Array:
    """Each of `values` at all places: an array of that shape, whose gradient is `channel_sum`.

    values: `[*kept, channels]`. Returns `[*kept, *places, channels]`.
    """
    if choice.forced("sums") == "lax" or not unmarked(values):
        return _plain_spread(values, shape=tuple(shape), keep=keep)
    return _spread.bind(values, shape=tuple(shape), keep=keep)


def spread_along(op: str, name: str, values: ArrayLike, x: Array) -> Array:
    """`values` `[channels]`, in the dtype of `x`, at all places of `x`.

    Raises:
        ValueError: where `values` do not have the channels of `x`, by the name that it is given.
    """
    row = along(op, name, values, x).astype(x.dtype)
    return spread(row.reshape(x.shape[-1:]), x.shape)


def _plain_sum(x: Array, *, keep: int) -> Array:
    return x.sum(tuple(range(keep, x.ndim - 1)))


def _plain_spread(values: Array, *, shape: tuple[int, ...], keep: int) -> Array:
    return lax.broadcast_in_dim(values, shape, (*range(keep), len(shape) - 1))


_sum = make(
    "channel_sum",
    lambda x, *, keep: (*x.shape[:keep], x.shape[-1]),
    plain=_plain_sum,
    on_cpu=sum_places,
)
_spread = make(
    "spread", lambda values, *, shape, keep: shape, plain=_plain_spread, on_cpu=_plain_spread
)
ad.deflinear2(_sum, lambda g, x, *, keep: [_spread.bind(g, shape=x.aval.shape, keep=keep)])
ad.deflinear2(_spread, lambda g, values, *, shape, keep: [_sum.bind(g, keep=keep)])


def _batch_sum(args, dims, *, keep):
    return _sum.bind(jnp.moveaxis(args[0], dims[0], 0), keep=keep + 1), 0


def _batch_spread(args, dims, *, shape, keep):
    values = jnp.moveaxis(args[0], dims[0], 0)
    return _spread.bind(values, shape=(values.shape[0], *shape), keep=keep + 1), 0


batching.primitive_batchers[_sum] = _batch_sum
batching.primitive_batchers[_spread] = _batch_spread
