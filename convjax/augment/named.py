"""Augmentations as a config writes them: "crop(4)", "flip", "sometimes(0.5, gaussian_blur(5))".

    change = parts_of(["crop(4, mode='reflect')", "alternating_flip", "mine.changes:dim(0.5)"])
    images = change(key, images)

Text is parsed and never run: arguments are literals, names are those of this package or, with a
colon, of a function elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convjax.augment import autoaugment, color, compose, erase, geometric, mix, policies
from convjax.augment.compose import as_augmentation, augment
from convjax.calls import made

PARTS: dict[str, Callable[..., compose.Augmentation]] = {
    function.__name__: function
    for function in (
        *(geometric.crop, geometric.flip, geometric.vertical_flip, geometric.alternating_flip),
        *(geometric.translate, geometric.rotate, geometric.shear, geometric.random_resized_crop),
        *(color.color_jitter, color.grayscale, color.gaussian_blur, color.solarize),
        *(color.posterize, color.sharpness, color.invert, color.autocontrast, color.equalize),
        *(policies.rand_augment, policies.trivial_augment, autoaugment.auto_augment),
        *(erase.cutout, erase.random_erasing, compose.sometimes),
    )
}
MIXES: dict[str, Callable[..., mix.Mix]] = {
    function.__name__: function for function in (mix.mixup, mix.cutmix, mix.mixup_or_cutmix)
}


def parts_of(
    texts: Sequence[str], numbers: Sequence[Mapping[str, Any]] | None = None
) -> Callable[..., Any] | None:
    """What `augment` makes of the parts that are written here, in order; None of none.

    Each is a call with literal arguments, of a name of `PARTS` or of "package.module:function" that
    returns such a part; a name alone is a call without arguments.

    numbers: of each text, what stands for some of its `convjax.calls.floats`, by place.

    >>> change = parts_of(["crop(4, mode='reflect')", "flip"])

    Raises:
        ValueError: names the text, what is wrong with it, and what to write.
    """
    if isinstance(texts, str):
        raise ValueError(f"{texts!r} is one text: give a list of them, as in [{texts!r}]")
    numbers = [{}] * len(texts) if numbers is None else numbers
    return augment(*map(_part, texts, numbers)) if texts else None


def mix_of(text: str | None, numbers: Mapping[str, Any] = {}) -> mix.Mix | None:
    """The mixture that is written here, such as "mixup(0.2)", or None; errors as of `parts_of`."""
    return None if text is None else _made(text, MIXES, numbers)


def _part(text: str, numbers: Mapping[str, Any]) -> compose.Augmentation:
    part = _made(text, PARTS, numbers)
    try:
        return as_augmentation(part)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _made(text: str, known: Mapping[str, Callable[..., Any]], numbers: Mapping[str, Any]) -> Any:
    name = text.partition("(")[0].strip() if isinstance(text, str) else ""
    if known is PARTS and name in MIXES:
        raise ValueError(
            f"{text!r}: {name} mixes images and their labels: write it in config.augment.mix"
        )
    if known is MIXES and name in PARTS:
        raise ValueError(f"{text!r}: {name} mixes nothing: write it in config.augment.parts")
    return made(text, known, "augmentation", nested=compose.sometimes, numbers=numbers)
