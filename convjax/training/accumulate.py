"""Gradients of a batch that is taken in parts, one after the other: less memory, the same sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax.layer import Params, State

# (params, state, batch, key) -> (gradient of a sum, (state, sums))
Sums = Callable[[Params, State, Any, Array], tuple[Params, tuple[State, Any]]]


def in_parts(sums: Sums, parts: int) -> Sums:
    """The same sums, of so many equal parts of the batch, with the memory of one.

    The state goes from part to part, as it would from batch to batch; part n has the key with n
    folded in. So gradient and sums are those of the whole batch, but for rounding, where nothing
    looks across examples and nothing is random.

    Raises:
        ValueError: if the batch does not divide into the parts.
    """
    if parts == 1:
        return sums

    def summed(params: Params, state: State, batch: Any, key: Array) -> Any:
        split = jax.tree.map(lambda x: _split(x, parts), batch)

        def part(carry: Any, one: Any) -> tuple[Any, None]:
            grads, state, totals = carry
            number, examples = one
            new, (state, more) = sums(params, state, examples, jax.random.fold_in(key, number))
            return (_add(grads, new), state, _add(totals, more)), None

        # The sums before the first part are zeros, of the shapes that a part gives.
        one = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(sums, params, state, one, key)
        grads, (_, totals) = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        numbers = jnp.arange(parts)
        (grads, state, totals), _ = lax.scan(part, (grads, state, totals), (numbers, split))
        return grads, (state, totals)

    return summed


def _split(x: Any, parts: int) -> Array:
    if len(x) % parts:
        raise ValueError(f"a batch of {len(x)} on a device does not divide into {parts} parts")
    # Every so many-th image, so that each part has as many of every device.
    return jnp.moveaxis(jnp.reshape(x, (len(x) // parts, parts, *x.shape[1:])), 1, 0)


def _add(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)
