"""Metrics as sums and counts, which add up over steps, batches and devices; means come last."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array


class Metrics(NamedTuple):
    """What a number of examples gave: arrays on the device, numbers on the host.

    loss: the sum of their losses.
    correct: how many were classified correctly.
    count: how many they were.
    skipped: how many steps of training were skipped, whose examples are not among them.
    """

    loss: Any = 0.0
    correct: Any = 0
    count: Any = 0
    skipped: Any = 0


def correct(logits: Array, labels: Array, mask: Array | None = None) -> Array:
    """How many examples have their greatest logit at the label, int32.

    labels: int `[batch]`, or probabilities `[batch, classes]`, of which the greatest counts. Of
    equal ones the first is taken to be the greatest. An example with a NaN among its logits is
    never correct.

    >>> int(correct(jnp.array([[0.0, 1.0], [2.0, 1.0], [jnp.nan, 1.0]]), jnp.array([1, 0, 0])))
    2
    """
    if labels.ndim == logits.ndim:
        labels = jnp.argmax(labels, -1)
    hit = (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)
    return (hit if mask is None else hit & mask).sum(dtype=jnp.int32)


def means(metrics: Metrics) -> dict[str, Any]:
    """Loss and accuracy of an example, correct ones and count, of metrics on the host.

    >>> means(Metrics(loss=3.0, correct=1, count=4))
    {'loss': 0.75, 'accuracy': 0.25, 'correct': 1, 'count': 4}

    Without examples loss and accuracy are NaN.
    """
    loss, correct, count, _ = metrics
    return {
        "loss": loss / count if count else math.nan,
        "accuracy": correct / count if count else math.nan,
        "correct": correct,
        "count": count,
    }


def to_host(metrics: Metrics) -> Metrics:
    """The same as Python numbers; waits for the device."""
    loss, *counts = metrics
    return Metrics(float(loss), *map(int, counts))


def add(one: Metrics, other: Metrics) -> Metrics:
    """What both gave together."""
    return Metrics(*(a + b for a, b in zip(one, other)))
