"""Activations: functions of each number by itself, and of the channels together (softmax, glu).

Those that JAX has are JAX's own. All keep the dtype of `x`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import (
    celu,
    elu,
    glu,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from jax.typing import ArrayLike

from convjax.ops.arguments import along, floating

__all__ = [
    "celu",
    "elu",
    "gelu",
    "gelu_tanh",
    "glu",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
    "threshold",
]


def gelu(x: ArrayLike) -> Array:
    """Returns `x` times the normal distribution function of `x`, by the error function.

    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016 (arXiv 1606.08415); PyTorch's default.
    """
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: ArrayLike) -> Array:
    """Approximates `gelu` by a tanh, to about 0.0005: PyTorch's `approximate="tanh"`."""
    return jax.nn.gelu(x, approximate=True)


def hard_sigmoid(x: ArrayLike, slope: float = 1 / 6, offset: float = 0.5) -> Array:
    """Returns `slope * x + offset`, clipped to [0, 1].

    The default is that of PyTorch and of MobileNetV3, `relu6(x + 3) / 6`. ONNX calls the two
    alpha and beta, and its default for alpha is 0.2, as Keras 2's was.

    >>> hard_sigmoid(jnp.array([-4.0, 0.0, 4.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    x = floating("hard_sigmoid", x)
    return jnp.clip(slope * x + offset, 0, 1)


def hard_swish(x: ArrayLike) -> Array:
    """Returns `x * hard_sigmoid(x)`.

    Howard et al., Searching for MobileNetV3, 2019 (arXiv 1905.02244).
    """
    return jax.nn.hard_silu(x)


def prelu(x: ArrayLike, slope: ArrayLike) -> Array:
    """Returns `x` where it is positive, and `slope * x` elsewhere, with a slope that is learned.

    He et al., Delving Deep into Rectifiers, 2015 (arXiv 1502.01852).

    x: [..., channels]. slope: one number, or [channels]. Raises ValueError for another shape.

    >>> prelu(jnp.array([-2.0, 2.0]), 0.25).tolist()
    [-0.5, 2.0]
    """
    x = floating("prelu", x)
    slope = jnp.asarray(slope, x.dtype)
    slope = along("prelu", "slope", slope, x) if slope.ndim else slope
    return jnp.where(x >= 0, x, slope * x)


def softsign(x: ArrayLike) -> Array:
    """Returns `x / (1 + |x|)`."""
    return jax.nn.soft_sign(x)


def threshold(x: ArrayLike, limit: float, value: float = 0.0) -> Array:
    """Returns `x` where it is above `limit`, and `value` elsewhere, as `torch.nn.Threshold` does.

    >>> threshold(jnp.array([0.5, 1.5]), 1.0).tolist()
    [0.0, 1.5]
    """
    x = floating("threshold", x)
    return jnp.where(x > limit, x, value)
