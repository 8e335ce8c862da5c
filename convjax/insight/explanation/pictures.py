"""Arrays as small pictures inside a page: colours, and PNG files as data URIs.

    uri = png(sequential(heat))                     # "data:image/png;base64,..."
    uri = png(diverging(weights))                   # red below zero, blue above

A pixel of the array is a pixel of the file: the page enlarges it.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def sequential(numbers: Any, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Colours from dark blue (low) over green to yellow (high), uint8 `[height, width, 3]`.

    low, high: by default the least and the greatest of the numbers, `[height, width]`.

    >>> sequential(np.array([[0.0, 1.0]])).tolist()
    [[[68, 1, 84], [253, 231, 36]]]
    """
    numbers = np.asarray(numbers, np.float32)
    low = float(numbers.min()) if low is None else low
    high = float(numbers.max()) if high is None else high
    return _coloured((numbers - low) / (high - low if high > low else 1.0), "viridis")


def diverging(numbers: Any, most: float | None = None) -> np.ndarray:
    """Colours from red (below zero) over white to blue (above), uint8 `[height, width, 3]`.

    most: the size that has the full colour, by default the greatest of the numbers' own.

    >>> diverging(np.array([[-2.0, 2.0]])).tolist()
    [[[103, 0, 31], [5, 48, 97]]]
    """
    numbers = np.asarray(numbers, np.float32)
    most = float(np.abs(numbers).max()) if most is None else most
    return _coloured(0.5 + numbers / (2 * most if most > 0 else 1.0), "RdBu")


def colours_of(weights: Any) -> np.ndarray:
    """A filter of three input channels as a colour picture, grey where it is zero, uint8."""
    weights = np.asarray(weights, np.float32)
    most = np.abs(weights).max()
    return np.round(127.5 + 127.5 * weights / (most if most > 0 else 1.0)).astype(np.uint8)


def over(pixels: np.ndarray, heat: Any, share: float = 0.6) -> np.ndarray:
    """A picture in grey under a map of heat, smoothed to its size, uint8 `[height, width, 3]`.

    pixels: uint8 `[height, width, channels]`. heat: `[rows, columns]`, of any size.
    share: of the heat's colours in the mixture.
    """
    height, width = pixels.shape[:2]
    small = Image.fromarray(np.asarray(heat, np.float32))
    large = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    grey = pixels.astype(np.float32).mean(-1, keepdims=True)
    mixed = share * sequential(large, 0.0).astype(np.float32) + (1 - share) * grey
    return np.round(mixed).astype(np.uint8)


def png(pixels: np.ndarray, largest: int = 0) -> str:
    """A PNG file as a data URI, of uint8 `[height, width]`, `[height, width, 1]` or `[..., 3]`.

    largest: the most pixels of a side; a larger picture is averaged down. 0 leaves it as it is.
    """
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if largest and max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.BOX)
    if image.mode == "RGB" and len(image.getcolors(image.width * image.height) or ()) <= 256:
        image = image.quantize(256)  # As few colours as these are kept to the letter.
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _coloured(shares: np.ndarray, colours: str) -> np.ndarray:
    """Colours at these shares of a scale, 0 to 1; 64 steps keep the files small."""
    from matplotlib import colormaps

    steps = np.round(np.clip(np.nan_to_num(shares), 0, 1) * 63) / 63
    return colormaps[colours](steps, bytes=True)[..., :3]
