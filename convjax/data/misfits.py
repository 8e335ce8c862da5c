"""What arrays look like that are no data set yet, and the line of NumPy that mends them.

problem_of_images(images, 60)    # "...: they look like [N,channels,height,width]; give ..."
"""

from __future__ import annotations

import math

import numpy as np


def problem_of_images(images: np.ndarray, labels: int) -> str | None:
    """What is wrong with images, with how to mend it; None where they are uint8 `[N,H,W,C]`.

    labels: how many there are.
    """
    if images.size == 0:
        return f"{_EXPECTED}: there is not one pixel; is the split empty?"
    if images.dtype == object:
        sizes = {np.shape(image) for image in images.flat}
        if len(sizes) > 1:
            return f"{_EXPECTED}: they are of several sizes; resize them, and give np.stack(images)"
        return f"{_EXPECTED}: they are objects; give np.stack(images)"
    if images.dtype.kind not in _NUMBERS:
        return f"{_EXPECTED}: they are no numbers"
    layout, made = _layout(images, labels)
    values, made = _values(images, made)
    if layout or values:
        looks = " of ".join(filter(None, (layout, values)))
        return f"{_EXPECTED}: they look like {looks}{f'; give {made}' if made else ''}"
    if images.shape[-1] == 4 and (images[..., 3] == 255).all():
        return (
            f"{_EXPECTED} without transparency: the fourth channel is 255 everywhere, as alpha "
            "is that hides nothing; give images[..., :3]"
        )
    return None


def problem_of_labels(labels: np.ndarray) -> str | None:
    """What is wrong with the type and shape of labels, with how to mend it; None where nothing."""
    kind = labels.dtype.kind
    if kind not in _NUMBERS:
        return "give numbers, as np.unique(labels, return_inverse=True) makes them of names"
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "give labels[:, 0].astype(np.int32)"
    if labels.ndim == 2 and (np.sort(labels.astype(float), axis=1)[:, -2:] == (0, 1)).all():
        return "they look one-hot; give labels.argmax(axis=1).astype(np.int32)"
    if labels.ndim != 1:
        return "give the number of one class for each image"
    if labels.dtype == np.int32:
        return None
    if kind == "f" and len(odd := labels[~(np.isfinite(labels) & (labels == np.round(labels)))]):
        return f"{odd[0]} is the number of no class; give whole numbers from 0"
    return "give labels.astype(np.int32)"


_EXPECTED = "expected uint8[N,height,width,channels]"
_NUMBERS = "uifb"  # the kinds of dtypes: whole, with a sign, floating, truth values
_CHANNELS = (1, 3)


def _layout(images: np.ndarray, labels: int) -> tuple[str, str]:
    """What the axes look like, empty where they are right, and what puts them right."""
    shape = images.shape
    if images.ndim == 3:
        return "grey [N,height,width]", "images[..., np.newaxis]"
    if images.ndim == 2:
        for channels in _CHANNELS:
            side = math.isqrt(shape[1] // channels)
            if side * side * channels == shape[1]:
                return "rows of pixels", f"images.reshape(-1, {side}, {side}, {channels})"
    if images.ndim != 4:
        return f"no images, with {images.ndim} axes", ""
    if shape[-1] == labels != shape[0]:
        return "[height,width,channels,N]", "np.moveaxis(images, -1, 0)"
    # One of height 1 may be a signal of many channels, but hardly where it is as long as these.
    if shape[-1] > 4 and (shape[1] == 3 or (shape[1] == 1 and shape[2] == shape[3])):
        return "[N,channels,height,width]", "images.transpose(0, 2, 3, 1)"
    return "", "images"


def _values(images: np.ndarray, made: str) -> tuple[str, str]:
    """What the values look like, empty where they are right, and what puts them right, too."""
    kind = images.dtype.kind
    if kind == "b":
        return "truth values", made and f"{made} * np.uint8(255)"
    if images.dtype == np.uint8:
        if images.max() != 1:
            return "", made
        return "0 and 1, where white is 255", made and f"{made} * np.uint8(255)"
    least, most = images.min(), images.max()
    if not np.isfinite(images).all():
        count = images.size - int(np.isfinite(images).sum())
        return f"numbers of which {count} are NaN or infinite, which have to be mended first", ""
    if kind == "f" and least >= 0 and most <= 1:
        return "numbers in 0 to 1", made and f"({made} * 255).round().astype(np.uint8)"
    if kind == "f" and least >= -1 and most <= 1:
        whole = f"(({made} + 1) * 127.5).round().astype(np.uint8)"
        return "numbers in -1 to 1", made and whole
    if least >= 0 and most <= 255:
        rounded = f"{made}.round()" if kind == "f" else made
        return "numbers in 0 to 255", made and f"{rounded}.astype(np.uint8)"
    if images.dtype == np.uint16:
        return "numbers of 16 bits", made and f"({made} // 257).astype(np.uint8)"
    found = f"numbers from {least:g} to {most:g}; "
    return found + "give pixels of 0 to 255, as they are before they are normalised", ""
