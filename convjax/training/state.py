"""What training carries from step to step."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.layer import Layer, Params, Spec, State, fold
from convjax.training.optimizer import Hyper, Optimizer


class TrainState(NamedTuple):
    """Everything that the next step depends on, beside its batch and its hyper-parameters.

    step: how many steps were taken, int32.
    params, state: of the network.
    opt: what the optimizer remembers.
    key: from which the randomness of each step is folded; it never changes.
    """

    step: Array
    params: Params
    state: State
    opt: Any
    key: Array


def init_state(
    net: Layer, optimizer: Optimizer, key: Array, spec: Spec, hyper: Hyper
) -> TrainState:
    """The state before the first step; the key decides the parameters and the noise of every step.

    spec: a batch of images as the network sees them, as `jax.ShapeDtypeStruct` or array.
    """
    params, state = net.init(fold(key, "params"), spec)
    opt = _memory(optimizer, hyper, params)
    return TrainState(jnp.asarray(np.int32(0)), params, state, opt, fold(key, "noise"))


def shape_of(net: Layer, optimizer: Optimizer, key: Array, spec: Spec, hyper: Hyper) -> TrainState:
    """The shapes and dtypes of `init_state`, without computing anything."""
    return jax.eval_shape(
        lambda key, hyper: init_state(net, optimizer, key, spec, hyper), key, hyper
    )


# One program: run one by one, the operations of a schedule and of an optimizer take 30 programs.
@functools.partial(jax.jit, static_argnums=0)
def _memory(optimizer: Optimizer, hyper: Hyper, params: Params) -> Any:
    return optimizer(hyper, jnp.zeros((), jnp.int32)).init(params)
