"""Each change by a given amount equals Pillow's, SciPy's or NumPy's, image by image."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_oracle import (
    BATCH,
    assert_levels,
    by_pillow,
    pictures,
    torchvision_hue,
    unoptimised_programs,  # noqa: F401
)
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from convjax.augment import enhance, warp
from convjax.augment.erase import erase_at

COLOR = pictures()
GREY = pictures(channels=1)
rng = np.random.default_rng(1)
# The factors, turns and slants that RandAugment takes, and others.
FACTORS = np.concatenate([[0, 1, 0.1, 1.9, 0.5, 0.28, 1.27, 1.81], rng.uniform(0, 2.5, BATCH - 8)])
DEGREES = np.concatenate(
    [[0, 90, 180, 270, 45, -30, 30, -9, 135], rng.uniform(-180, 180, BATCH - 9)]
)
SLANTS = np.concatenate([np.arange(-10, 11) * 0.03, rng.uniform(-1, 1, BATCH - 21)])

# -- Colour ----------------------------------------------------------------------------------------

enhancers = {
    "brightness_by": ImageEnhance.Brightness,
    "contrast_by": ImageEnhance.Contrast,
    "saturation_by": ImageEnhance.Color,
    "sharpness_by": ImageEnhance.Sharpness,
}
plain = {
    "greyed": lambda image, i: image.convert("L").convert(image.mode),
    "inverted": lambda image, i: ImageOps.invert(image),
    "equalized": lambda image, i: ImageOps.equalize(image),
}
both = pytest.mark.parametrize("images", [COLOR, GREY], ids=["RGB", "grey"])


@both
@pytest.mark.parametrize("name", enhancers)
def test_factors_equal_pillow_s_enhancers(name, images):
    factors = FACTORS.astype(np.float32)
    expected = by_pillow(images, lambda image, i: enhancers[name](image).enhance(factors[i]))
    assert_levels(jax.jit(getattr(enhance, name))(images, factors), expected)


@both
@pytest.mark.parametrize("name", plain)
def test_changes_without_an_amount_equal_pillow_s(name, images):
    assert_levels(jax.jit(getattr(enhance, name))(images), by_pillow(images, plain[name]))


@both
def test_autocontrast_is_pillow_s_to_one_level_and_exact_but_for_its_rounding(images):
    dull = images // 3 + 50
    actual = jax.jit(enhance.autocontrasted)(dull)
    expected = by_pillow(dull, lambda image, i: ImageOps.autocontrast(image))
    assert_levels(actual, expected, within=1)
    low, high = dull.min((1, 2), keepdims=True), dull.max((1, 2), keepdims=True)
    spread = np.maximum(high.astype(int) - low, 1)
    exact = (dull.astype(int) - low) * 255 // spread
    np.testing.assert_array_equal(actual, np.where(high > low, exact, dull))


@both
def test_solarize_equals_pillow_s(images):
    thresholds = np.arange(BATCH, dtype=np.float32) * 8
    expected = by_pillow(images, lambda image, i: ImageOps.solarize(image, int(thresholds[i])))
    assert_levels(jax.jit(enhance.solarize_at)(images, thresholds), expected)


@both
def test_posterize_equals_pillow_s(images):
    bits = np.arange(BATCH) % 8 + 1
    expected = by_pillow(images, lambda image, i: ImageOps.posterize(image, int(bits[i])))
    assert_levels(jax.jit(enhance.posterize_to)(images, bits), expected)
    assert not np.asarray(enhance.posterize_to(images, 0)).any()


def test_hue_equals_pillow_s_for_every_seventh_colour_and_any_turn():
    steps = np.array([*range(0, 255, 7), 255], np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    turns = np.linspace(-0.5, 0.5, len(cube)).astype(np.float32)
    expected = by_pillow(cube, lambda image, i: torchvision_hue(image, turns[i]))
    assert_levels(jax.jit(enhance.hue_by)(cube, turns), expected)


def test_hue_leaves_grey_images_alone():
    for images in GREY, np.repeat(GREY, 3, axis=-1):
        np.testing.assert_array_equal(jax.jit(enhance.hue_by)(images, 0.3), images)


def test_smoothing_equals_pillow_s_filter_on_images_of_any_size():
    for height, width in (20, 24), (3, 3), (2, 9), (9, 1):
        images = pictures(height, width)
        expected = by_pillow(images, lambda image, i: image.filter(ImageFilter.SMOOTH))
        assert_levels(jax.jit(enhance.sharpness_by)(images, 0.0), expected)


def test_an_image_of_one_level_is_neither_stretched_nor_spread():
    flat = np.full((2, 9, 9, 3), 77, np.uint8)
    for change in enhance.autocontrasted, enhance.equalized:
        np.testing.assert_array_equal(jax.jit(change)(flat), flat)


@pytest.mark.parametrize("size", [3, 7])
def test_blur_equals_scipy_s_correlation_with_mirrored_borders(size):
    sigmas = rng.uniform(0.1, 2, BATCH).astype(np.float32)
    images = COLOR.astype(np.float32) / 255
    distance = np.arange(size) - size // 2
    expected = np.empty_like(images)
    for i, sigma in enumerate(sigmas):
        weight = np.exp(-0.5 * (distance / sigma) ** 2)
        line = ndimage.correlate1d(images[i], weight / weight.sum(), axis=0, mode="mirror")
        expected[i] = ndimage.correlate1d(line, weight / weight.sum(), axis=1, mode="mirror")
    blur = jax.jit(enhance.blur_by, static_argnums=2)
    np.testing.assert_allclose(blur(images, sigmas, size), expected, atol=1e-6)
    in_bytes = np.asarray(blur(COLOR, sigmas, size)).astype(float)
    assert np.abs(in_bytes - 255 * expected).max() <= 0.501


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["contrast_by", "hue_by", "equalized"])
def test_floating_images_give_the_255ths_of_the_same_images_in_bytes(name, dtype):
    change = jax.jit(getattr(enhance, name))
    amount = () if name == "equalized" else (np.float32(0.3),)
    pixels = jnp.asarray(COLOR / np.float32(255), dtype)
    of_bytes, of_numbers = change(COLOR, *amount), change(pixels, *amount)
    assert of_numbers.dtype == dtype
    exact = jnp.asarray(np.asarray(of_bytes) / np.float32(255), dtype).astype(jnp.float32)
    np.testing.assert_allclose(of_numbers.astype(jnp.float32), exact, rtol=2e-7)


# -- Geometry --------------------------------------------------------------------------------------


@both
def test_rotation_equals_pillow_s_nearest(images):
    expected = by_pillow(images, lambda image, i: image.rotate(DEGREES[i]))
    assert_levels(jax.jit(warp.rotate_by)(images, DEGREES.astype(np.float32)), expected)


@pytest.mark.parametrize("name", ["shear_x_by", "shear_y_by"])
def test_shears_equal_pillow_s_affine_transform(name):
    def change(image, i):
        x, y = (SLANTS[i], 0) if name == "shear_x_by" else (0, SLANTS[i])
        return image.transform(image.size, Image.Transform.AFFINE, (1, x, 0, y, 1, 0))

    expected = by_pillow(COLOR, change)
    assert_levels(jax.jit(getattr(warp, name))(COLOR, SLANTS.astype(np.float32)), expected)


def test_a_warp_fills_with_the_colour_that_it_is_given():
    fill = (10, 200, 30)
    expected = by_pillow(COLOR, lambda image, i: image.rotate(30, fillcolor=fill))
    assert_levels(jax.jit(partial(warp.rotate_by, fill=fill))(COLOR, 30.0), expected)


modes: dict[str, Any] = {"zero": "constant", "reflect": "reflect", "edge": "edge"}


@pytest.mark.parametrize("mode", modes)
def test_a_shift_is_a_window_of_numpy_s_padded_image(mode):
    down, right = rng.integers(-6, 7, (2, BATCH))
    padded = np.pad(COLOR, ((0, 0), (6, 6), (6, 6), (0, 0)), mode=modes[mode])
    expected = np.stack(
        [
            image[6 - dy : 6 - dy + 20, 6 - dx : 6 - dx + 24]
            for image, dy, dx in zip(padded, down, right, strict=True)
        ]
    )
    shift = jax.jit(warp.shift_by, static_argnums=3)
    np.testing.assert_array_equal(shift(COLOR, down, right, mode), expected)


def test_a_flip_mirrors_the_named_images_only():
    mask = np.arange(BATCH) % 3 == 0
    right, under = warp.flip_where(COLOR, mask), warp.flip_where(COLOR, mask, vertical=True)
    expected = np.where(mask[:, None, None, None], np.flip(COLOR, 2), COLOR)
    np.testing.assert_array_equal(right, expected)
    expected = np.where(mask[:, None, None, None], np.flip(COLOR, 1), COLOR)
    np.testing.assert_array_equal(under, expected)


@pytest.mark.parametrize("size", [(12, 9), (30, 17)])
def test_a_resized_crop_is_pillow_s_to_one_level(size):
    top, left = rng.integers(0, 6, (2, BATCH))
    height, width = rng.integers(1, 15, (2, BATCH))

    def change(image, i):
        box = (left[i], top[i], left[i] + width[i], top[i] + height[i])
        return image.crop(box).resize(size[::-1], Image.Resampling.BILINEAR)

    crop = jax.jit(warp.resized_crop_at, static_argnums=5)
    expected = by_pillow(COLOR, change)
    assert_levels(crop(COLOR, top, left, height, width, size), expected, within=1)
    floating = crop(COLOR.astype(np.float32), top, left, height, width, size)
    np.testing.assert_allclose(floating, expected.astype(np.float32), atol=1.01)


def test_a_box_is_erased_as_by_numpy_s_slices():
    top, left = rng.integers(-4, 22, (2, BATCH))
    expected = COLOR.copy()
    for image, y, x in zip(expected, top, left, strict=True):
        image[max(y, 0) : max(y + 7, 0), max(x, 0) : max(x + 5, 0)] = (1, 2, 3)
    value = np.array((1, 2, 3))
    np.testing.assert_array_equal(erase_at(COLOR, top, left, 7, 5, value), expected)
