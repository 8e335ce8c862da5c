"""Initialisers: `(key, shape, dtype) -> Array`, the first values of a parameter.

The fans of a kernel `[*window, in, out]` are window * in and window * out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

Initializer = Callable[..., Array]  # (key, shape, dtype=float32) -> Array


def constant(value: float) -> Initializer:
    """Every element is `value`."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        if isinstance(key, Tracer):
            return jnp.full(shape, value, dtype)
        return jnp.asarray(np.full(shape, value, dtype))  # Made by NumPy: nothing to compile.

    return init


zeros = constant(0.0)
ones = constant(1.0)


def normal(stddev: float) -> Initializer:
    """A normal distribution around zero."""
    return _scaled(jax.random.normal, lambda shape: stddev)


def truncated_normal(stddev: float) -> Initializer:
    """A normal distribution around zero, cut at two standard deviations, of that deviation."""
    return _scaled(_unit_truncated, lambda shape: stddev)


def uniform(limit: float) -> Initializer:
    """A uniform distribution over [-limit, limit)."""
    return _scaled(_symmetric, lambda shape: limit)


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in",
    distribution: Literal["normal", "truncated_normal", "uniform"] = "normal",
) -> Initializer:
    """Variance `scale / fan`, so that a signal keeps its size from layer to layer.

    Raises:
        ValueError: for an unknown mode or distribution, and for a shape of less than two axes.
    """
    samplers = {
        "normal": jax.random.normal,
        "truncated_normal": _unit_truncated,
        "uniform": _symmetric,
    }
    if mode not in ("fan_in", "fan_out", "fan_avg") or distribution not in samplers:
        raise ValueError(
            f"variance_scaling knows the modes fan_in, fan_out, fan_avg and the distributions "
            f"{', '.join(samplers)}, not {mode!r} and {distribution!r}"
        )

    def spread(shape: Sequence[int]) -> float:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        variance = scale / max(1.0, fan)
        return math.sqrt(3 * variance if distribution == "uniform" else variance)

    return _scaled(samplers[distribution], spread)


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Fan-in and fan-out of a kernel `[*window, in, out]`."""
    if len(shape) < 2:
        raise ValueError(f"a kernel has at least two axes [in, out], not the shape {tuple(shape)}")
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def _scaled(sampler: Callable[..., Array], spread: Callable[[Sequence[int]], float]) -> Initializer:
    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        shape = tuple(shape)
        if isinstance(key, Tracer):
            return (sampler(key, shape) * spread(shape)).astype(dtype)
        # Random bits are a function of key and position, so that the first numbers of a longer
        # draw are those of a shorter one: one program a power of two, not one a shape.
        size = math.prod(shape)
        flat = _flat(key, sampler, 1 << max(10, (size - 1).bit_length()))
        values = np.asarray(flat)[:size].reshape(shape) * np.float32(spread(shape))
        return jnp.asarray(values, dtype)

    return init


@functools.partial(jax.jit, static_argnums=(1, 2))
def _flat(key: Array, sampler: Callable[..., Array], size: int) -> Array:
    return sampler(key, (size,))


def _unit_truncated(key: Array, shape: Sequence[int]) -> Array:
    # The cut at 2 leaves a deviation of 0.8796: undone, so that the result has 1.
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) / 0.87962566103423978


def _symmetric(key: Array, shape: Sequence[int]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


he_normal = variance_scaling(2.0)  # He et al. 2015, for layers before a ReLU
he_uniform = variance_scaling(2.0, distribution="uniform")
lecun_normal = variance_scaling(1.0)  # LeCun et al. 1998
glorot_normal = variance_scaling(1.0, "fan_avg")  # Glorot and Bengio 2010
glorot_uniform = variance_scaling(1.0, "fan_avg", "uniform")
