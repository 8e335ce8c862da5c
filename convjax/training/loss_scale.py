"""Dynamic loss scaling: keeps small gradients from vanishing in float16.

    grads = jax.grad(lambda params: loss(params) * scale.scale)(params)
    grads = jax.tree.map(lambda grad: grad / scale.scale, grads)    # in float32
    scale = follow(scale, good=watch.finite(grads))

A step that is not good is skipped, as `convjax.training.watch` does.

The scale is a power of two, so that multiplying and dividing by it round nothing. Micikevicius et
al., Mixed Precision Training, 2018 (arXiv 1710.03740), with the numbers of `torch.amp.GradScaler`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class LossScale(NamedTuple):
    """What the loss is multiplied by, and for how many steps on end that went well.

    scale: float32, at least 1.
    good_steps: int32, since the scale changed.
    """

    scale: Array
    good_steps: Array


def start() -> LossScale:
    """The scale before the first step: 65,536.

    >>> start().scale.item()
    65536.0
    """
    return LossScale(jnp.asarray(np.float32(2**16)), jnp.asarray(np.int32(0)))


def follow(scale: LossScale, good: Array, *, every: int = 2000) -> LossScale:
    """The scale for the next step: halved after a bad one, doubled after `every` good ones.

    It stays between 1 and the largest power of two in float32.

    good: whether the gradients of this step were finite.
    """
    steps = jnp.where(good, scale.good_steps + 1, 0)
    grown = jnp.where(scale.scale < _LARGEST, scale.scale * 2, scale.scale)
    shrunk = jnp.maximum(scale.scale / 2, 1)
    new = jnp.where(good, jnp.where(steps == every, grown, scale.scale), shrunk)
    return LossScale(new, jnp.where(steps == every, 0, steps))


_LARGEST = 2.0**127
