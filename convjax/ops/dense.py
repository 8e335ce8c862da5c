"""The dense (fully connected, linear) map of the last axis."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from convjax.ops.arguments import describe, floating
from convjax.ops.sums import spread_along


def dense(x: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """Multiplies the last axis of `x` by `kernel`, and adds `bias`.

    x: [..., channels]; its dtype is that of the result, to which kernel and bias are cast.
    kernel: [channels, features]. bias: [features].

    Returns [..., features]. Raises ValueError where the shapes do not fit.

    >>> dense(jnp.ones((2, 5, 3)), jnp.ones((3, 4)), jnp.zeros(4)).shape
    (2, 5, 4)
    """
    x, kernel = floating("dense", x), jnp.asarray(kernel)
    if kernel.ndim != 2 or x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"dense: kernel {describe(kernel)} must be [channels, features] with the channels of "
            f"x {describe(x)}: for images, flatten or pool x first"
        )
    # In rows, for then the gradient of the kernel is a product of two matrices as they lie in
    # memory: XLA would copy others into another order first.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = lax.dot(rows, kernel.astype(x.dtype)).reshape(*x.shape[:-1], kernel.shape[-1])
    return y if bias is None else y + spread_along("dense", "bias", bias, y)
