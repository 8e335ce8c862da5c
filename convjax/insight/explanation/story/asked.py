"""The images that are to be explained: of the run's data, or files of any size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convjax.config import UserError
from convjax.data import views
from convjax.data.dataset import ImageError
from convjax.data.decode import decode
from convjax.insight.explanation.story.findings import image_of
from convjax.names import nearest
from convjax.trained import Trained
from convjax.training.feed import OnDisk, Split


class Asked(NamedTuple):
    """An image that is to be explained.

    name: of its page. source: what it is called there. resized: how it got its size, or "".
    """

    name: str
    source: str
    pixels: np.ndarray
    label: int | None
    resized: str = ""


def of_split(model: Trained, split: str | None, indices: Sequence[int]) -> list[Asked]:
    """The images of these numbers; UserError for a number that there is none of."""
    images, asked = model.split(split), []
    name = model.config.data.test if split is None else split
    for index in indices:
        pixels, label = image_of(images, index)
        source = f"image {index} of {model.config.data.name}, {name}"
        asked.append(Asked(f"explain-{index}", source, pixels, label))
    return asked


def of_files(
    model: Trained, split: Split, files: Sequence[str], labels: Sequence[str]
) -> list[Asked]:
    """Files as images of the run's size; UserError for what cannot be read, or labels that misfit.

    split: tells how images of the run are seen, where they are cropped.
    labels: the classes of the files, in their order, or none.
    """
    if labels and len(labels) != len(files):
        raise UserError(
            f"--labels has {len(labels)} classes for {len(files)} files: give one for each"
        )
    numbers: list[int | None] = [None] * len(files)
    for place, label in enumerate(labels):
        if label not in model.classes:
            raise UserError(f"--labels has {label!r}: {nearest(label, model.classes)}")
        numbers[place] = model.classes.index(label)
    asked = [_decoded(model, split, file, number) for file, number in zip(files, numbers)]
    names: dict[str, int] = {}
    for place, each in enumerate(asked):  # Two files may have one name in two folders.
        names[each.name] = names.get(each.name, 0) + 1
        if names[each.name] > 1:
            asked[place] = each._replace(name=f"{each.name}-{names[each.name]}")
    return asked


def _decoded(model: Trained, split: Split, file: str, label: int | None) -> Asked:
    height, width, channels = model.shape
    source, uniform = split.source, np.full(views.NUMBERS, 0.5)
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"--images={file}: {error.strerror}") from error
    try:
        raw = decode(content, file, views.whole(channels=channels), uniform)
        if isinstance(source, OnDisk):
            view, how = source.view, "cropped and scaled as in evaluation, to"
        else:
            view, how = views.whole(height, width, channels=channels), "stretched to"
        pixels = decode(content, file, view, uniform)
    except ImageError as error:
        raise UserError(f"--images: {error}") from error
    resized = ""
    if raw.shape != pixels.shape:
        resized = (
            f"The file has {raw.shape[0]} x {raw.shape[1]} pixels: it was {how} the "
            f"{height} x {width} that the network sees."
        )
    stem = re.sub(r"[^\w.-]", "_", Path(file).stem)[:80]
    return Asked(f"explain-{stem}", Path(file).name, pixels, label, resized)
