"""Which part of an image is seen, and at which size: plain geometry, with nothing decoded yet.

    view = random_resized_crop(224)                  # to train on
    view = centre_crop(224, resize=256)              # to evaluate on
    view.crop(500, 375, uniform)                     # Crop(box=(31, 12, 402, 301), flip=True)

The random numbers come in, 64 of them an image, so that the same numbers give the same pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NUMBERS = 64  # random numbers an image: ten tries at a crop take 40, mirroring one
TRIES = 10

BILINEAR, BICUBIC = 2, 3  # as Pillow's Image.Resampling counts them


class Crop(NamedTuple):
    """A part of an image.

    box: left, upper, right and lower edge in pixels of the upright image, fractions allowed.
    flip: whether it is mirrored.
    """

    box: tuple[float, float, float, float]
    flip: bool = False


class View(NamedTuple):
    """How an image of any size becomes one of `[height, width, channels]`.

    crop: `(width, height, uniform) -> Crop` of an image of that size; `uniform` is float64
        `[NUMBERS]`, random numbers from 0 to below 1 that are this image's own. It goes to other
        processes: a function of a module, or a `functools.partial` of one.
    height, width: what the crop is resized to; 0 leaves the size as it is.
    channels: 3 for red, green and blue, 1 for grey (ITU-R 601-2 luma, as Pillow has it).
    resample: a number of Pillow's `Image.Resampling`, BILINEAR or BICUBIC. Like PIL's, and unlike
        OpenCV's, both average over all pixels when they make an image smaller.
    draft: decode JPEG files at 1/2, 1/4 or 1/8 of their size where the crop is still as large as
        what is asked for. It is faster, and changes pixels a little.
    """

    crop: Callable[[int, int, np.ndarray], Crop]
    height: int
    width: int
    channels: int = 3
    resample: int = BILINEAR
    draft: bool = False


def random_resized_crop(
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    channels: int = 3,
    resample: int = BILINEAR,
    draft: bool = False,
) -> View:
    """A part of random area and shape, mirrored or not, resized to `[size, size, channels]`.

    The crop of GoogLeNet (Szegedy et al., "Going deeper with convolutions", 2014), drawn as
    torchvision's RandomResizedCrop does: ten tries, and then the largest central part whose shape
    is allowed. Pixels at the edge of the crop are averaged with their neighbours outside of it,
    where torchvision cuts before it resizes.

    scale: the smallest and the largest area, as a share of the image's.
    ratio: the smallest and the largest width over height.
    flip: the probability of being mirrored.

    Raises ValueError for ranges that hold nothing.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale {scale}: give two shares of the area, 0 < least <= most <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio {ratio}: give two ratios of width to height, 0 < least <= most")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip {flip}: give a probability from 0 to 1")
    crop = functools.partial(_random_crop, scale=scale, ratio=ratio, flip=flip)
    return _checked(View(crop, size, size, channels, resample, draft))


def centre_crop(
    size: int,
    *,
    resize: int | None = None,
    channels: int = 3,
    resample: int = BILINEAR,
    draft: bool = False,
) -> View:
    """The centre of the image after its shorter side is resized to `resize`: `[size, size, ...]`.

    Equal to torchvision's Resize(resize) and CenterCrop(size) of PIL images, but in one pass over
    the pixels that are kept. `resize` is `size` by default: the largest square.

    Raises ValueError where `resize` is smaller than `size`.
    """
    resize = size if resize is None else resize
    if resize < size:
        raise ValueError(f"resize {resize} leaves no centre of {size} pixels: give at least {size}")
    crop = functools.partial(_centre_crop, size=size, resize=resize)
    return _checked(View(crop, size, size, channels, resample, draft))


def whole(height: int = 0, width: int = 0, *, channels: int = 3, resample: int = BILINEAR) -> View:
    """All of the image, stretched to that height and width; left at its size where both are 0.

    >>> whole(32, 32).crop(640, 480, np.zeros(NUMBERS))
    Crop(box=(0, 0, 640, 480), flip=False)
    """
    return _checked(View(_whole, height, width, channels, resample))


def draft_scale(crop: Crop, view: View) -> int:
    """By how much, 1, 2, 4 or 8, a JPEG may be decoded smaller and still hold enough pixels.

    >>> draft_scale(Crop((0, 0, 900, 1000)), random_resized_crop(224, draft=True))
    4
    """
    if not (view.draft and view.height and view.width):
        return 1
    left, upper, right, lower = crop.box
    spare = min((right - left) / view.width, (lower - upper) / view.height)
    return next((scale for scale in (8, 4, 2) if spare >= scale), 1)


def _checked(view: View) -> View:
    if view.height < 0 or view.width < 0 or (view.height == 0) != (view.width == 0):
        raise ValueError(f"a view of {view.height}x{view.width} pixels: give at least 1 of each")
    if view.channels not in (1, 3):
        raise ValueError(f"channels {view.channels}: give 3 for colours or 1 for grey")
    return view


def _whole(width: int, height: int, uniform: np.ndarray) -> Crop:
    return Crop((0, 0, width, height))


def _random_crop(
    width: int,
    height: int,
    uniform: np.ndarray,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> Crop:
    numbers = uniform.tolist()
    mirrored = numbers[4 * TRIES] < flip
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for start in range(0, 4 * TRIES, 4):
        u_area, u_ratio, u_left, u_upper = numbers[start : start + 4]
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u_area)
        shape = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u_ratio)
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(u_left * (width - w + 1)), int(u_upper * (height - h + 1))
            return Crop((left, upper, left + w, upper + h), mirrored)
    w, h = width, height
    if width / height < ratio[0]:
        h = min(max(round(width / ratio[0]), 1), height)
    elif width / height > ratio[1]:
        w = min(max(round(height * ratio[1]), 1), width)
    left, upper = (width - w) // 2, (height - h) // 2
    return Crop((left, upper, left + w, upper + h), mirrored)


def _centre_crop(width: int, height: int, uniform: np.ndarray, *, size: int, resize: int) -> Crop:
    # torchvision: the longer side is cut to whole pixels, the corner rounded to the nearest.
    short = min(width, height)
    resized = [int(resize * side / short) if side > short else resize for side in (width, height)]
    left, upper = (round((side - size) / 2) for side in resized)
    per_x, per_y = width / resized[0], height / resized[1]
    return Crop((left * per_x, upper * per_y, (left + size) * per_x, (upper + size) * per_y))
