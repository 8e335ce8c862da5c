"""Learning-rate schedules: pure functions from the step to a share of the peak, from 0 to 1.

    factor = make("cosine", steps=1000, warmup=100)
    factor(0), factor(99), factor(550)                      # 0.01, 1.0, 0.5

Steps count from 0. Over the `warmup` first steps the share rises linearly to 1, without wasting a
step at 0; the rest of the steps belong to the schedule itself.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from convjax.config import ConfigError
from convjax.names import nearest

Schedule = Callable[[ArrayLike], Array]


def make(name: str, *, steps: int, warmup: int = 0) -> Schedule:
    """The schedule of that name over that many steps, the linear warm-up included.

    Raises:
        ConfigError: for a name that is neither in `SCHEDULES` nor `one_cycle`.
    """
    if name == "one_cycle":
        return one_cycle(steps, warmup or round(0.3 * steps))
    if name not in SCHEDULES:
        known = nearest(name, (*SCHEDULES, "one_cycle"))
        raise ConfigError(f"config.optimizer.schedule is {name!r}: {known}")

    def factor(step: ArrayLike) -> Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
        return jnp.where(step < warmup, (step + 1) / max(warmup, 1), SCHEDULES[name](progress))

    return factor


def constant(progress: Array) -> Array:
    """1 throughout."""
    return jnp.ones_like(progress)


def linear(progress: Array) -> Array:
    """From 1 to 0 in a straight line."""
    return 1 - progress


def cosine(progress: Array) -> Array:
    """From 1 to 0 along half a cosine (Loshchilov and Hutter, SGDR, 2017)."""
    return (1 + jnp.cos(jnp.pi * progress)) / 2


def step(progress: Array) -> Array:
    """Divided by ten at one half and at three quarters (He et al. 2016, on CIFAR-10)."""
    return jnp.where(progress < 0.5, 1.0, jnp.where(progress < 0.75, 0.1, 0.01))


def one_cycle(steps: int, rise: int) -> Schedule:
    """From 1/25 up to 1 over `rise` steps and down to 1/250,000, along half cosines.

    Smith and Topin, Super-convergence, 2018, with the shape that fastai gave it; its warm-up is
    the rise. As `optax.cosine_onecycle_schedule`.
    """
    low, end = 1 / 25, 1 / 25e4

    def factor(step: ArrayLike) -> Array:
        step = jnp.asarray(step, jnp.float32)
        up = 1 - cosine(jnp.clip(step / max(rise, 1), 0, 1))
        down = cosine(jnp.clip((step - rise) / max(steps - rise, 1), 0, 1))
        return jnp.where(step < rise, low + (1 - low) * up, end + (1 - end) * down)

    return factor


# What becomes of the share after the warm-up, from progress 0 to 1.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "step": step,
}
