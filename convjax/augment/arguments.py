"""What every augmentation does first: check its arguments, and bring them to one form."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from convjax.ops.arguments import describe

Number = float | Array  # a Python number, or a traced scalar that a sweep varies
Pixel = float | Sequence[float] | np.ndarray | Array  # one value, or one a channel

# -- Images ----------------------------------------------------------------------------------------


def batch(op: str, images: ArrayLike) -> Array:
    """The images as a JAX array `[batch, height, width, channels]`, of bytes or floating."""
    images = jnp.asarray(images)
    if images.ndim != 4:
        raise ValueError(
            f"{op} needs images [batch, height, width, channels], got {describe(images)}: "
            "give a single image as images[None]"
        )
    if not images.size:
        raise ValueError(f"{op} needs an image or more, with pixels, got {describe(images)}")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"{op} takes images of uint8, or floating ones, got {describe(images)}: bring them to "
            "0 to 255 and to uint8, such as those of uint16 by (images // 257).astype(jnp.uint8)"
        )
    return images


def colored(op: str, images: ArrayLike) -> Array:
    """The images as of `batch`; a ValueError unless grey (1 channel) or RGB (3), and in range."""
    images = batch(op, images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{op} knows images of 1 channel (grey) or 3 (RGB), got {describe(images)}: "
            "augment before other channels are added"
        )
    # Traced values cannot be looked at.
    if images.dtype != jnp.uint8 and images.size and not isinstance(images, Tracer):
        low, high = float(images.min()), float(images.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"{op} takes floating images of values in [0, 1], got {describe(images)} from "
                f"{low:g} to {high:g}: augment before they are normalised, or give uint8"
            )
    return images


_ROUNDING = 1 / 512  # They are rounded to 255ths anyway.


def each(op: str, name: str, value: ArrayLike, images: Array, dtype: Any = jnp.float32) -> Array:
    """A scalar, or one number an image, as `[batch]`."""
    value = jnp.asarray(value).astype(dtype)
    if value.shape not in ((), images.shape[:1]):
        raise ValueError(
            f"{op}: {name} must be one number, or one an image, got {describe(value)} "
            f"for {describe(images)}"
        )
    return jnp.broadcast_to(value, images.shape[:1])


def along(values: Array) -> Array:
    """One number an image, `[batch]`, in a shape that broadcasts against the images."""
    return values[:, None, None, None]


def pixel(op: str, name: str, value: Pixel, images: Array) -> Array:
    """One value, or one a channel, as `[channels]` in the images' dtype."""
    if not isinstance(value, Tracer):
        value = np.asarray(filling(op, name, value))
        whole_levels = (value >= 0) & (value <= 255) & (value == np.round(value))
        if images.dtype == jnp.uint8 and not whole_levels.all():
            raise ValueError(
                f"{op}: {name}={value.tolist()} is no level of {describe(images)}: "
                "give whole numbers from 0 to 255"
            )
    value = jnp.asarray(value).astype(images.dtype)
    if value.shape not in ((), (1,), images.shape[-1:]):
        raise ValueError(
            f"{op}: {name} must be one number, or one a channel, got {describe(value)} "
            f"for {describe(images)}"
        )
    return jnp.broadcast_to(value, images.shape[-1:])


# -- Choices ---------------------------------------------------------------------------------------


def within(op: str, name: str, value: Number, low: float = 0.0, high: float = math.inf) -> Number:
    """The value; an error if it is no number, or a Python one outside of [low, high].

    Traced ones pass.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.ndarray | Array):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if isinstance(value, numbers.Real):
        if not low <= value <= min(high, _LARGEST):
            between = f"between {low:g} and {high:g}" if high < math.inf else f"of {low:g} or more"
            raise ValueError(f"{op}: {name} must be {between}, got {value!r}")
    elif jnp.ndim(value):
        raise ValueError(
            f"{op}: {name} must be one number, got {describe(jnp.asarray(value))}: "
            "for many, jax.vmap"
        )
    return value


_LARGEST = float(np.finfo(np.float32).max)


def probability(op: str, value: Number, name: str = "p") -> Number:
    """The value; an error if it is no number, or a Python one outside of [0, 1]."""
    return within(op, name, value, 0, 1)


def steps(op: str, name: str, value: Number, high: float = math.inf) -> Number:
    """The value; an error unless it is whole and between 0 and `high`. Traced ones pass."""
    within(op, name, value, 0, high)
    if isinstance(value, numbers.Real) and value % 1 != 0:
        raise ValueError(f"{op}: {name} must be a whole number, got {value!r}")
    return value


def whole(op: str, name: str, value: int, least: int = 1) -> int:
    """The value; an error unless it is a whole number of `least` or more, and not traced."""
    if isinstance(value, Array):
        raise TypeError(f"{op}: {name} decides on what is compiled, and cannot be traced")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{op}: {name} must be a whole number of {least} or more, got {value!r}")
    return int(value)


def interval(
    op: str, name: str, value: Sequence[Number], low: float = 0.0, high: float = math.inf
) -> tuple[Number, Number]:
    """A pair (least, most); an error if its Python numbers are out of range or out of order."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{op}: {name} must be a pair (least, most), got {value!r}")
    least, most = (within(op, name, end, low, high) for end in value)
    if isinstance(least, numbers.Real) and isinstance(most, numbers.Real) and least > most:
        raise ValueError(f"{op}: {name} goes from least to most, got {value!r}: swap the two")
    return least, most


def filling(op: str, name: str, value: Pixel) -> Pixel:
    """The value; a TypeError unless it is a number, or a sequence of them, one a channel."""
    if isinstance(value, Array):
        return value
    entries = value if isinstance(value, Sequence | np.ndarray) else (value,)
    if not all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in entries):
        raise TypeError(f"{op}: {name} must be a number, or one a channel, got {value!r}")
    return value


def one_of(op: str, name: str, value: str, choices: Sequence[str]) -> str:
    """The value; a ValueError unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{op}: {name}={value!r} is unknown: take {', '.join(choices)}")
    return value


def is_key(key: Any) -> bool:
    """Whether these are JAX's typed keys."""
    return hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


# -- Drawn numbers ---------------------------------------------------------------------------------


def between(uniform: Array, low: Number, high: Number) -> Array:
    """Numbers over [0, 1), stretched to [low, high)."""
    low, high = jnp.float32(low), jnp.float32(high)
    return low + (high - low) * uniform


def below(uniform: Array, count: ArrayLike) -> Array:
    """Numbers over [0, 1) as whole numbers 0 to count - 1, int32, each equally likely."""
    count = jnp.asarray(count)
    drawn = jnp.floor(uniform * count.astype(jnp.float32)).astype(jnp.int32)
    return jnp.minimum(drawn, count.astype(jnp.int32) - 1)
