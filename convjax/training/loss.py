"""Losses as a sum and a count over examples, so that batches and devices add up exactly.

    total, count = cross_entropy(logits, labels, mask)
    mean = total / count

A mean is taken only where all sums have come together. Labels are numbers of classes, or
probabilities of all of them, as mixup and CutMix give. What else a loss takes are numbers: they
may be traced, so that a new one compiles nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from convjax import config
from convjax.config import ConfigError
from convjax.names import nearest

# (logits, labels, mask, smoothing, **numbers) -> (sum over the examples, number of examples)
Loss = Callable[..., tuple[Array, Array]]


def cross_entropy(
    logits: Array,
    labels: Array,
    mask: Array | None = None,
    smoothing: float | Array = 0.0,
    *,
    class_weights: Array | None = None,
) -> tuple[Array, Array]:
    """The sum of softmax cross-entropies in nats, float32, and the number of examples, int32.

    logits: `[batch, classes]`, of any floating dtype; the sum is taken in float32.
    labels: int32 `[batch]`, or probabilities `[batch, classes]`. A label outside `range(classes)`
        makes the loss NaN.
    mask: bool `[batch]`, True for what counts; None counts all.
    smoothing: the share of a label's weight that is spread evenly over all classes (Szegedy et al.,
        Rethinking the Inception architecture, 2016; as `torch.nn.CrossEntropyLoss`).
    class_weights: float32 `[classes]`, by which the terms of each class are multiplied. The count
        is then the sum of the weights of the labels, float32, so that the mean is the weighted one
        of PyTorch; of probabilities it stays the number of examples, there as here.

    >>> total, count = cross_entropy(jnp.zeros((3, 10)), jnp.zeros(3, jnp.int32))
    >>> round(float(total), 4), int(count)                              # 3 times log(10)
    (6.9078, 3)
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    if labels.ndim == 1 and class_weights is None:
        each = _cross_entropies(logs, labels, smoothing)
    else:
        terms = -_times(targets(labels, logits.shape[-1], smoothing), logs)
        each = _weighted(terms, class_weights).sum(-1)
    return _total(each, mask, _of_labels(labels, class_weights))


def binary_cross_entropy(
    logits: Array,
    labels: Array,
    mask: Array | None = None,
    smoothing: float | Array = 0.0,
    *,
    target_threshold: float | Array | None = None,
    class_weights: Array | None = None,
) -> tuple[Array, Array]:
    """As `cross_entropy`, of one sigmoid a class: the mean over the classes of each example.

    Every class is told apart from the rest by itself (Wightman, Touvron and Jégou, ResNet strikes
    back, 2021; as timm's `BinaryCrossEntropy`). The mean over classes makes gradients as many
    times smaller: Adam and LAMB do not mind, SGD wants a learning rate that is larger.

    target_threshold: targets above it count as 1 and all others as 0, after the smoothing.
    class_weights: multiply the terms of each class; the count stays the number of examples.
    """
    wanted = targets(labels, logits.shape[-1], smoothing)
    if target_threshold is not None:
        hard = (wanted > jnp.asarray(target_threshold, jnp.float32)).astype(jnp.float32)
        wanted = jnp.where(jnp.isnan(wanted), wanted, hard)
    terms = optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), wanted)
    return _total(_weighted(terms, class_weights).mean(-1), mask)


def focal(
    logits: Array,
    labels: Array,
    mask: Array | None = None,
    smoothing: float | Array = 0.0,
    *,
    gamma: float | Array = 2.0,
    class_weights: Array | None = None,
) -> tuple[Array, Array]:
    """As `cross_entropy`, of a softmax, each term times `(1 - probability) ** gamma`.

    So what the network is sure of counts for less (Lin et al., Focal loss for dense object
    detection, 2017, in the form for classes that exclude each other). With gamma 0 it is the
    cross-entropy. The alpha of the paper is `class_weights`, as in `cross_entropy`.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    # Never quite 0: the slope of 0 ** gamma is infinite for a gamma below 1.
    doubt = jnp.maximum(-jnp.expm1(logs), jnp.finfo(jnp.float32).tiny)
    weight = targets(labels, logits.shape[-1], smoothing) * doubt ** jnp.asarray(gamma, jnp.float32)
    each = _weighted(-_times(weight, logs), class_weights).sum(-1)
    return _total(each, mask, _of_labels(labels, class_weights))


def sigmoid_focal(
    logits: Array,
    labels: Array,
    mask: Array | None = None,
    smoothing: float | Array = 0.0,
    *,
    gamma: float | Array = 2.0,
    alpha: float | Array = 0.25,
    class_weights: Array | None = None,
) -> tuple[Array, Array]:
    """As `focal`, of one sigmoid a class: the sum over the classes of each example.

    Lin et al. 2017, equation 5, with the values of the paper; as `torchvision.ops`. It divides by
    the number of objects, which is that of the examples here.

    alpha: the weight of the class of the label; all others have `1 - alpha`.
    class_weights: multiply the terms of each class; the count stays the number of examples.
    """
    terms = optax.losses.sigmoid_focal_loss(
        logits.astype(jnp.float32),
        targets(labels, logits.shape[-1], smoothing),
        alpha=jnp.asarray(alpha, jnp.float32),
        gamma=jnp.asarray(gamma, jnp.float32),
    )
    return _total(_weighted(terms, class_weights).sum(-1), mask)


LOSSES: dict[str, Loss] = {
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "focal": focal,
    "sigmoid_focal": sigmoid_focal,
}


def targets(labels: Array, classes: int, smoothing: float | Array = 0.0) -> Array:
    """The probability that each class should have, float32 `[batch, classes]`.

    labels: int `[batch]`, or probabilities `[batch, classes]`, which are smoothed alike.

    >>> targets(jnp.array([1]), 2, 0.5)
    Array([[0.25, 0.75]], dtype=float32)

    Raises:
        ValueError: for labels of another shape.
    """
    if labels.ndim == 1:
        known = (labels >= 0) & (labels < classes)
        share = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
        share = jnp.where(known[:, None], share, jnp.nan)
    elif labels.shape[1:] == (classes,):
        share = labels.astype(jnp.float32)
    else:
        raise ValueError(
            f"labels are {labels.dtype}[{','.join(map(str, labels.shape))}]: give numbers of "
            f"classes, [batch], or probabilities, [batch,{classes}]"
        )
    smoothing = jnp.asarray(smoothing, jnp.float32)
    return share * (1 - smoothing) + smoothing / classes


def numbers(chosen: config.Loss, classes: int) -> dict[str, Any]:
    """The keywords of a config's loss, checked, for `hyper_of`.

    Raises:
        ConfigError: for a keyword that the loss does not take, with the nearest right one, a value
            out of range, or weights of another number than the classes.
    """
    if chosen.name not in LOSSES:
        raise ConfigError(f"config.loss.name is {chosen.name!r}: {nearest(chosen.name, LOSSES)}")
    known = set([*inspect.signature(LOSSES[chosen.name]).parameters][4:]) - {"class_weights"}
    for key, value in chosen.args.items():
        if key not in known:
            raise ConfigError(
                f"config.loss.args has {key!r}, which {chosen.name} does not take: "
                f"{nearest(key, known)}"
            )
        most = _LIMITS[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            range_ = f"from 0 to {most:g}" if math.isfinite(most) else "of 0 or more"
            raise ConfigError(f"config.loss.args.{key} is {value!r}: give a number {range_}")
    weights = chosen.class_weights
    if weights and len(weights) != classes:
        raise ConfigError(
            f"config.loss.class_weights has {len(weights)} numbers: the data have {classes} classes"
        )
    return dict(chosen.args) | ({"class_weights": tuple(weights)} if weights else {})


# The largest value of a keyword of a loss; the smallest is 0.
_LIMITS = {"gamma": math.inf, "alpha": 1.0, "target_threshold": 1.0}


def _cross_entropies(logs: Array, labels: Array, smoothing: float | Array) -> Array:
    """The cross-entropy of each example with its label, int `[batch]`."""
    # A negative index would count from the end, and train the last class.
    index = jnp.where(labels < 0, logs.shape[-1], labels)[:, None]
    of_label = jnp.take_along_axis(logs, index, axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]
    smoothing = jnp.asarray(smoothing, jnp.float32)
    # A class at -inf (masked out by the user) must not make 0 * inf of the plain loss.
    of_all = jnp.where(smoothing > 0, logs.mean(-1), 0)
    return -(1 - smoothing) * of_label - smoothing * of_all


def _times(weight: Array, logs: Array) -> Array:
    """Their product, 0 where the weight is 0, even at a logarithm of -inf."""
    return jnp.where(weight == 0, 0, weight * jnp.where(weight == 0, 0, logs))


def _weighted(terms: Array, class_weights: Array | None) -> Array:
    """`[batch, classes]` times the weight of each class."""
    return terms if class_weights is None else terms * class_weights[None, :]


def _of_labels(labels: Array, class_weights: Array | None) -> Array | None:
    """The weight of each example in a mean; None if all are alike."""
    if class_weights is None or labels.ndim > 1:
        return None
    return jnp.take(class_weights, labels, mode="fill")


def _total(each: Array, mask: Array | None, weights: Array | None = None) -> tuple[Array, Array]:
    """The sum of the losses that count, and their number, or the sum of their weights."""
    if weights is not None:
        shown = weights if mask is None else jnp.where(mask, weights, 0)
        count = shown.sum()
    elif mask is None:
        count = jnp.asarray(len(each), jnp.int32)
    else:
        count = mask.sum(dtype=jnp.int32)
    return (each if mask is None else jnp.where(mask, each, 0)).sum(), count
