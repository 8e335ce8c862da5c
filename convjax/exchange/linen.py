"""A module of Flax as a layer, so that networks written for Flax can be parts of a convjax network.

net = serial(from_linen(flax_backbone), dense(10))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen

from convjax.layer import Context, Layer, Params, State, spec_of


def from_linen(
    module: linen.Module,
    call: Callable[[Any, Any, bool], Any] = lambda module, x, train: module(x),
) -> Layer:
    """The layer that computes what a `flax.linen` module computes.

    Its parameters are the module's collection "params"; its state is all other collections, such as
    "batch_stats", which change only in training. Randomness named "dropout" is drawn from the
    layer's own key.

    call: `(module, x, train) -> output`, for modules that want to know whether they are trained.

    >>> import jax.numpy as jnp
    >>> layer = from_linen(linen.Dense(5))
    >>> params, state = layer.init(jax.random.key(0), jnp.zeros((2, 3)))
    >>> params["kernel"].shape
    (3, 5)
    """

    def init(key: jax.Array, spec: Any) -> tuple[Params, State]:
        variables = module.lazy_init(key, spec_of(spec), False, method=call)
        return variables.get("params") or {}, _without_params(variables)

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()) -> tuple[Any, State]:
        rngs = {} if ctx.key is None else {"dropout": ctx.rng()}
        variables = {"params": params, **state}
        if not ctx.train:
            return module.apply(variables, x, False, method=call, rngs=rngs), state
        mutable = list(state)
        y, changed = module.apply(variables, x, True, method=call, rngs=rngs, mutable=mutable)
        return y, {**state, **_without_params(changed)}

    return Layer(init, apply, type(module).__name__.lower())


def _without_params(variables: Any) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name != "params"}
