"""What training carries from step to step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.layer import Layer, Params, Spec, State, fold
from convjax.training import loss_scale, watch
from convjax.training.loss_scale import LossScale
from convjax.training.optimizer import Hyper, Optimizer
from convjax.training.watch import Watch


class TrainState(NamedTuple):
    """Everything that the next step depends on, beside its batch and its hyper-parameters.

    step: how many steps were taken, int32.
    params, state: of the network.
    opt: what the optimizer remembers.
    key: from which the randomness of each step is folded; it never changes.
    average: parameters and batch statistics as `convjax.training.average` follows them, or None.
    scale: what the loss is multiplied by in float16 (`convjax.training.loss_scale`), or None.
    watch: what was seen of bad steps (`convjax.training.watch`), or None, which skips none.
    """

    step: Array
    params: Params
    state: State
    opt: Any
    key: Array
    average: Any = None
    scale: LossScale | None = None
    watch: Watch | None = None


def init_state(
    net: Layer,
    optimizer: Optimizer,
    key: Array,
    spec: Spec,
    hyper: Hyper,
    *,
    averaged: bool = False,
    scaled: bool = False,
    begin: Callable[[Params], Params] | None = None,
) -> TrainState:
    """The state before the first step; the key decides the parameters and the noise of every step.

    spec: a batch of images as the network sees them, as `jax.ShapeDtypeStruct` or array.
    averaged: whether there is an average, which begins with the first parameters.
    scaled: whether the loss is scaled, as float16 needs it.
    begin: what becomes of the parameters that were drawn, before all else.
    """
    params, state = net.init(fold(key, "params"), spec)
    params = params if begin is None else begin(params)
    opt = memory_of(optimizer, hyper, params)
    average = jax.tree.map(jnp.copy, (params, state)) if averaged else None
    scale = loss_scale.start() if scaled else None
    step, noise = jnp.asarray(np.int32(0)), fold(key, "noise")
    return TrainState(step, params, state, opt, noise, average, scale, watch.start())


# One program: run one by one, the operations of a schedule and of an optimizer take 30 programs.
@functools.partial(jax.jit, static_argnums=0)
def memory_of(optimizer: Optimizer, hyper: Hyper, params: Params) -> Any:
    """What an optimizer remembers before the first step."""
    return optimizer(hyper, jnp.zeros((), jnp.int32)).init(params)
