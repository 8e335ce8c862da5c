"""Random boxes that hide a part of an image: cutout and random erasing.

    augment(crop(4), flip(), cutout(8))

Images are `[batch, height, width, channels]`, of uint8, or floating in any range.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from convjax.augment.arguments import (
    Number,
    Pixel,
    batch,
    below,
    each,
    filling,
    interval,
    pixel,
    probability,
    steps,
)
from convjax.augment.compose import Augmentation, Draw
from convjax.augment.enhance import from_levels
from convjax.augment.geometric import TRIES, boxes, first
from convjax.ops.arguments import describe


def cutout(size: int | Array, *, value: Pixel = 0) -> Augmentation:
    """Hides a square of `size` x `size` pixels about a random pixel, cut off at the border.

    value: what it is filled with, a number or one a channel, in units of the pixels. The paper
    fills with the mean of the data set. size may be traced.

    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017
    (arXiv 1708.04552), and its code: from `size // 2` pixels before the middle one on.
    """
    steps("cutout", "size", size)
    filling("cutout", "value", value)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        largest = max(images.shape[1:3])
        if isinstance(size, numbers.Real) and size > largest:
            raise ValueError(
                f"cutout: size={size} is more than there is of {describe(images)}: "
                f"give {largest} or less"
            )
        half = jnp.asarray(size, jnp.int32) // 2
        top = below(uniform[:, 0], images.shape[1]) - half
        left = below(uniform[:, 1], images.shape[2]) - half
        # As in the paper's code: an odd size hides one pixel less each way.
        return erase_at(images, top, left, 2 * half, 2 * half, value)

    return Augmentation("cutout", 2, apply)


def random_erasing(
    p: Number = 0.5,
    *,
    scale: Sequence[Number] = (0.02, 0.33),
    ratio: Sequence[Number] = (0.3, 3.3),
    value: Pixel | None = 0,
) -> Augmentation:
    """Hides a box of random area, shape and place with probability `p`.

    scale: the least and most of the image's area. ratio: the least and most height / width, drawn
        uniformly in its logarithm.
    value: a number or one a channel, in units of the pixels; None draws each number of the box
        anew, of 0 to 255, or of the 255ths of [0, 1].

    Zhong et al., Random Erasing Data Augmentation, 2017 (arXiv 1708.04896);
    `torchvision.transforms.RandomErasing`, whose `value="random"` is of a normal distribution, as
    its images are normalised by then. As there, the first of ten tries that fits counts, and where
    none fits, nothing is hidden. p and the ends of scale and ratio may be traced.
    """
    op = "random_erasing"
    probability(op, p)
    scale = interval(op, "scale", scale, 0, 1)
    ratio = interval(op, "ratio", ratio, math.ulp(0.0))
    if value is not None:
        filling(op, "value", value)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        height, width = images.shape[1:3]
        # Its ratio is the inverse of that of `random_resized_crop`, in the paper as in torchvision.
        wide, high = boxes(uniform, (height, width), scale, ratio)
        fits = (high < height) & (wide < width)
        some = fits.any(1) & (uniform[:, -3] < p)
        high, wide = (side.astype(jnp.int32) for side in first(fits, high, wide))
        top = below(uniform[:, -2], height - high + 1)
        left = below(uniform[:, -1], width - wide + 1)
        filled = noise(draw.key, images) if value is None else value
        return erase_at(images, top, left, jnp.where(some, high, 0), wide, filled)

    return Augmentation(op, 2 * TRIES + 3, apply)


def erase_at(
    images: ArrayLike,
    top: ArrayLike,
    left: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    value: Pixel = 0,
) -> Array:
    """Fills a box of each image; what of it lies outside does nothing.

    top, left, height, width: in pixels; one number, or one an image.
    value: a number, one a channel, or as many as the images have.
    """
    op = "erase_at"
    images = batch(op, images)
    inside = []
    for axis, start, length in (1, top, height), (2, left, width):
        start = each(op, "start", start, images, jnp.int32)[:, None]
        length = each(op, "length", length, images, jnp.int32)[:, None]
        place = jnp.arange(images.shape[axis])[None]
        inside.append((place >= start) & (place < start + length))
    mask = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    if np.ndim(value) < 4:
        return jnp.where(mask, pixel(op, "value", value, images)[None, None, None], images)
    return jnp.where(mask, jnp.asarray(value).astype(images.dtype), images)


def noise(keys: Array, images: Array) -> Array:
    """Random levels 0 to 255 for each pixel and channel, or 255ths of them."""
    shape = images.shape[1:]
    count = math.prod(shape)

    def of_one(key: Array) -> Array:
        key = jax.random.fold_in(key, 0)  # The key itself has been drawn from.
        bits = jax.random.bits(key, (-(-count // 4),))
        return lax.bitcast_convert_type(bits, jnp.uint8).reshape(-1)[:count].reshape(shape)

    return from_levels(jax.vmap(of_one)(keys), images.dtype)
