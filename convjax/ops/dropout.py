"""Noise that zeroes: numbers (dropout), whole channels (spatial dropout) or examples (drop path).

    y = dropout(key, x, 0.5)                   # kept numbers times 1 / (1 - 0.5), so that E[y] = x

`rate` is the probability of a zero: a Python number, or a traced array that a sweep varies; both
give the same result to the bit. Rate 0 gives `x`, rate 1 zeros, with gradients to match.
"""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from convjax.ops.arguments import describe, floating, spatial, wide_dtype


def dropout(key: Array, x: ArrayLike, rate: float | Array) -> Array:
    """Zeroes each number with probability `rate`, and multiplies the others by `1 / (1 - rate)`.

    Srivastava et al., Dropout, 2014; scaled in training ("inverted"), so that evaluation leaves
    it out. Raises ValueError for a number outside [0, 1].

    >>> dropout(jax.random.key(0), jnp.ones(4), 1.0).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    x = floating("dropout", x)
    return _drop("dropout", key, x, rate, x.shape)


def spatial_dropout(key: Array, x: ArrayLike, rate: float | Array) -> Array:
    """Zeroes whole channels of an example, each with probability `rate`; scales as `dropout`.

    Tompson et al., Efficient Object Localization Using Convolutional Networks, 2014
    (arXiv 1411.4280); `torch.nn.Dropout2d`. x: [batch, *spatial, channels].
    """
    x = floating("spatial_dropout", x)
    ones = (1,) * len(spatial("spatial_dropout", x))
    return _drop("spatial_dropout", key, x, rate, (x.shape[0], *ones, x.shape[-1]))


def drop_path(key: Array, x: ArrayLike, rate: float | Array) -> Array:
    """Zeroes whole examples of a batch, each with probability `rate`; scales as `dropout`.

    On the branch of a residual block this is stochastic depth: Huang et al., 2016
    (arXiv 1603.09382). x: [batch, ...].
    """
    x = floating("drop_path", x)
    return _drop("drop_path", key, x, rate, (x.shape[0], *(1,) * (x.ndim - 1)))


def _drop(op: str, key: Array, x: Array, rate: float | Array, shape: tuple[int, ...]) -> Array:
    """One draw for each entry of `shape`, which broadcasts against `x`."""
    if isinstance(rate, numbers.Real) and not 0 <= rate <= 1:
        raise ValueError(f"{op}: rate is a probability between 0 and 1, got {rate}")
    if jnp.ndim(rate):
        raise ValueError(
            f"{op}: rate must be one number, got {describe(jnp.asarray(rate))}: for many, jax.vmap"
        )
    dtype = wide_dtype(x)
    keep = 1 - jnp.asarray(rate, dtype)
    kept = jax.random.bernoulli(key, keep, shape)
    # At rate 1 nothing is kept: any finite scale will do, where 1 / 0 would make a NaN of the
    # gradient.
    scale = 1 / jnp.where(keep > 0, keep, 1)
    return jnp.where(kept, x.astype(dtype) * scale, 0).astype(x.dtype)
