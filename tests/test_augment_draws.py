"""What each augmentation draws and how often, and that it makes of it what its reference makes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_oracle import (
    KEY,
    assert_levels,
    below,
    by_pillow,
    pictures,
    torchvision_hue,
    uniform,
    unoptimised_programs,  # noqa: F401
)
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from convjax.augment import (
    Draw,
    alternating_flip,
    augment,
    autocontrast,
    color_jitter,
    crop,
    cutout,
    equalize,
    flip,
    gaussian_blur,
    grayscale,
    invert,
    posterize,
    random_erasing,
    random_resized_crop,
    rotate,
    sharpness,
    shear,
    solarize,
    translate,
    vertical_flip,
)
from convjax.augment.geometric import crop_box

IMAGES = pictures(18, 16)
BATCH, HEIGHT, WIDTH, _ = IMAGES.shape
MANY = 4096

# -- On fixed draws --------------------------------------------------------------------------------


def shifted(image, down, right, mode):
    """The window of NumPy's padded image; `image` is Pillow's."""
    padded = np.pad(image, ((HEIGHT, HEIGHT), (WIDTH, WIDTH), (0, 0)), mode=mode)
    return padded[HEIGHT - down : 2 * HEIGHT - down, WIDTH - right : 2 * WIDTH - right]


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def slanted(image, u):
    x, y = 0.4 * (2 * u[0] - 1), 0.3 * (2 * u[1] - 1)
    return affine(affine(image, 1, x, 0, 0, 1, 0), 1, 0, 0, y, 1, 0)


def blurred(image, u):
    weight = np.exp(-0.5 * (np.arange(-2, 3) / (0.5 + u[0])) ** 2)
    x = np.asarray(image, np.float64)
    for axis in 0, 1:
        x = ndimage.correlate1d(x, weight / weight.sum(), axis=axis, mode="mirror")
    return np.round(x).astype(np.uint8)


def resized(image, u):
    top, left, height, width = torchvision_box(u, (HEIGHT, WIDTH), (0.08, 1.0), (3 / 4, 4 / 3))
    box = (left, top, left + width, top + height)
    return image.crop(box).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def erased(image, u):
    """`torchvision.transforms.RandomErasing`, of a drawn image."""
    made = np.array(image)
    low, high = np.log(np.array((0.2, 0.8), np.float32))
    for i in range(10):
        area = HEIGHT * WIDTH * (0.02 + 0.31 * u[i])
        shape = np.exp(low + (high - low) * u[10 + i])
        h, w = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if h < HEIGHT and w < WIDTH:
            break
    else:
        return made
    top, left = int(u[21] * (HEIGHT - h + 1)), int(u[22] * (WIDTH - w + 1))
    if u[20] < 0.6:
        made[top : top + h, left : left + w] = 7
    return made


def hidden(image, u):
    """The cutout of the paper's code."""
    made = np.array(image)
    y, x = below(u[0], HEIGHT), below(u[1], WIDTH)
    made[max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = (1, 2, 3)
    return made


def when(p, change):
    """The change with probability p, of the one number that is drawn."""
    return lambda image, u: change(image) if u[0] < p else image


def jittered(image, u):
    """`torchvision.transforms.ColorJitter` of images of Pillow's, in the order that is drawn."""
    strength = np.array([0.4, 0.5, 0.6, 0.2], np.float32)
    factors = np.array([1, 1, 1, 0], np.float32) + strength * (2 * u[:4] - 1)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in np.argsort(u[4:]):
        if kind == 3:
            image = torchvision_hue(image, factors[kind])
        else:
            image = enhancers[kind](image).enhance(factors[kind])
    return image


def torchvision_box(u, size, scale, ratio):
    """`RandomResizedCrop.get_params` of torchvision, with the numbers that it would have drawn."""
    height, width = size
    logs = np.log(np.float32(ratio))
    for i in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[i])
        shape = np.exp(logs[0] + (logs[1] - logs[0]) * u[10 + i])
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    shape = width / height
    w = round(height * ratio[1]) if shape > ratio[1] else width
    h = round(width / ratio[0]) if shape < ratio[0] else height
    return (height - h) // 2, (width - w) // 2, h, w


# The augmentation, and what its reference makes of an image by the numbers that it draws.
references = {
    "crop": (
        crop(3, mode="reflect"),
        lambda image, u: shifted(image, below(u[0], 7) - 3, below(u[1], 7) - 3, "reflect"),
    ),
    "flip": (flip(0.3), when(0.3, ImageOps.mirror)),
    "vertical_flip": (vertical_flip(), when(0.5, ImageOps.flip)),
    "translate": (
        translate(0.3, mode="edge"),
        lambda image, u: shifted(
            image, round(0.3 * HEIGHT * (2 * u[0] - 1)), round(0.3 * WIDTH * (2 * u[1] - 1)), "edge"
        ),
    ),
    "rotate": (rotate(40), lambda image, u: image.rotate(40 * (2 * float(u[0]) - 1))),
    "shear": (shear(0.4, 0.3), slanted),
    "random_resized_crop": (random_resized_crop((HEIGHT, WIDTH)), resized),
    "color_jitter": (color_jitter(0.4, 0.5, 0.6, 0.2), jittered),
    "grayscale": (grayscale(0.4), when(0.4, lambda image: image.convert("L").convert("RGB"))),
    "gaussian_blur": (gaussian_blur(5, (0.5, 1.5)), blurred),
    "solarize": (solarize(100), when(0.5, partial(ImageOps.solarize, threshold=100))),
    "posterize": (posterize(3), when(0.5, partial(ImageOps.posterize, bits=3))),
    "sharpness": (sharpness(1.7), when(0.5, lambda x: ImageEnhance.Sharpness(x).enhance(1.7))),
    "invert": (invert(0.3), when(0.3, ImageOps.invert)),
    "autocontrast": (autocontrast(), when(0.5, ImageOps.autocontrast)),
    "equalize": (equalize(), when(0.5, ImageOps.equalize)),
    "cutout": (cutout(6, value=(1, 2, 3)), hidden),
    "random_erasing": (random_erasing(0.6, ratio=(0.2, 0.8), value=7), erased),
}
ONE_LEVEL_OFF = ("random_resized_crop", "gaussian_blur", "autocontrast")


@pytest.fixture(scope="module")
def made():
    """What each augmentation makes of the images, in one program."""
    changes = {name: change for name, (change, _) in references.items()}
    every = jax.jit(lambda key, x: {name: change(key, x) for name, change in changes.items()})
    return every(KEY, IMAGES)


@pytest.mark.parametrize("name", references)
def test_an_augmentation_equals_its_reference_on_the_numbers_that_it_draws(made, name):
    change, reference = references[name]
    u = uniform(name, change.draws)
    expected = by_pillow(IMAGES, lambda image, i: reference(image, u[i]))
    assert (expected != IMAGES).any((1, 2, 3)).mean() > 0.15, "the reference changed little"
    if name == "color_jitter":
        # A factor that differs by its last bit may move a level by one, and hue by more.
        assert (np.asarray(made[name]) != expected).mean() < 1e-3
    else:
        assert_levels(made[name], expected, within=int(name in ONE_LEVEL_OFF))


def test_color_jitter_draws_an_order_for_each_image():
    assert len({tuple(np.argsort(each)) for each in uniform("color_jitter", 8)[:, 4:]}) > 12


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [((30, 40), (0.08, 1.0), (3 / 4, 4 / 3)), ((10, 64), (0.9, 1.0), (0.5, 2.0))]
    + [((64, 10), (0.9, 1.0), (0.5, 2.0))],
    ids=["photograph", "too wide", "too high"],
)
def test_boxes_of_random_resized_crop_are_torchvision_s(size, scale, ratio):
    drawn = np.random.default_rng(0).random((256, 22), np.float32)
    boxes = np.stack(jax.jit(lambda u: crop_box(u, size, scale, ratio))(drawn), 1)
    expected = np.array([torchvision_box(u, size, scale, ratio) for u in drawn])
    np.testing.assert_array_equal(boxes, expected)


# -- How often -------------------------------------------------------------------------------------


def spot(height=9, width=9):
    """Many images of one bright pixel in the middle: where it goes tells how an image moved."""
    images = np.zeros((MANY, height, width, 1), np.uint8)
    images[:, height // 2, width // 2] = 255
    return images


def test_crop_takes_all_windows_equally_often():
    made = np.asarray(jax.jit(crop(2))(KEY, spot()))
    assert (made.sum((1, 2, 3)) == 255).all()
    place = made.reshape(MANY, -1).argmax(1)
    counts = np.bincount(place, minlength=81).reshape(9, 9)[2:7, 2:7]
    assert counts.sum() == MANY
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_translate_goes_a_fraction_of_the_size_and_rounds():
    made = np.asarray(jax.jit(translate(0.2))(KEY, spot()))
    down = made.reshape(MANY, -1).argmax(1) // 9 - 4
    # Uniform over [-1.8, 1.8) and rounded: the outermost have 1.3 of 3.6, halved, the middle 1.
    counts = np.bincount(down + 2, minlength=5)
    expected = MANY * np.array([0.3, 1, 1, 1, 0.3]) / 3.6
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def halves():
    """Many images whose left pixel is 0 and whose right one is 1."""
    images = np.zeros((MANY, 1, 2, 1), np.uint8)
    images[:, :, 1] = 1
    return images


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_flip_mirrors_with_its_probability_and_images_apart(p):
    made = np.asarray(jax.jit(lambda p: flip(p)(KEY, halves()))(p))[:, 0, 0, 0]
    assert stats.binomtest(int(made.sum()), MANY, p).pvalue > 1e-3
    if 0 < p < 1:
        pairs = np.bincount(2 * made[::2] + made[1::2], minlength=4) * 2 / MANY
        apart = np.outer([1 - p, p], [1 - p, p]).ravel()
        assert stats.chisquare(pairs * MANY / 2, apart * MANY / 2).pvalue > 1e-3


def test_areas_of_random_resized_crop_and_the_logarithm_of_its_shapes_are_uniform():
    drawn = np.random.default_rng(1).random((MANY, 22), np.float32)
    # So small that the first of the tries always fits, so large that rounding does not show.
    box = jax.jit(lambda u: crop_box(u, (4000, 4000), (0.1, 0.3), (0.5, 2.0)))
    top, left, height, width = (np.asarray(side, float) for side in box(drawn))
    area = (height * width / 4000**2 - 0.1) / 0.2
    assert stats.kstest(area, "uniform").pvalue > 1e-3
    assert stats.kstest(np.log2(width / height) / 2 + 0.5, "uniform").pvalue > 1e-3
    assert stats.kstest(top / (4000 - height), "uniform").pvalue > 1e-3
    assert stats.kstest(left / (4000 - width), "uniform").pvalue > 1e-3


def test_random_erasing_by_noise_draws_every_level_of_each_pixel():
    images = np.zeros((64, 32, 32, 3), np.uint8)
    change = random_erasing(1.0, scale=(0.33, 0.33), ratio=(1.0, 1.0), value=None)
    drawn = np.asarray(jax.jit(change)(KEY, images))
    levels = drawn[drawn > 0]
    assert stats.chisquare(np.bincount(levels, minlength=256)[1:]).pvalue > 1e-3
    share = (drawn > 0).any(-1).mean()
    assert 0.30 < share < 0.36


# -- Alternating flip ------------------------------------------------------------------------------

RUN = jax.random.key(1)


@jax.jit
def mirrored(run, numbers, epoch):
    """Whether each image is mirrored, 0 or 1, by a step key that has no say in it."""
    step = jax.random.fold_in(KEY, epoch)
    made = augment(alternating_flip())(Draw(step, run, numbers, epoch), halves())
    return made[:, 0, 0, 0]


def test_alternating_flip_shows_both_sides_in_any_two_epochs_and_half_of_the_images_each():
    numbers = np.arange(MANY) * 7 + 3
    first, second, third = (np.asarray(mirrored(RUN, numbers, epoch)) for epoch in range(3))
    np.testing.assert_array_equal(first + second, np.ones(MANY, np.uint8))
    np.testing.assert_array_equal(first, third)
    assert stats.binomtest(int(first.sum()), MANY, 0.5).pvalue > 1e-3
    pairs = np.bincount(2 * first[::2] + first[1::2], minlength=4)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_alternating_flip_is_the_image_s_own_wherever_in_a_batch_it_comes_and_another_in_each_run():
    numbers = np.arange(MANY)
    first = np.asarray(mirrored(RUN, numbers, 0))
    np.testing.assert_array_equal(mirrored(RUN, numbers[::-1].copy(), 0), first[::-1])
    other = np.asarray(mirrored(jax.random.key(2), numbers, 0))
    assert stats.binomtest(int((first == other).sum()), MANY, 0.5).pvalue > 1e-3


def test_a_draw_changes_nothing_for_what_asks_for_its_key_alone():
    change = jax.jit(augment(crop(2), flip()))
    draw = Draw(KEY, RUN, np.arange(BATCH), 3)
    np.testing.assert_array_equal(change(draw, IMAGES), change(KEY, IMAGES))


def test_alternating_flip_without_all_that_it_must_know_is_refused():
    numbers = jnp.arange(BATCH)
    for incomplete in KEY, Draw(KEY), Draw(KEY, RUN, numbers), Draw(KEY, None, numbers, 0):
        with pytest.raises(ValueError, match=r"^alternating_flip must .* Draw\(key, run_key, num"):
            alternating_flip()(incomplete, IMAGES)
    for wrong in numbers[:3], jnp.zeros(BATCH), jnp.int32(3):
        with pytest.raises(ValueError, match=r"^alternating_flip: Draw.numbers must be a whole"):
            alternating_flip()(Draw(KEY, RUN, wrong, 0), IMAGES)
    with pytest.raises(ValueError, match=r"^alternating_flip: Draw.epoch must be a whole .* float"):
        alternating_flip()(Draw(KEY, RUN, numbers, 1.5), IMAGES)
    with pytest.raises(TypeError, match=r"^alternating_flip: Draw.run must be one key of jax.ran"):
        alternating_flip()(Draw(KEY, jnp.zeros(2, jnp.uint32), numbers, 0), IMAGES)
