"""Common corruptions of images at five severities: how well does a network see through them?

    change = corruption("fog", severity=3, shape=(32, 32, 3))
    images = change(jax.random.key(0), numbers, images)      # uint8 to uint8, one draw an image

Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
perturbations, 2019 (arXiv 1903.12261), with the amounts of their code: those of CIFAR-10-C for
images whose shorter side is below 96 pixels, those of ImageNet-C for larger ones. Every corruption
is a function `(key, image, *amounts) -> image` of one image `[height, width, channels]` in [0, 1];
what leaves [0, 1] is cut off, and the rest to whole levels, as there.

One of their nineteen is missing: frost, which is made of photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convjax.config import UserError
from convjax.insight.evaluation.corruptions import blur, digital, noise, spatter, weather
from convjax.insight.evaluation.corruptions.jpeg import jpeg_compression
from convjax.insight.evaluation.corruptions.sampling import cut
from convjax.layer import fold
from convjax.names import nearest

SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(NamedTuple):
    """A corruption, and its amounts at each severity: of small images and of large ones.

    apply: `(key, image, *amounts) -> image`. colours: whether it needs three channels.
    traced: whether its amounts may be traced, so that all severities share a program.
    """

    apply: Callable[..., Array]
    small: Sequence[tuple[Any, ...]]
    large: Sequence[tuple[Any, ...]]
    colours: bool = False
    traced: bool = False


def _one(*amounts: float) -> list[tuple[float]]:
    return [(each,) for each in amounts]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        noise.gaussian_noise,
        _one(0.04, 0.06, 0.08, 0.09, 0.10),
        _one(0.08, 0.12, 0.18, 0.26, 0.38),
        traced=True,
    ),
    "shot_noise": Corruption(
        noise.shot_noise, _one(500, 250, 100, 75, 50), _one(60, 25, 12, 5, 3), traced=True
    ),
    "impulse_noise": Corruption(
        noise.impulse_noise,
        _one(0.01, 0.02, 0.03, 0.05, 0.07),
        _one(0.03, 0.06, 0.09, 0.17, 0.27),
        traced=True,
    ),
    "speckle_noise": Corruption(
        noise.speckle_noise,
        _one(0.06, 0.1, 0.12, 0.16, 0.2),
        _one(0.15, 0.2, 0.35, 0.45, 0.6),
        traced=True,
    ),
    "gaussian_blur": Corruption(
        blur.gaussian_blur, _one(0.4, 0.6, 0.7, 0.8, 1), _one(1, 2, 3, 4, 6)
    ),
    "defocus_blur": Corruption(
        blur.defocus_blur,
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    "glass_blur": Corruption(
        blur.glass_blur,
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    "motion_blur": Corruption(
        blur.motion_blur,
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    "zoom_blur": Corruption(
        blur.zoom_blur,
        [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
        [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    ),
    "snow": Corruption(
        weather.snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    "fog": Corruption(
        weather.fog,
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        traced=True,
    ),
    "brightness": Corruption(
        weather.brightness,
        _one(0.05, 0.1, 0.15, 0.2, 0.3),
        _one(0.1, 0.2, 0.3, 0.4, 0.5),
        traced=True,
    ),
    "spatter": Corruption(
        spatter.spatter,
        [
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ],
        [
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ],
    ),
    "contrast": Corruption(
        digital.contrast,
        _one(0.75, 0.5, 0.4, 0.3, 0.15),
        _one(0.4, 0.3, 0.2, 0.1, 0.05),
        traced=True,
    ),
    "saturate": Corruption(
        digital.saturate,
        [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
        [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
        colours=True,
        traced=True,
    ),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        # Published in pixels of 224, as multiples of 244.
        [
            tuple(244 / 224 * share for share in amounts)
            for amounts in (
                (2, 0.7, 0.1),
                (2, 0.08, 0.2),
                (0.05, 0.01, 0.02),
                (0.07, 0.01, 0.02),
                (0.12, 0.01, 0.02),
            )
        ],
    ),
    "pixelate": Corruption(
        digital.pixelate, _one(0.95, 0.9, 0.85, 0.75, 0.65), _one(0.6, 0.5, 0.4, 0.3, 0.25)
    ),
    "jpeg_compression": Corruption(
        jpeg_compression,
        _one(80, 65, 58, 50, 40),
        _one(25, 18, 15, 10, 7),
        traced=True,
    ),
}


def corruption(
    name: str, severity: int, shape: tuple[int, int, int]
) -> Callable[[Array, Array, Array], Array]:
    """A function `(key, numbers, images) -> images`, of uint8 images of that shape.

    numbers: int32 `[batch]`. What becomes of an image depends on it, on its number, the key, the
        name and the severity, and on nothing else: not on how the images are divided into batches.
    shape: height, width and channels of an image.

    Raises:
        ValueError: for a name, a severity or a number of channels that there is not.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}: {nearest(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"{name}: severity is {severity!r}: give 1, 2, 3, 4 or 5")
    chosen = CORRUPTIONS[name]
    if shape[-1] not in ((3,) if chosen.colours else (1, 3)):
        raise ValueError(f"{name} does not know images of {shape[-1]} channels: leave it out")
    amounts = (chosen.small if min(shape[:2]) < 96 else chosen.large)[severity - 1]

    def change(key: Array, numbers: Array, images: Array) -> Array:
        key = fold(key, f"{name} {severity}")
        if chosen.traced:
            return _by_traced(key, numbers, images, tuple(map(float, amounts)), chosen.apply)
        return _by_static(key, numbers, images, amounts, chosen.apply)

    return change


def names_of(chosen: str | Iterable[str], channels: int) -> list[str]:
    """The corruptions that a person asks for, "all" or "fog,snow", that these images can have.

    >>> names_of("fog,snow", channels=1)
    ['fog', 'snow']

    Raises:
        UserError: for a name that there is not, with the nearest, and for one that needs colours
            where there are none.
    """
    if channels not in (1, 3):
        raise UserError(
            f"--corruptions: the images have {channels} channels, and corruptions know 1 and 3"
        )
    grey = [name for name, each in CORRUPTIONS.items() if each.colours and channels == 1]
    if chosen == "all":
        return [name for name in CORRUPTIONS if name not in grey]
    names = chosen.split(",") if isinstance(chosen, str) else list(chosen)
    names = list(dict.fromkeys(name.strip() for name in names))
    for name in names:
        if name == "frost":
            raise UserError("--corruptions: frost is made of photographs, which are not here")
        if name not in CORRUPTIONS:
            hint = nearest(name, [*CORRUPTIONS, "all"])
            raise UserError(f"--corruptions: there is no corruption {name!r}; {hint}")
        if name in grey:
            raise UserError(f"--corruptions: {name} needs colours, and the images are grey")
    return names


def _changed(
    key: Array, numbers: Array, images: Array, amounts: tuple[Any, ...], apply: Callable[..., Array]
) -> Array:
    def one(number: Array, image: Array) -> Array:
        own = jax.random.fold_in(key, number)
        return cut(apply(own, image.astype(jnp.float32) / 255, *amounts)).astype(jnp.uint8)

    return jax.vmap(one)(numbers, images)


_by_traced = jax.jit(_changed, static_argnames=("apply",))
_by_static = jax.jit(_changed, static_argnames=("apply", "amounts"))
