"""What the tests of `convjax.augment` compare with: images, draws, and what Pillow makes."""

import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from convjax import threefry

BATCH = 32
SEED = 5
KEY = jax.random.key(SEED)


def pictures(height=20, width=24, channels=3, seed=0):
    """Images of bytes, half of them smooth, as photographs are, and half noise."""
    rng = np.random.default_rng(seed)
    shape = (BATCH // 2, height, width, channels)
    smooth = rng.normal(0, 6, shape).cumsum(1).cumsum(2) + rng.integers(0, 256, (shape[0], 1, 1, 1))
    return np.concatenate([smooth.clip(0, 255), rng.integers(0, 256, shape)]).astype(np.uint8)


def by_pillow(images, change):
    """What `change(image, i)` makes of each image as Pillow's."""

    def one(i, image):
        grey = image.shape[-1] == 1
        pil = Image.fromarray(image[..., 0] if grey else image)
        result = np.asarray(change(pil, i))
        return result[..., None] if grey else result

    return np.stack([one(i, image) for i, image in enumerate(images)])


def torchvision_hue(image, turn):
    """`torchvision.transforms.functional.adjust_hue` of an image of Pillow's."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(turn * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def uniform(name, count, images=BATCH, seed=SEED):
    """The numbers that a part of this name draws, by the documented folding, from NumPy alone."""
    key = np.array([0, seed], np.uint32)
    drawn = []
    for image in range(images):
        own = threefry.fold_in(threefry.fold_in(key, image), zlib.crc32(name.encode()))
        drawn.append(threefry.uniform(own, count, 0, 1))
    return np.array(drawn, np.float32)


def below(numbers, count):
    return np.floor(numbers * np.float32(count)).astype(int)


def assert_levels(actual, expected, within=0):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    difference = np.abs(np.asarray(actual).astype(int) - expected)
    assert difference.max() <= within, f"up to {difference.max()} levels in {difference.argmax()}"


@pytest.fixture(scope="module", autouse=True)
def unoptimised_programs():
    """Every program here runs once or twice: to optimise it costs more than it saves."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
