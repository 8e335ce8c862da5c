"""The images that a study goes by, in batches of one shape, and sums over them.

batches = sampled(model, "train", 1000)                # or batches_of(images, labels, 100)
loss = mean_loss(net, state, batches, prepare=model.prepare)
loss(params)                                           # of all of them, each counted once
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.data.maker import seen
from convjax.data.views import NUMBERS
from convjax.insight.compiled import compiled
from convjax.layer import Context, Layer, Params, State
from convjax.trained import Trained
from convjax.training.feed import OnDisk
from convjax.training.loss import Loss, cross_entropy
from convjax.training.step import Batch, Prepare

BATCH = 250  # images at once, unless a caller says otherwise


def batches_of(images: Any, labels: Any, size: int = BATCH) -> list[Batch]:
    """Images in batches of one size, on the device; what fills up the last is masked out.

    images: `[count, *spatial, channels]`. labels: int `[count]`.

    >>> [int(batch.mask.sum()) for batch in batches_of(np.zeros((5, 2, 2, 1)), np.zeros(5), 3)]
    [3, 2]

    Raises:
        ValueError: if there are no images, or not as many labels.
    """
    count = len(images)
    if not count or len(labels) != count:
        raise ValueError(f"a study needs as many labels as images: {count}, {len(labels)}")
    size = min(size, count)
    found = []
    for first in range(0, count, size):
        numbers = np.arange(first, first + size)
        mask, numbers = numbers < count, np.minimum(numbers, count - 1)
        own = jnp.asarray(np.asarray(labels)[numbers], jnp.int32)
        found.append(Batch(jnp.asarray(np.asarray(images)[numbers]), own, jnp.asarray(mask)))
    return found


def sampled(
    model: Trained, split: str, count: int, *, seed: int = 0, size: int = BATCH
) -> list[Batch]:
    """So many images of a split of the run's data, drawn by the seed, or all if there are fewer.

    They are in memory, uint8, as evaluation sees them.
    """
    source, total = model.split(split).source, model.split(split).size
    numbers = np.random.default_rng(seed).permutation(total)[:count]
    if isinstance(source, OnDisk):
        none = np.zeros(NUMBERS)  # as in an evaluation
        pairs = [seen(source.examples, source.view, int(number), none) for number in numbers]
        return batches_of(np.stack([pair[0] for pair in pairs]), [p[1] for p in pairs], size)
    images, labels = (np.asarray(each)[numbers] for each in source)
    return batches_of(images, labels, size)


def counted(batches: Iterable[Batch]) -> int:
    """How many images count."""
    return sum(int(_mask(batch).sum()) for batch in batches)


def mean_loss(
    net: Layer,
    state: State,
    batches: Sequence[Batch],
    *,
    prepare: Prepare = jnp.asarray,
    loss: Loss = cross_entropy,
) -> Callable[[Params], float]:
    """The mean loss over all images in evaluation, as a function of the parameters."""

    def mean(params: Params) -> float:
        sums = [summed(net, prepare, loss, params, state, batch) for batch in batches]
        total, weight = (sum(map(float, each)) for each in zip(*sums))
        return total / weight

    return mean


@compiled("net", "prepare", "loss")
def summed(
    net: Layer, prepare: Prepare, loss: Loss, params: Params, state: State, batch: Batch
) -> tuple[Array, Array]:
    """The summed loss of a batch in evaluation, and the weight of its images, float32."""
    logits, _ = net.apply(params, state, prepare(batch.images), Context())
    total, weight = loss(logits, batch.labels, batch.mask, 0.0)
    return total, weight.astype(jnp.float32)


def added(parts: Iterable[Any]) -> Any:
    """The sum of pytrees that are alike, leaf by leaf."""
    return functools.reduce(lambda one, other: jax.tree.map(jnp.add, one, other), parts)


def _mask(batch: Batch) -> np.ndarray:
    return np.ones(len(batch.labels), bool) if batch.mask is None else np.asarray(batch.mask)
