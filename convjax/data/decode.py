"""From the bytes of an image file to pixels, by Pillow; what cannot be read faithfully is refused.

    pixels = decode(path.read_bytes(), str(path), random_resized_crop(224), uniform)

Formats are told by content, not by the name: JPEG, PNG, WebP and BMP.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from convjax.data.dataset import ImageError
from convjax.data.views import View, draft_scale


def decode(content: bytes | np.ndarray, place: str, view: View, uniform: np.ndarray) -> np.ndarray:
    """The pixels that a view sees of an image, uint8 `[height, width, channels]`.

    content: the bytes of a file, or pixels uint8 `[height, width, channels]`.
    place: what an error calls it, such as its path.
    uniform: the image's own random numbers, float64 `[NUMBERS]`.

    An orientation that EXIF or XMP note is applied. Converted are grey, black and white, and
    palettes; CMYK as Pillow does, without colour profiles; an alpha channel that hides nothing is
    dropped. Raises ImageError for a file that is empty, cut short, damaged or no image, for one
    of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, before they are decoded, and for 16 bits a
    channel, transparent pixels and animations, which have no one meaning as 8-bit pixels.
    """
    try:
        image = _opened(content, place)
        image = _converted(_upright(image), place, "L" if view.channels == 1 else "RGB")
        crop = view.crop(*image.size, uniform)
        if (scale := draft_scale(crop, view)) > 1 and _drafted(image, scale):
            crop = crop._replace(box=tuple(edge / scale for edge in crop.box))
        image = _resized(image, crop.box, view)
        if crop.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files.
        raise ImageError(
            f"{place} cannot be decoded: {type(error).__name__}: {error}; "
            "copy it again or take it out"
        ) from error
    pixels = np.asarray(image)
    return pixels[..., np.newaxis] if view.channels == 1 else pixels


_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
_SMALLER = "take it out, or write it smaller"
_NOTES = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def _opened(content: bytes | np.ndarray, place: str) -> Image.Image:
    if isinstance(content, np.ndarray):
        if content.shape[-1] not in (1, 3):
            raise ImageError(f"{place} has {content.shape[-1]} channels: give 1 or 3 to a stream")
        return Image.fromarray(content[..., 0] if content.shape[-1] == 1 else content)
    if not content:
        raise ImageError(f"{place} is empty: copy it again or take it out")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ImageError(
            f"{place} is no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file: "
            f"it begins with 0x{content[:8].hex()}; convert it or take it out"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{place} claims too many pixels ({error}): {_SMALLER}") from None
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise ImageError(
            f"{place} claims {image.width}x{image.height} pixels, more than {most}: {_SMALLER}"
        )
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"{place} is an animation: write one of its pictures as a file")
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and "16" in _raw_mode(image)):
        raise ImageError(f"{place} has more than 8 bits a channel: write it with 8")
    return image


def _raw_mode(image: Image.Image) -> str:
    """How a PNG file stores its pixels: Pillow reads `RGB;16B` as RGB, without a word."""
    return str(image.tile[0][3]) if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]


def _upright(image: Image.Image) -> Image.Image:
    # A PNG may have its notes after its pixels, so that Pillow knows of them once it is read.
    if image.format == "PNG":
        image.load()
    if any(note in image.info for note in _NOTES):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _converted(image: Image.Image, place: str, mode: str) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        visible = image.convert("RGBA")
        if np.asarray(visible.getchannel("A")).min() < 255:
            raise ImageError(f"{place} has transparent pixels: put it on a background")
        image = visible.convert(mode)
    elif image.mode not in _MODES:
        raise ImageError(f"{place} is stored as {image.mode}: write it as RGB or grey")
    # Not where it is right already: Pillow would copy it, and decode it before its size is chosen.
    return image if image.mode == mode else image.convert(mode)


def _drafted(image: Image.Image, scale: int) -> bool:
    """Has a JPEG that is not decoded yet decoded at a fraction of its size."""
    size = image.width // scale, image.height // scale
    return image.format == "JPEG" and image.draft(None, size) is not None


def _resized(image: Image.Image, box: tuple[float, float, float, float], view: View) -> Image.Image:
    size = (view.width, view.height) if view.height else image.size
    image.load()
    if box == (0, 0, *image.size) and image.size == size:
        return image
    if not view.height:
        left, upper, right, lower = map(round, box)
        return image.crop((left, upper, right, lower))
    # Of the rounding of fractions, an edge may be beyond the last pixel.
    right, lower = min(box[2], image.width), min(box[3], image.height)
    return image.resize(size, Image.Resampling(view.resample), (*box[:2], right, lower))
