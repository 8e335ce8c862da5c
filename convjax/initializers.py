"""Initialisers: `(key, shape, dtype) -> Array`, the first values of a parameter.

The fans of a kernel `[*window, in, out]` are window * in and window * out. Outside of `jit` and its
like NumPy draws the numbers that JAX would, which compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from convjax import threefry

Initializer = Callable[..., Array]  # (key, shape, dtype=float32) -> Array


def constant(value: float | Array) -> Initializer:
    """Every element is `value`."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        if isinstance(key, Tracer) or isinstance(value, Tracer):
            return jnp.full(shape, value, dtype)
        return jax.device_put(np.full(shape, value, dtype))

    return init


zeros = constant(0.0)
ones = constant(1.0)


def normal(stddev: float) -> Initializer:
    """A normal distribution around zero."""
    return _scaled(_NORMAL, lambda shape: stddev)


def truncated_normal(stddev: float) -> Initializer:
    """A normal distribution around zero, cut at two standard deviations, of that deviation."""
    return _scaled(_TRUNCATED, lambda shape: stddev)


def uniform(limit: float) -> Initializer:
    """A uniform distribution over [-limit, limit)."""
    return _scaled(_UNIFORM, lambda shape: limit)


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in",
    distribution: Literal["normal", "truncated_normal", "uniform"] = "normal",
) -> Initializer:
    """Variance `scale / fan`, so that a signal keeps its size from layer to layer.

    Raises:
        ValueError: for an unknown mode or distribution, and for a shape of less than two axes.
    """
    samplers = {"normal": _NORMAL, "truncated_normal": _TRUNCATED, "uniform": _UNIFORM}
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


class _Sampler(NamedTuple):
    """Numbers of one distribution: by JAX, `(key, shape)`, and the same by NumPy, `(key, size)`."""

    draw: Callable[[Array, Sequence[int]], Array]
    draw_on_host: Callable[[np.ndarray, int], np.ndarray]


def _scaled(sampler: _Sampler, spread: Callable[[Sequence[int]], float]) -> Initializer:
    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        shape = tuple(shape)
        if not _is_for_the_host(key):
            return (sampler.draw(key, shape) * spread(shape)).astype(dtype)
        data = np.asarray(jax.random.key_data(key))
        values = sampler.draw_on_host(data, math.prod(shape)) * np.float32(spread(shape))
        return jax.device_put(values.reshape(shape).astype(dtype))

    return init


def _is_for_the_host(key: Array) -> bool:
    """Whether NumPy can draw what JAX would: a key of JAX's own kind, outside of `jit`."""
    return (
        not isinstance(key, Tracer)
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        and str(jax.random.key_impl(key)) == "threefry2x32"
        and jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    )


# A normal distribution that is cut at 2 has the deviation 0.8796: undone, so that it has 1.
_CUT = 0.87962566103423978


def _truncated(key: Array, shape: Sequence[int]) -> Array:
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) / _CUT


def _truncated_on_host(key: np.ndarray, size: int) -> np.ndarray:
    return threefry.truncated_normal(key, size) / np.float32(_CUT)


def _symmetric(key: Array, shape: Sequence[int]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def _symmetric_on_host(key: np.ndarray, size: int) -> np.ndarray:
    return threefry.uniform(key, size, -1.0, 1.0)


_NORMAL = _Sampler(jax.random.normal, threefry.normal)
_TRUNCATED = _Sampler(_truncated, _truncated_on_host)
_UNIFORM = _Sampler(_symmetric, _symmetric_on_host)

he_normal = variance_scaling(2.0)  # He et al. 2015, for layers before a ReLU
he_uniform = variance_scaling(2.0, distribution="uniform")
lecun_normal = variance_scaling(1.0)  # LeCun et al. 1998
glorot_normal = variance_scaling(1.0, "fan_avg")  # Glorot and Bengio 2010
glorot_uniform = variance_scaling(1.0, "fan_avg", "uniform")
