"""RandAugment, TrivialAugment, and the 15 operations that they and AutoAugment choose from.

    augment(crop(4), flip(), rand_augment(2, 9))

All images of a batch go through one program, whatever their operations: the geometric ones are one
affine warp, brightness, contrast, colour and sharpness one blend with another image, and what is
left a little arithmetic; only for equalize are the images that want it worked on apart.

Images are `[batch, height, width, channels]`, grey or RGB, of uint8, or floating with values in
[0, 1], before they are normalised; those are rounded to 255ths first.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from convjax.augment import enhance
from convjax.augment.arguments import (
    Number,
    Pixel,
    along,
    below,
    colored,
    filling,
    whole,
    within,
)
from convjax.augment.compose import Augmentation, Draw, change_some
from convjax.augment.warp import rotation, warp_by

IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(6)
BRIGHTNESS, COLOR, CONTRAST, SHARPNESS = range(6, 10)
POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE, INVERT = range(10, 15)
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize", "invert"),
)
SIGNED = np.array([SHEAR_X <= number <= SHARPNESS for number in range(len(OPERATIONS))])


def rand_augment(
    operations: int, magnitude: Number, *, bins: int = 31, fill: Pixel = 0
) -> Augmentation:
    """Applies `operations` of 14 operations one after another, each drawn anew, at one magnitude.

    magnitude: 0 to bins - 1; may be a fraction, and traced. Libraries differ: 9 of torchvision's 30
        is `rand_augment(2, 9)`, 9 of timm's 10 is `rand_augment(2, 9, bins=11)`.
    fill: what geometric operations leave empty, a number or one a channel, in grey levels 0 to 255.

    Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space,
    2019 (arXiv 1909.13719); operations, ranges and signs of `torchvision.transforms.RandAugment`.
    Raises ValueError for a magnitude out of range, or a number of operations below 0.

    >>> import jax
    >>> images = jnp.zeros((8, 32, 32, 3), jnp.uint8)
    >>> jax.jit(rand_augment(2, 9))(jax.random.key(0), images).shape
    (8, 32, 32, 3)
    """
    op = "rand_augment"
    whole(op, "operations", operations, 0)
    within(op, "magnitude", magnitude, 0, whole(op, "bins", bins, 2) - 1)
    filling(op, "fill", fill)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        images = colored(op, images)
        kind = below(uniform[:, :operations], INVERT)
        share = jnp.full(kind.shape, magnitude, jnp.float32) / (bins - 1)
        negative = uniform[:, operations:] < 0.5
        strength = strengths(kind, share, negative, magnitude_ranges(*images.shape[1:3]))
        return apply_operations(images, kind, strength, fill=fill)

    return Augmentation(op, 2 * operations, apply)


def trivial_augment(*, bins: int = 31, fill: Pixel = 0) -> Augmentation:
    """Applies one of 14 operations at one of `bins` magnitudes, both drawn for each image.

    Müller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, 2021
    (arXiv 2103.10158), with its wide ranges; `torchvision.transforms.TrivialAugmentWide`. As there,
    images of any size move by up to 32 pixels. fill: as for `rand_augment`.
    """
    op = "trivial_augment"
    whole(op, "bins", bins, 2)
    filling(op, "fill", fill)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        images = colored(op, images)
        kind = below(uniform[:, :1], INVERT)
        share = below(uniform[:, 1:2], bins).astype(jnp.float32) / (bins - 1)
        strength = strengths(kind, share, uniform[:, 2:] < 0.5, wide_ranges())
        return apply_operations(images, kind, strength, fill=fill)

    return Augmentation(op, 3, apply)


def apply_operations(
    images: ArrayLike, kind: ArrayLike, strength: ArrayLike, *, fill: Pixel = 0
) -> Array:
    """Applies to image i the operations `kind[i]`, in order, at the strengths `strength[i]`.

    kind: numbers of `OPERATIONS`, int32 `[batch, operations]`.
    strength: float32 `[batch, operations]`: the tangent of a shear, pixels of a translation,
        degrees of a turn, a factor less 1 for brightness, color, contrast and sharpness, bits of
        posterize, the threshold of solarize; of no meaning for the others.
    """
    images = colored("apply_operations", images)
    kind, strength = jnp.asarray(kind, jnp.int32), jnp.asarray(strength, jnp.float32)

    x = enhance.to_levels(images).astype(jnp.uint8)
    # Not a lax loop, in which XLA for the CPU takes twice as long.
    for i in range(kind.shape[1]):
        x = _operate(x, kind[:, i], strength[:, i], fill)
    return enhance.from_levels(x, images.dtype)


# -- Strengths -------------------------------------------------------------------------------------


def _ranges(shear: float, turn: float, factor: float, bits: int) -> np.ndarray:
    """What each operation has at magnitude 0 and at the largest, float32 `[operations, 2]`."""
    ranges = np.zeros((len(OPERATIONS), 2), np.float32)
    ranges[[SHEAR_X, SHEAR_Y], 1] = shear
    ranges[ROTATE, 1] = turn
    ranges[BRIGHTNESS : SHARPNESS + 1, 1] = factor
    ranges[POSTERIZE] = 8, bits
    ranges[SOLARIZE] = 255, 0
    return ranges


def magnitude_ranges(height: int, width: int) -> np.ndarray:
    """The ranges of RandAugment and AutoAugment, float32 `[operations, 2]`: least and most."""
    ranges = _ranges(shear=0.3, turn=30, factor=0.9, bits=4)
    ranges[[TRANSLATE_X, TRANSLATE_Y], 1] = 150 / 331 * width, 150 / 331 * height
    return ranges


def wide_ranges() -> np.ndarray:
    """The ranges of TrivialAugment, float32 `[operations, 2]`: least and most."""
    ranges = _ranges(shear=0.99, turn=135, factor=0.99, bits=2)
    ranges[[TRANSLATE_X, TRANSLATE_Y], 1] = 32
    return ranges


def strengths(kind: Array, share: Array, negative: Array, ranges: np.ndarray) -> Array:
    """The strength of operations at a share (0 to 1) of their ranges; negative where signed."""
    least, most = (jnp.asarray(ranges[:, i])[kind] for i in range(2))
    strength = least + share * (most - least)
    strength = jnp.where(kind == POSTERIZE, 8 - jnp.round(8 - strength), strength)
    return jnp.where(jnp.asarray(SIGNED)[kind] & negative, -strength, strength)


# -- One operation an image ------------------------------------------------------------------------


def _operate(x: Array, kind: Array, strength: Array, fill: Pixel) -> Array:
    """One operation for each of the images, uint8; kind and strength: `[batch]`."""

    def warp(x: Array, kind: Array, strength: Array) -> Array:
        return warp_by(x, _matrix(kind, strength, *x.shape[1:3]), fill=fill)

    geometric = (kind >= SHEAR_X) & (kind <= ROTATE)
    x = change_some(warp, geometric, x, kind, strength).astype(jnp.int32)
    blended = (kind >= BRIGHTNESS) & (kind <= SHARPNESS)
    factor = jnp.where(blended, 1 + strength, 1)
    bits = jnp.where(kind == POSTERIZE, strength.astype(jnp.int32), 8)
    threshold = jnp.where(kind == SOLARIZE, strength, jnp.where(kind == INVERT, 0, 256))
    start = jnp.where(along(kind == COLOR), enhance.grey(x), 0)
    start = jnp.where(along(kind == CONTRAST), enhance.mean_grey(x), start)
    start = jnp.where(along(kind == SHARPNESS), enhance.smooth(x), start)
    x = enhance.blend(start, x, factor)
    x = enhance.solarize(enhance.posterize(x, bits), threshold)
    x = enhance.stretch(x, kind == AUTOCONTRAST)
    return change_some(enhance.equalize, kind == EQUALIZE, x.astype(jnp.uint8))


def _matrix(kind: Array, strength: Array, height: int, width: int) -> Array:
    """The affine matrix, `[batch, 6]`, of a geometric operation; of another, the identity."""

    def only(number: int) -> Array:
        return jnp.where(kind == number, strength, 0)

    turn = rotation(-jnp.deg2rad(only(ROTATE)), height, width)
    moved = (0, only(SHEAR_X), -jnp.trunc(only(TRANSLATE_X)))
    moved += (only(SHEAR_Y), 0, -jnp.trunc(only(TRANSLATE_Y)))
    return turn + jnp.stack([jnp.broadcast_to(jnp.float32(each), kind.shape) for each in moved], -1)
