"""Files as people have them: read as Pillow reads them, or refused by name."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from png_files import png_of

from convjax.data.decode import ImageError, decode
from convjax.data.views import NUMBERS, centre_crop, random_resized_crop, whole

NOTHING = np.zeros(NUMBERS)
RNG = np.random.default_rng(0)
Y, X = np.mgrid[:40, :60]
COLOURS = np.stack([4 * X, 6 * Y, 255 - 2 * X - 3 * Y], -1).clip(0, 255).astype(np.uint8)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(content, channels=3):
    return decode(content, "a/b.jpg", whole(channels=channels), NOTHING)


def pillow(content, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "progressive": True}),
        ("JPEG", {"quality": 75, "subsampling": 0}),
    ],
)
def test_every_format_is_read_as_pillow_reads_it(form, options):
    content = saved(Image.fromarray(COLOURS), form, **options)
    found = read(content)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pillow(content))
    np.testing.assert_array_equal(read(content, channels=1)[..., 0], pillow(content, "L"))
    if form != "JPEG":
        np.testing.assert_array_equal(found, COLOURS)


def test_a_file_is_what_its_bytes_say_whatever_its_name():
    np.testing.assert_array_equal(read(saved(Image.fromarray(COLOURS), "PNG")), COLOURS)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_are_converted_as_pillow_does(mode):
    content = saved(Image.fromarray(COLOURS).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(read(content), pillow(content))
    np.testing.assert_array_equal(read(content, channels=1)[..., 0], pillow(content, "L"))


def test_grey_becomes_three_equal_channels():
    grey = COLOURS[..., 0]
    np.testing.assert_array_equal(read(saved(Image.fromarray(grey))), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_channel_that_hides_nothing_is_dropped(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    expected = COLOURS if mode == "RGBA" else np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read(saved(image)), expected)


def empty_png(width, height):
    """A PNG that claims a size and has no pixels, by hand."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


# Pillow warns of 100 million pixels, and refuses 400 million by itself.
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_more_pixels_than_pillow_takes_for_safe_are_an_error_before_they_are_decoded(side, strict):
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        with pytest.raises(ImageError, match=r"a/b.jpg claims (too many|10000x10000) pixels.*take"):
            read(empty_png(side, side))


def test_what_pillow_takes_for_safe_may_be_set(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2399)
    with pytest.raises(ImageError, match=r"claims"):
        read(saved(Image.fromarray(COLOURS)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2400)
    np.testing.assert_array_equal(read(saved(Image.fromarray(COLOURS))), COLOURS)


def test_transparent_pixels_are_an_error():
    image = Image.fromarray(COLOURS).convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 254))
    palette = Image.fromarray(COLOURS).convert("P")
    for content in (
        saved(image),
        saved(image, "WEBP"),
        saved(palette, transparency=palette.getpixel((0, 0))),
    ):
        with pytest.raises(ImageError, match=r"a/b.jpg has transparent pixels: put it on a back"):
            read(content)


def test_sixteen_bits_a_channel_are_an_error():
    grey = saved(Image.fromarray(np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000))
    colours = png_of(2, 1, depth=16, rows=b"\0" + bytes(12))
    assert Image.open(io.BytesIO(colours)).mode == "RGB"  # Pillow says nothing of the lower bytes.
    for content in grey, colours:
        with pytest.raises(
            ImageError, match=r"a/b.jpg has more than 8 bits a channel: write it wi"
        ):
            read(content)


def test_an_animation_is_an_error():
    frames = [Image.fromarray(np.roll(COLOURS, n, 1)) for n in range(3)]
    for form in "PNG", "WEBP":
        content = saved(frames[0], form, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match=r"a/b.jpg is an animation: write one of its pictures"):
            read(content)


def test_the_first_picture_of_a_phones_pair_is_read():
    frames = [Image.fromarray(np.roll(COLOURS, 20 * n, 1)) for n in range(2)]
    content = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert np.abs(read(content).astype(int) - COLOURS).mean() < 4


TURNED = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_that_exif_notes_is_applied(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(COLOURS), form, exif=exif)
    upright = TURNED.get(orientation, lambda a: a)(pillow(content))
    np.testing.assert_array_equal(read(content), upright)
    if orientation == 6:  # A view sees the upright image: here the width is 40.
        square = decode(content, "here", centre_crop(40), NOTHING)
        np.testing.assert_array_equal(square, upright[10:50])


def test_a_draft_is_nearly_the_image_and_without_one_it_is_exact():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    content = saved(small.resize((640, 480), Image.Resampling.BICUBIC), "JPEG", quality=95)
    exact = np.asarray(Image.open(io.BytesIO(content)).resize((60, 60), 2, (80, 0, 560, 480)))
    found = decode(content, "here", centre_crop(60), NOTHING)
    draft = decode(content, "here", centre_crop(60, draft=True), NOTHING)
    np.testing.assert_array_equal(found, exact)
    assert not np.array_equal(draft, exact)
    assert np.abs(draft.astype(int) - exact).mean() < 1.5
    assert np.abs(draft.astype(int) - exact).max() < 24


def test_a_draft_crops_the_same_part():
    ramp = np.broadcast_to(np.linspace(0, 255, 803)[None, :, None], (601, 803, 3)).astype(np.uint8)
    content = saved(Image.fromarray(ramp), "JPEG", quality=95)
    for _ in range(5):
        uniform = RNG.random(NUMBERS)
        plain, draft = (
            decode(content, "here", random_resized_crop(40, draft=draft), uniform).astype(int)
            for draft in (False, True)
        )
        assert np.abs(plain - draft).max() <= 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_file_that_is_cut_short_is_an_error_that_names_it(form):
    noise = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), np.uint8))
    content = saved(noise, form)
    for length in len(content) // 3, len(content) // 2, len(content) - 100:
        with pytest.raises(ImageError, match=r"^a/b.jpg (cannot be decoded: |is no JPEG)"):
            read(content[:length])


def test_a_file_that_is_empty_or_no_image_is_an_error_that_says_so():
    with pytest.raises(ImageError, match=r"^a/b.jpg is empty: copy it again or take it out$"):
        read(b"")
    with pytest.raises(
        ImageError, match=r"^a/b.jpg is no JPEG, PNG, WEBP or BMP file: it begins with 0x3c68746d"
    ):
        read(b"<html>404</html>")
    with pytest.raises(ImageError, match="0x47494638"):  # A format that is not read.
        read(saved(Image.fromarray(COLOURS), "GIF"))


def test_a_damaged_png_is_an_error():
    content = bytearray(saved(Image.fromarray(COLOURS)))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(ImageError, match=r"^a/b.jpg cannot be decoded: "):
        read(bytes(content))
