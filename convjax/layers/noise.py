"""Noise while training: what is dropped is drawn from the context's key."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax import ops
from convjax.layer import Context, Layer, Params, State


def dropout(rate: float | Array) -> Layer:
    """When training, drops each number with probability `rate` and scales up the rest.

    The rate may be a traced array. Raises a ValueError when training without `Context(key=...)`.
    Srivastava et al. 2014.
    """
    return _noise(ops.dropout, rate, "dropout")


def spatial_dropout(rate: float | Array) -> Layer:
    """Dropout of whole channels (Tompson et al. 2015)."""
    return _noise(ops.spatial_dropout, rate, "spatial_dropout")


def drop_path(rate: float | Array) -> Layer:
    """Stochastic depth: drops all of an example's input, as at the end of a residual branch.

    Huang et al. 2016.
    """
    return _noise(ops.drop_path, rate, "drop_path")


# -- What they share -------------------------------------------------------------------------------


def _noise(op: Callable[..., Array], rate: float | Array, kind: str) -> Layer:
    """Noise drawn for each example by its number in the whole batch, on however many devices."""

    def apply(params: Params, state: State, x: Array, ctx: Context = Context()):
        if not ctx.train or (isinstance(rate, int | float) and rate == 0):
            return x, state
        key = ctx.rng(kind)
        numbers = jnp.arange(x.shape[0])
        if ctx.axis is not None:
            numbers = numbers + lax.axis_index(ctx.axis) * x.shape[0]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return jax.vmap(lambda key, each: op(key, each[None], rate)[0])(keys, x), state

    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise ValueError(f"{kind} takes a rate between 0 and 1, not {rate}")
    return Layer(lambda key, spec: ({}, {}), apply, kind)
