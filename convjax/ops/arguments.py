"""What every op does with its arguments first: check them, and bring them to one form."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

Sizes = int | Sequence[int]  # one for all spatial dimensions, or one for each


def floating(op: str, x: ArrayLike) -> Array:
    """`x` as a JAX array; a TypeError if it does not hold floating-point numbers."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{op} computes in the dtype of x, which must be floating, got {describe(x)}: "
            "convert x first, as in x.astype(jnp.float32)"
        )
    return x


def spatial(op: str, x: Array) -> tuple[int, ...]:
    """The spatial shape of `x` [batch, *spatial, channels]; a ValueError where there is none."""
    if x.ndim < 3:
        raise ValueError(
            f"{op} needs x [batch, *spatial, channels] with a spatial dimension or more, "
            f"got {describe(x)}: give a single example as x[None]"
        )
    return x.shape[1:-1]


def each_dimension(op: str, name: str, value: Sizes, rank: int, least: int = 1) -> tuple[int, ...]:
    """`value` once for each of `rank` spatial dimensions; a ValueError names what does not fit.

    >>> each_dimension("conv", "stride", 2, rank=3)
    (2, 2, 2)
    """
    if isinstance(value, numbers.Integral):
        sizes = (int(value),) * rank
    elif isinstance(value, Sequence) and all(isinstance(size, numbers.Integral) for size in value):
        sizes = tuple(int(size) for size in value)
    else:
        raise TypeError(f"{op}: {name} must be an int or one int a dimension, got {value!r}")
    if len(sizes) != rank:
        raise ValueError(
            f"{op}: {name}={value!r} has {len(sizes)} entries, but x has {rank} spatial "
            f"dimension{'s' if rank > 1 else ''}: give one int, or {rank}"
        )
    if any(size < least for size in sizes):
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return sizes


def along(op: str, name: str, values: ArrayLike, x: Array, axes: Sequence[int] = (-1,)) -> Array:
    """`values`, one for each index of `axes` of `x`, in a shape that broadcasts against `x`."""
    values = jnp.asarray(values)
    axes = [axis % x.ndim for axis in axes]
    expected = tuple(x.shape[axis] for axis in axes)
    if values.shape != expected:
        raise ValueError(f"{op}: {name} must have the shape {expected}, got {describe(values)}")
    return jnp.expand_dims(values, [axis for axis in range(x.ndim) if axis not in axes])


def wide_dtype(x: Array) -> np.dtype:
    """The dtype that sums over `x` are made in: float32, or float64 for float64."""
    return np.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def describe(x: Array) -> str:
    """Dtype and shape in the words of JAX.

    >>> describe(jnp.zeros((8, 3)))
    'float32[8,3]'
    """
    return f"{x.dtype.name}[{','.join(str(size) for size in x.shape)}]"
