"""Random changes of colour, as torchvision draws them and Pillow makes them.

    augment(random_resized_crop(224), flip(), color_jitter(0.4, 0.4, 0.4), grayscale(0.2))

Images are `[batch, height, width, channels]`, of uint8, or floating with values in [0, 1], before
they are normalised; a changed floating image is rounded to 255ths. One channel is grey, three are
RGB.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from convjax.augment import enhance
from convjax.augment.arguments import (
    Number,
    along,
    between,
    colored,
    interval,
    probability,
    steps,
    whole,
    within,
)
from convjax.augment.compose import Augmentation, Draw, change_some
from convjax.augment.hue import turn_hue

Strength = Number | tuple[Number, Number]


def color_jitter(
    brightness: Strength = 0.0,
    contrast: Strength = 0.0,
    saturation: Strength = 0.0,
    hue: Strength = 0.0,
) -> Augmentation:
    """Changes brightness, contrast, saturation and hue by random amounts, in a random order.

    brightness, contrast, saturation: x draws the factor uniformly over [max(0, 1 - x), 1 + x]; a
        pair over that. hue: x, at most 0.5, draws the part of a turn over [-x, x]; a pair over
        that. Numbers and ends of pairs may be traced.

    `torchvision.transforms.ColorJitter`: each image has factors and an order of its own. Hue goes
    by way of HSV and costs more than all others: it is left out where it is the Python number 0.
    """
    op = "color_jitter"
    ranges = [
        _range(op, name, value, 1.0)
        for name, value in zip(_BLENDS, (brightness, contrast, saturation))
    ]
    ranges.append(_range(op, "hue", hue, 0.0))
    kinds = 3 if isinstance(hue, numbers.Real) and hue == 0 else 4

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        images = colored(op, images)
        factors = jnp.stack([between(uniform[:, i], *ends) for i, ends in enumerate(ranges)], 1)
        order = jnp.argsort(uniform[:, 4 : 4 + kinds], axis=1)

        x = enhance.to_levels(images)
        for i in range(kinds):
            kind = order[:, i]
            factor = jnp.take_along_axis(factors, kind[:, None], axis=1)[:, 0]
            start = jnp.where(along(kind == 1), enhance.mean_grey(x), 0)
            start = jnp.where(along(kind == 2), enhance.grey(x), start)
            x = enhance.blend(start, x, jnp.where(kind == 3, 1, factor))
            if kinds == 4:
                x = change_some(turn_hue, kind == 3, x, factor)
        return enhance.from_levels(x, images.dtype)

    return Augmentation(op, 8, apply)


def grayscale(p: Number = 0.1) -> Augmentation:
    """Takes the colour from an image with probability `p`; it keeps its channels.

    `torchvision.transforms.RandomGrayscale`. p may be traced.
    """
    return _maybe("grayscale", p, enhance.greyed)


def gaussian_blur(size: int, sigma: Sequence[Number] = (0.1, 2.0)) -> Augmentation:
    """Blurs by a Gaussian of a random width; for some of the images only, `sometimes(0.5, ...)`.

    size: of the window, in pixels; odd, and not traced. sigma: the least and most width, in
    pixels, which may be traced. `torchvision.transforms.GaussianBlur`.
    """
    if whole("gaussian_blur", "size", size) % 2 == 0:
        raise ValueError(f"gaussian_blur: size must be odd, got {size}: take {size + 1}")
    ends = interval("gaussian_blur", "sigma", sigma, 1e-3)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        return enhance.blur_by(images, between(uniform[:, 0], *ends), size)

    return Augmentation("gaussian_blur", 1, apply)


def solarize(threshold: Number = 128, p: Number = 0.5) -> Augmentation:
    """Inverts the levels of `threshold` (0 to 256) or more, with probability `p`.

    `torchvision.transforms.RandomSolarize`. Both may be traced.
    """
    within("solarize", "threshold", threshold, 0, 256)
    return _maybe("solarize", p, lambda images: enhance.solarize_at(images, threshold))


def posterize(bits: Number = 4, p: Number = 0.5) -> Augmentation:
    """Keeps the upper `bits` (0 to 8) of each level, with probability `p`.

    `torchvision.transforms.RandomPosterize`. Both may be traced.
    """
    steps("posterize", "bits", bits, 8)
    return _maybe("posterize", p, lambda images: enhance.posterize_to(images, bits))


def sharpness(factor: Number = 2.0, p: Number = 0.5) -> Augmentation:
    """Sharpens (a factor above 1) or smooths (below 1), with probability `p`.

    `torchvision.transforms.RandomAdjustSharpness`. Both may be traced.
    """
    within("sharpness", "factor", factor)
    return _maybe("sharpness", p, lambda images: enhance.sharpness_by(images, factor))


def invert(p: Number = 0.5) -> Augmentation:
    """Takes 255 less each level, with probability `p`; `torchvision.transforms.RandomInvert`."""
    return _maybe("invert", p, enhance.inverted)


def autocontrast(p: Number = 0.5) -> Augmentation:
    """Stretches each channel to all levels, with probability `p`.

    `torchvision.transforms.RandomAutocontrast`. p may be traced.
    """
    return _maybe("autocontrast", p, enhance.autocontrasted)


def equalize(p: Number = 0.5) -> Augmentation:
    """Spreads the levels of each channel evenly, with probability `p`.

    `torchvision.transforms.RandomEqualize`. p may be traced.
    """
    op = "equalize"
    probability(op, p)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        images = colored(op, images)
        # As it costs much: of the chosen images only.
        return change_some(enhance.equalized, uniform[:, 0] < p, images)

    return Augmentation(op, 1, apply)


_BLENDS = ("brightness", "contrast", "saturation")


def _maybe(name: str, p: Number, change: Callable[[Array], Array]) -> Augmentation:
    probability(name, p)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        images = colored(name, images)
        return jnp.where(along(uniform[:, 0] < p), change(images), images)

    return Augmentation(name, 1, apply)


def _range(op: str, name: str, value: Strength, centre: float) -> tuple[Number, Number]:
    """The ends between which a factor is drawn: about 1 and never negative, or about 0 for hue."""
    low, high = (0.0, float("inf")) if centre else (-0.5, 0.5)
    if isinstance(value, Sequence):
        return interval(op, name, value, low, high)
    within(op, name, value, 0, high)
    least = centre - value
    if centre:
        least = jnp.maximum(least, 0) if isinstance(least, Array) else max(least, 0.0)
    return least, centre + value
