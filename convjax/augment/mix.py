"""Mixtures of two images and of their targets: mixup, CutMix, and one of the two at random.

    images, targets = cutmix(1.0)(key, images, jax.nn.one_hot(labels, classes))

Image i is mixed with image `batch - 1 - i`, as in timm: batches are shuffled already. Targets are
probabilities, floating `[batch, classes]`; images are of uint8, or floating in any range.

Under `shard_map` and `pmap` a device mixes the part of the batch that it has, with the key that it
is given: one for all devices draws the same strength everywhere, another on each (`fold_in` with
`lax.axis_index`) its own. Under `jit` of a sharded batch partners come from other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from convjax.augment.arguments import Number, along, batch, below, each, is_key, probability, within
from convjax.augment.erase import erase_at
from convjax.ops.arguments import describe

Mix = Callable[[Array, ArrayLike, ArrayLike], tuple[Array, Array]]


def mixup(alpha: Number, *, p: Number = 1.0, every: bool = False) -> Mix:
    """`(key, images, targets) -> (images, targets)`, averaged with weights of Beta(alpha, alpha).

    p: the probability to mix at all. every: a strength for each image, where it is else one a
    batch. alpha and p may be traced; an alpha of 0 mixes nothing.

    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017 (arXiv 1710.09412). Mixed bytes
    are rounded to the nearest. Raises ValueError for a negative alpha, a p outside of [0, 1], or
    targets that are not `[batch, classes]`.
    """
    within("mixup", "alpha", alpha)
    return _mix("mixup", alpha, alpha, p, 0.0, every)


def cutmix(alpha: Number, *, p: Number = 1.0, every: bool = False) -> Mix:
    """`(key, images, targets) -> (images, targets)`, with a box of the partner's pasted in.

    The box has 1 - lambda of the area, lambda of Beta(alpha, alpha), about a random pixel, and is
    cut off at the border; the targets have the weights of the areas as they are then. Arguments
    and errors are those of `mixup`.

    Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features, 2019 (arXiv 1905.04899); boxes as in timm.
    """
    within("cutmix", "alpha", alpha)
    return _mix("cutmix", alpha, alpha, p, 1.0, every)


def mixup_or_cutmix(
    mixup_alpha: Number,
    cutmix_alpha: Number,
    *,
    p: Number = 1.0,
    switch: Number = 0.5,
    every: bool = False,
) -> Mix:
    """Mixes by CutMix with probability `switch`, else by mixup, as `timm.data.Mixup` does.

    p: the probability to mix at all. All numbers may be traced. Other arguments and errors are
    those of `mixup`.
    """
    op = "mixup_or_cutmix"
    within(op, "mixup_alpha", mixup_alpha)
    within(op, "cutmix_alpha", cutmix_alpha)
    return _mix(op, mixup_alpha, cutmix_alpha, p, switch, every)


# -- By given strengths ----------------------------------------------------------------------------


def mixup_by(images: ArrayLike, targets: ArrayLike, weight: ArrayLike) -> tuple[Array, Array]:
    """`weight` of each image and target, and 1 - weight of its partner's.

    weight: one number, or one an image.
    """
    images, targets = _checked("mixup_by", images, targets)
    weight = each("mixup_by", "weight", weight, images)
    wide = images.astype(jnp.float32)
    mixed = along(weight) * wide + along(1 - weight) * wide[::-1]
    if images.dtype == jnp.uint8:
        mixed = jnp.round(mixed)
    return mixed.astype(images.dtype), _mixed_targets(targets, weight)


class Box(NamedTuple):
    """A box in pixels, int32 `[batch]` each."""

    top: Array
    left: Array
    height: Array
    width: Array


def cutmix_by(images: ArrayLike, targets: ArrayLike, box: Box) -> tuple[Array, Array]:
    """Each image with a box of its partner's pasted in, and targets by the areas of the two."""
    images, targets = _checked("cutmix_by", images, targets)
    box = Box(*(each("cutmix_by", name, x, images, jnp.int32) for name, x in box._asdict().items()))
    height, width = images.shape[1:3]
    cut = box.height * box.width
    weight = 1 - cut.astype(jnp.float32) / (height * width)
    return erase_at(images, *box, images[::-1]), _mixed_targets(targets, weight)


def cutmix_box(weight: Array, row: Array, col: Array, height: int, width: int) -> Box:
    """The box about a pixel that leaves `weight` of the area, cut off at the border.

    weight: float32 `[batch]`; row, col: int32 `[batch]`.
    """
    share = jnp.sqrt(1 - weight)
    ends = []
    for middle, size in (row, height), (col, width):
        half = (size * share).astype(jnp.int32) // 2
        ends.append(((middle - half).clip(0, size), (middle + half).clip(0, size)))
    (top, bottom), (left, right) = ends
    return Box(top, left, bottom - top, right - left)


def symmetric_beta(first: Array, second: Array, alpha: Number) -> Array:
    """Numbers of Beta(alpha, alpha), made of pairs of uniform ones over [0, 1); alpha 0 or more.

    Devroye, Random variate generation in one line of code, 1996: Bailey's formula for Student's t,
    brought to [0, 1]. No rejection: it compiles fast, and alpha may be traced.
    """
    alpha = jnp.asarray(alpha, jnp.float32)
    power = jnp.where(alpha > 0, (1 - first) ** (1 / jnp.where(alpha > 0, alpha, 1)), 0)
    cos = jnp.cos(2 * jnp.pi * second)
    top = (1 - power) * cos * cos
    ratio = top / (power + top)  # Neither is ever 0 where the other is: no NaN but at cos = 0.
    return (1 + jnp.sign(cos) * jnp.sqrt(jnp.where(top > 0, ratio, 0))) / 2


def _mix(
    op: str, mixup_alpha: Number, cutmix_alpha: Number, p: Number, switch: Number, every: bool
) -> Mix:
    probability(op, p)
    probability(op, switch, "switch")
    only = {0.0: mixup_by, 1.0: cutmix_by}.get(switch) if isinstance(switch, float) else None

    def mix(key: Array, images: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
        images, targets = _checked(op, images, targets)
        if not is_key(key):
            raise TypeError(f"{op} needs a key of jax.random.key, got {type(key).__name__}")
        size, (height, width) = len(images), images.shape[1:3]
        drawn = jax.random.uniform(key, (6, size if every else 1))
        u = jnp.broadcast_to(drawn, (6, size))
        cut = u[0] < switch
        alpha = jnp.where(cut, jnp.float32(cutmix_alpha), jnp.float32(mixup_alpha))
        some = (u[1] < p) & (alpha > 0)
        weight = jnp.where(some, symmetric_beta(u[2], u[3], alpha), 1)
        box = cutmix_box(weight, below(u[4], height), below(u[5], width), height, width)
        if only is cutmix_by:
            return cutmix_by(images, targets, box)
        if only is mixup_by:
            return mixup_by(images, targets, weight)
        by_box, by_weight = cutmix_by(images, targets, box), mixup_by(images, targets, weight)
        return (
            jnp.where(along(cut), by_box[0], by_weight[0]),
            jnp.where(cut[:, None], by_box[1], by_weight[1]),
        )

    return mix


def _checked(op: str, images: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    images, targets = batch(op, images), jnp.asarray(targets)
    if (
        targets.ndim != 2
        or len(targets) != len(images)
        or not jnp.issubdtype(targets.dtype, jnp.floating)
    ):
        raise ValueError(
            f"{op} needs targets floating [batch, classes], got {describe(targets)} for "
            f"{describe(images)}: of labels, jax.nn.one_hot(labels, classes)"
        )
    return images, targets


def _mixed_targets(targets: Array, weight: Array) -> Array:
    wide = targets.astype(jnp.float32)
    mixed = weight[:, None] * wide + (1 - weight)[:, None] * wide[::-1]
    return mixed.astype(targets.dtype)
