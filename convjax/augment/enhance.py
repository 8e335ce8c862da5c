"""Changes of colour by given amounts, as Pillow's ImageEnhance and ImageOps make them of bytes.

    brightness_by(images, 1.5)                  # all images, or one factor an image: `[batch]`

Images are `[batch, height, width, channels]`, of uint8, or floating with values in [0, 1]: those
are rounded to 255ths, and come back as 255ths. One channel is grey, three are RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from convjax.augment.arguments import along, colored, each
from convjax.augment.hue import turn_hue


def brightness_by(images: ArrayLike, factor: ArrayLike) -> Array:
    """Multiplies the levels: 0 makes black, 1 changes nothing. `PIL.ImageEnhance.Brightness`."""
    x, back = _levels("brightness_by", images)
    return back(blend(jnp.zeros_like(x), x, each("brightness_by", "factor", factor, x)))


def contrast_by(images: ArrayLike, factor: ArrayLike) -> Array:
    """Moves the levels off the mean grey: 0 makes all of it. `PIL.ImageEnhance.Contrast`."""
    x, back = _levels("contrast_by", images)
    return back(blend(mean_grey(x), x, each("contrast_by", "factor", factor, x)))


def saturation_by(images: ArrayLike, factor: ArrayLike) -> Array:
    """Moves the colours off grey: 0 makes a grey image. `PIL.ImageEnhance.Color`."""
    x, back = _levels("saturation_by", images)
    return back(blend(grey(x), x, each("saturation_by", "factor", factor, x)))


def sharpness_by(images: ArrayLike, factor: ArrayLike) -> Array:
    """Moves the image off its smoothed one: 0 smooths, 2 sharpens. `PIL.ImageEnhance.Sharpness`."""
    x, back = _levels("sharpness_by", images)
    return back(blend(smooth(x), x, each("sharpness_by", "factor", factor, x)))


def hue_by(images: ArrayLike, turn: ArrayLike) -> Array:
    """Turns the hue by a part of the colour circle, -1/2 to 1/2, in 255 steps, by way of HSV.

    As `torchvision.transforms.functional.adjust_hue` with Pillow. A grey image stays as it is.
    """
    x, back = _levels("hue_by", images)
    return back(turn_hue(x, each("hue_by", "turn", turn, x)))


def greyed(images: ArrayLike) -> Array:
    """The image in grey, with as many channels as before: `PIL.Image.convert("L")`."""
    x, back = _levels("greyed", images)
    return back(jnp.broadcast_to(grey(x), x.shape))


def inverted(images: ArrayLike) -> Array:
    """255 less each level. `PIL.ImageOps.invert`."""
    x, back = _levels("inverted", images)
    return back(255 - x)


def solarize_at(images: ArrayLike, threshold: ArrayLike) -> Array:
    """Inverts the levels of `threshold` (0 to 255) or more. `PIL.ImageOps.solarize`."""
    x, back = _levels("solarize_at", images)
    return back(solarize(x, each("solarize_at", "threshold", threshold, x)))


def posterize_to(images: ArrayLike, bits: ArrayLike) -> Array:
    """Keeps the upper `bits` (0 to 8) of the 8 of each level. `PIL.ImageOps.posterize`."""
    x, back = _levels("posterize_to", images)
    return back(posterize(x, each("posterize_to", "bits", bits, x, jnp.int32)))


def autocontrasted(images: ArrayLike) -> Array:
    """Stretches the levels of each channel to 0 to 255. `PIL.ImageOps.autocontrast`.

    A channel of one level stays. One level more than Pillow's where the exact result is a whole
    number, which Pillow's floating-point numbers may miss.
    """
    x, back = _levels("autocontrasted", images)
    return back(stretch(x, jnp.ones(len(x), bool)))


def equalized(images: ArrayLike) -> Array:
    """Spreads the levels of each channel evenly, by its histogram. `PIL.ImageOps.equalize`."""
    x, back = _levels("equalized", images)
    return back(equalize(x))


def blur_by(images: ArrayLike, sigma: ArrayLike, size: int) -> Array:
    """Averages with weights exp(-d^2 / (2 sigma^2)) over `size` pixels each way, mirrored outside.

    As `torchvision.transforms.functional.gaussian_blur`. size: odd, in pixels, and no more than
    twice the image's less 1. sigma: in pixels. Floating images of any range are not rounded.
    """
    images = colored("blur_by", images)
    radius = size // 2
    if size % 2 == 0 or size < 1 or radius >= min(images.shape[1:3]):
        raise ValueError(
            f"blur_by: size={size} must be odd and less than twice the image's, "
            f"which is {images.shape[1]} x {images.shape[2]}"
        )
    sigma = each("blur_by", "sigma", sigma, images)
    distance = jnp.arange(-radius, radius + 1, dtype=jnp.float32)[:, None]
    weight = jnp.exp(-0.5 * jnp.square(distance / sigma[None]))  # [size, batch]
    weight = weight / weight.sum(0, keepdims=True)
    x = images.astype(jnp.float32)
    weights = [along(each) for each in weight]
    for axis in 1, 2:
        pad = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        x = _weighted(jnp.pad(x, pad, mode="reflect"), weights, axis)
    return (jnp.round(x) if images.dtype == jnp.uint8 else x).astype(images.dtype)


# -- On levels, int32 0 to 255 ---------------------------------------------------------------------


def to_levels(images: Array) -> Array:
    """Bytes, or numbers in [0, 1] rounded to 255ths, as int32 0 to 255."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.int32)
    return jnp.round(images.astype(jnp.float32).clip(0, 1) * 255).astype(jnp.int32)


def from_levels(levels: Array, dtype: np.dtype) -> Array:
    """The levels as bytes, or as 255ths in a floating dtype."""
    if dtype == jnp.uint8:
        return levels.astype(dtype)
    return (levels.astype(jnp.float32) / 255).astype(dtype)


def blend(start: Array, x: Array, factor: Array) -> Array:
    """`start + factor (x - start)`, cut off to a whole number 0 to 255: `PIL.Image.blend`."""
    way = along(factor) * (x - start).astype(jnp.float32)
    return (start.astype(jnp.float32) + way).clip(0, 255).astype(jnp.int32)


def grey(x: Array) -> Array:
    """The brightness (ITU-R 601) as one channel, in the whole numbers of Pillow."""
    if x.shape[-1] == 1:
        return x
    weighted = x * np.array((19595, 38470, 7471), np.int32)[None, None, None]
    return (weighted.sum(-1, keepdims=True) + (1 << 15)) >> 16


def mean_grey(x: Array) -> Array:
    """The mean brightness of each image, rounded, `[batch, 1, 1, 1]`."""
    pixels = x.shape[1] * x.shape[2]
    return (2 * grey(x).sum((1, 2), keepdims=True) + pixels) // (2 * pixels)


def smooth(x: Array) -> Array:
    """`PIL.ImageFilter.SMOOTH`: 3 x 3 pixels, the middle one 5 times; the border stays."""
    height, width = x.shape[1:3]
    if min(height, width) < 3:
        return x
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = 4 * x + _weighted(_weighted(padded, [1, 1, 1], axis=1), [1, 1, 1], axis=2)
    row, col = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inner = (row > 0) & (row < height - 1) & (col > 0) & (col < width - 1)
    mean = (2 * total + 13) * 10083 >> 18  # (2 total + 13) // 26, and much faster.
    return jnp.where(inner[None, :, :, None], mean, x)


def solarize(x: Array, threshold: Array) -> Array:
    """Levels of the threshold `[batch]` or more, inverted."""
    return jnp.where(x.astype(jnp.float32) < along(threshold), x, 255 - x)


def posterize(x: Array, bits: Array) -> Array:
    """The upper bits, int32 `[batch]`, of each level."""
    return x & along(-(1 << (8 - bits)))


def stretch(x: Array, mask: Array) -> Array:
    """Levels of each channel stretched to 0 to 255, where the mask `[batch]` says so."""
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    some = along(mask) & (high > low)
    # Whole numbers divided by way of float32: the half keeps the quotient off the steps.
    share = 1 / jnp.maximum(high - low, 1).astype(jnp.float32)
    stretched = (((x - low) * 255).astype(jnp.float32) + 0.5) * share
    return jnp.where(some, stretched.astype(jnp.int32), x)


def equalize(x: Array) -> Array:
    """Levels of each channel spread evenly: `[batch, height, width, channels]`."""
    batch, height, width, channels = x.shape
    lines = x.astype(jnp.int32).transpose(0, 3, 1, 2).reshape(batch * channels, height * width)
    line = jnp.arange(len(lines))[:, None]
    counts = jnp.zeros((len(lines), 256), jnp.int32)
    counts = counts.at[line, lines].add(1, mode="promise_in_bounds")
    last = jnp.take_along_axis(counts, lines.max(1, keepdims=True), axis=1)
    step = (height * width - last) // 255
    before = jnp.cumsum(counts, 1) - counts
    table = ((step // 2 + before) // jnp.maximum(step, 1)).clip(0, 255)
    table = jnp.where(step > 0, table, jnp.arange(256)[None])
    spread = table.at[line, lines].get(mode="promise_in_bounds")
    return spread.reshape(batch, channels, height, width).transpose(0, 2, 3, 1).astype(x.dtype)


def _weighted(padded: Array, weights: Sequence[Any], axis: int) -> Array:
    """The sum of as many neighbours along an axis as there are weights, each times its own."""
    size = padded.shape[axis] - len(weights) + 1
    total = weights[0] * lax.slice_in_dim(padded, 0, size, axis=axis)
    for k, weight in enumerate(weights[1:], 1):
        total += weight * lax.slice_in_dim(padded, k, k + size, axis=axis)
    return total


def _levels(op: str, images: ArrayLike):
    images = colored(op, images)
    return to_levels(images), lambda levels: from_levels(levels, images.dtype)
