"""What weighs an image by learned numbers: the slope below zero, and the channels' weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax import ops
from convjax.combine import shaped
from convjax.initializers import he_normal
from convjax.layer import Layer, Net, Params, compose, parametric
from convjax.layers.convolution import dense


def prelu(*, shared: bool = False, slope: float = 0.25) -> Layer:
    """A ReLU whose slope below zero is learned, per channel or shared (He et al. 2015)."""

    def maker(key: Array, x: Any) -> Array:
        return jnp.full(() if shared else x.shape[-1:], slope, jnp.float32)

    def apply(params: Params, x: Array) -> Array:
        return ops.prelu(x, **params)

    return parametric("prelu", apply, slope=maker)


def squeeze_excite(
    ratio: float = 1 / 16,
    *,
    activation: Callable[[Array], Array] = ops.relu,
    gate: Callable[[Array], Array] = ops.sigmoid,
) -> Layer:
    """Weighs the channels of an image by what it shows as a whole (Hu et al. 2018).

    ratio: width of the hidden layer as a share of the channels, at least 1 in all.
    """

    def wire(net: Net, x: Array) -> Array:
        weights = net.gate(net.expand(net.activation(net.squeeze(net.mean(x)))))
        return x * weights.reshape(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])

    def make(x: Any) -> Layer:
        channels = x.shape[-1]
        return compose(
            wire,
            mean=ops.global_avg_pool,
            squeeze=dense(max(1, round(channels * ratio)), kernel_init=he_normal),
            activation=activation,
            expand=dense(channels),
            gate=gate,
        )

    return shaped(make).named("squeeze_excite")
