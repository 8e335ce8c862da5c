"""Random geometry: crops, flips, shifts, turns and shears.

    augment(crop(4), flip())                    # CIFAR's

Images are `[batch, height, width, channels]`, of uint8, or floating in any range.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from convjax.augment.arguments import (
    Number,
    Pixel,
    below,
    between,
    filling,
    interval,
    is_key,
    one_of,
    probability,
    steps,
    within,
)
from convjax.augment.compose import Augmentation, Draw
from convjax.augment.warp import (
    MODES,
    flip_where,
    resized_crop_at,
    rotate_by,
    shear_x_by,
    shear_y_by,
    shift_by,
)
from convjax.layer import fold
from convjax.ops.arguments import Sizes, describe, each_dimension


def crop(padding: int | Array, *, mode: str = "zero") -> Augmentation:
    """Pads by as many pixels on each side, and cuts out a window of the old size at random.

    mode: what is padded: "zero", "reflect" (airbench: `crop(2, mode="reflect")`) or "edge".

    He et al., Deep Residual Learning, 2015, section 4.2; `torchvision.transforms.RandomCrop(size,
    padding)`. padding may be traced. Raises ValueError for one that is negative or no less than the
    image's size, and for an unknown mode.
    """
    steps("crop", "padding", padding)
    one_of("crop", "mode", mode, MODES)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        smallest = min(images.shape[1:3])
        if isinstance(padding, numbers.Real) and padding >= smallest:
            raise ValueError(
                f"crop: padding={padding} would move {describe(images)} out of sight: "
                f"give less than {smallest}"
            )
        most = jnp.asarray(padding, jnp.int32)
        down, right = (below(uniform[:, i], 2 * most + 1) - most for i in range(2))
        return shift_by(images, down, right, mode)

    return Augmentation("crop", 2, apply)


def flip(p: Number = 0.5) -> Augmentation:
    """Mirrors an image left to right with probability `p`, which may be traced.

    Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, 2012,
    section 4.1; `torchvision.transforms.RandomHorizontalFlip`.
    """
    probability("flip", p)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        return flip_where(images, uniform[:, 0] < p)

    return Augmentation("flip", 1, apply)


def vertical_flip(p: Number = 0.5) -> Augmentation:
    """Mirrors an image top to bottom with probability `p`, which may be traced.

    `torchvision.transforms.RandomVerticalFlip`.
    """
    probability("vertical_flip", p)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        return flip_where(images, uniform[:, 0] < p, vertical=True)

    return Augmentation("vertical_flip", 1, apply)


def alternating_flip() -> Augmentation:
    """Mirrors half of the images in even epochs, and exactly the others in odd ones.

    So any two epochs in a row show every image both ways. Whether an image begins mirrored is a
    function of the run and of the image, the same in every step, and so it wants a `Draw`:

        change = augment(alternating_flip(), crop(2, mode="reflect"))
        images = change(Draw(step_key, run_key, numbers, epoch), images)

    Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024 (arXiv 2404.00498), section 3.6.
    Raises ValueError if it is given a key alone, or numbers that are not one an image.
    """
    op = "alternating_flip"

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        if draw.run is None or draw.numbers is None or draw.epoch is None:
            raise ValueError(
                f"{op} must know the run, the images and the epoch: in place of the key give "
                "Draw(key, run_key, numbers, epoch)"
            )
        if not is_key(draw.run) or draw.run.shape:
            raise TypeError(f"{op}: Draw.run must be one key of jax.random.key, got {draw.run!r}")
        which, epoch = jnp.asarray(draw.numbers), jnp.asarray(draw.epoch)
        if which.shape != images.shape[:1] or not jnp.issubdtype(which.dtype, jnp.integer):
            raise ValueError(
                f"{op}: Draw.numbers must be a whole number for each image, "
                f"got {describe(which)} for {describe(images)}"
            )
        if epoch.shape or not jnp.issubdtype(epoch.dtype, jnp.integer):
            raise ValueError(f"{op}: Draw.epoch must be a whole number, got {describe(epoch)}")
        own = jax.vmap(jax.random.fold_in, (None, 0))(fold(draw.run, op), which)
        # To fold a number in is to hash it: a key's data are random bits, and cost no draw.
        bit = jax.random.key_data(own)[:, -1] & 1
        return flip_where(images, (bit + epoch.astype(bit.dtype)) % 2 == 1)

    return Augmentation(op, 0, apply)


def translate(fraction: Number, *, mode: str = "zero") -> Augmentation:
    """Shifts by whole pixels: up to `fraction` of the height, and of the width, either way.

    The shift is uniform over the reals, then rounded: `torchvision.transforms.RandomAffine(0,
    translate=(fraction, fraction))`. mode: as `crop` has it. fraction: 0 to 1; may be traced.
    """
    within("translate", "fraction", fraction, 0, 1)
    one_of("translate", "mode", mode, MODES)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        down, right = (
            jnp.round(between(uniform[:, i], -most, most))
            for i, most in enumerate(jnp.float32(size) * fraction for size in images.shape[1:3])
        )
        return shift_by(images, down, right, mode)

    return Augmentation("translate", 2, apply)


def rotate(degrees: Number, *, fill: Pixel = 0) -> Augmentation:
    """Turns by an angle uniform over [-degrees, degrees), by the nearest pixel.

    `torchvision.transforms.RandomRotation`. fill: what comes in at the corners, a number or one a
    channel, in units of the pixels. degrees may be traced.
    """
    within("rotate", "degrees", degrees, 0, 360)
    filling("rotate", "fill", fill)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        return rotate_by(images, degrees * between(uniform[:, 0], -1, 1), fill=fill)

    return Augmentation("rotate", 1, apply)


def shear(x: Number, y: Number = 0.0, *, fill: Pixel = 0) -> Augmentation:
    """Slants: rows by up to `x` of their distance from the top, columns by up to `y` from the left.

    x, y: the tangent of the largest angle; uniform over [-x, x) and [-y, y); may be traced.
    fill: as `rotate` has it. First x, then y, as RandAugment's two operations would.
    """
    for name, most in ("x", x), ("y", y):
        within("shear", name, most)
    filling("shear", "fill", fill)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        for i, (most, by) in enumerate(((x, shear_x_by), (y, shear_y_by))):
            if not (isinstance(most, int | float) and most == 0):
                images = by(images, most * between(uniform[:, i], -1, 1), fill=fill)
        return images

    return Augmentation("shear", 2, apply)


def random_resized_crop(
    size: Sizes,
    *,
    scale: Sequence[Number] = (0.08, 1.0),
    ratio: Sequence[Number] = (3 / 4, 4 / 3),
) -> Augmentation:
    """Cuts out a box of random area and shape, and resamples it to `size`: one, or (height, width).

    scale: the least and most of the image's area. ratio: the least and most width / height, drawn
    uniformly in its logarithm. Both may hold traced numbers.

    Szegedy et al., Going Deeper with Convolutions, 2014; `torchvision.transforms.RandomResizedCrop`
    to the letter: the first of ten tries that fits counts, and if none fits, the largest box in
    the middle of an allowed shape. All ten are drawn at once, which is the same thing. Resampling
    is linear with antialias, as torchvision's default.
    """
    op = "random_resized_crop"
    height, width = each_dimension(op, "size", size, 2)
    scale = interval(op, "scale", scale, 0, 1)
    ratio = interval(op, "ratio", ratio, math.ulp(0.0))

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        top, left, high, wide = crop_box(uniform, images.shape[1:3], scale, ratio)
        return resized_crop_at(images, top, left, high, wide, (height, width))

    return Augmentation(op, 2 * TRIES + 2, apply)


TRIES = 10


def crop_box(
    uniform: Array,
    size: Sequence[int],
    scale: tuple[Number, Number],
    ratio: tuple[Number, Number],
) -> tuple[Array, Array, Array, Array]:
    """The (top, left, height, width) of `random_resized_crop`, of uniform `[batch, 22]`."""
    height, width = size
    high, wide = boxes(uniform, size, scale, ratio)
    fits = (high > 0) & (high <= height) & (wide > 0) & (wide <= width)
    high, wide = first(fits, high, wide)
    least, most = (jnp.float32(end) for end in ratio)
    shape = width / height
    # Where no try fits: as much as there is, but for what is too wide or too narrow.
    whole_wide = jnp.where(shape > most, jnp.round(height * most), width)
    whole_high = jnp.where(shape < least, jnp.round(width / least), height)
    some = fits.any(1)
    high, wide = jnp.where(some, high, whole_high), jnp.where(some, wide, whole_wide)
    high, wide = high.astype(jnp.int32), wide.astype(jnp.int32)
    top = jnp.where(some, below(uniform[:, -2], height - high + 1), (height - high) // 2)
    left = jnp.where(some, below(uniform[:, -1], width - wide + 1), (width - wide) // 2)
    return top, left, high, wide


def boxes(
    uniform: Array,
    size: Sequence[int],
    scale: tuple[Number, Number],
    ratio: tuple[Number, Number],
) -> tuple[Array, Array]:
    """Ten heights and ten widths of boxes, rounded, `[batch, 10]`.

    Their areas are uniform over `scale` of the image's, their width / height in its logarithm over
    `ratio`.
    """
    area = size[0] * size[1] * between(uniform[:, :TRIES], scale[0], scale[1])
    least, most = (jnp.log(jnp.float32(end)) for end in ratio)
    shape = jnp.exp(between(uniform[:, TRIES : 2 * TRIES], least, most))
    return jnp.round(jnp.sqrt(area / shape)), jnp.round(jnp.sqrt(area * shape))


def first(fits: Array, *values: Array) -> list[Array]:
    """Of each image's tries, `[batch, tries]`, the first that fits."""
    index = jnp.argmax(fits, axis=1)[:, None]
    return [jnp.take_along_axis(value, index, axis=1)[:, 0] for value in values]
