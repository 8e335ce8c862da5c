"""Losses as a sum and a count over examples, so that batches and devices add up exactly.

    total, count = cross_entropy(logits, labels, mask)
    mean = total / count

A mean is taken only where all sums have come together.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

# (logits, labels, mask, smoothing) -> (sum over the examples, number of examples)
Loss = Callable[[Array, Array, Array | None, float | Array], tuple[Array, Array]]


def cross_entropy(
    logits: Array, labels: Array, mask: Array | None = None, smoothing: float | Array = 0.0
) -> tuple[Array, Array]:
    """The sum of softmax cross-entropies in nats, float32, and the number of examples, int32.

    logits: `[batch, classes]`, of any floating dtype; the sum is taken in float32.
    labels: int32 `[batch]`. A label outside `range(classes)` makes the loss NaN.
    mask: bool `[batch]`, True for what counts; None counts all.
    smoothing: the share of a label's weight that is spread evenly over all classes (Szegedy et al.,
        Rethinking the Inception architecture, 2016; as `torch.nn.CrossEntropyLoss`).

    >>> total, count = cross_entropy(jnp.zeros((3, 10)), jnp.zeros(3, jnp.int32))
    >>> round(float(total), 4), int(count)                              # 3 times log(10)
    (6.9078, 3)
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    classes = logits.shape[-1]
    # A negative index would count from the end, and train the last class.
    index = jnp.where(labels < 0, classes, labels)[:, None]
    of_label = jnp.take_along_axis(logs, index, axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]
    smoothing = jnp.asarray(smoothing, jnp.float32)
    # A class at -inf (masked out by the user) must not make 0 * inf of the plain loss.
    of_all = jnp.where(smoothing > 0, logs.mean(-1), 0)
    each = -(1 - smoothing) * of_label - smoothing * of_all
    if mask is None:
        return each.sum(), jnp.asarray(len(labels), jnp.int32)
    return jnp.where(mask, each, 0).sum(), mask.sum(dtype=jnp.int32)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}
