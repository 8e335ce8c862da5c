"""Which part of an image is seen: equal to torchvision's formulas, and to Pillow's pixels."""

import math

import numpy as np
import pytest
from PIL import Image

from convjax.data.decode import decode
from convjax.data.views import (
    BICUBIC,
    NUMBERS,
    Crop,
    centre_crop,
    draft_scale,
    random_resized_crop,
    whole,
)

RNG = np.random.default_rng(0)


def photo(width, height, seed=0):
    """Smooth colours with some noise: unlike pure noise, it survives being resized."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (5 + c) + y / (9 - c)) for c in range(3)]
    return (np.stack(waves, -1) + rng.normal(0, 10, (height, width, 3))).clip(0, 255).astype("u1")


def seen(pixels, view, uniform=None):
    uniform = np.zeros(NUMBERS) if uniform is None else uniform
    return decode(pixels, "here", view, uniform)


@pytest.mark.parametrize("size", [(500, 375), (31, 200), (64, 64), (3, 3)])
def test_a_random_crop_is_that_of_torchvision_for_the_same_draws(size):
    width, height = size
    view = random_resized_crop(32)
    for _ in range(100):
        uniform = RNG.random(NUMBERS)
        draws = iter(uniform[:40].tolist())
        for _ in range(10):
            # RandomResizedCrop.get_params of torchvision 0.20, with its draws replaced by ours.
            area, log_ratio = width * height, (math.log(3 / 4), math.log(4 / 3))
            target = area * (0.08 + (1 - 0.08) * next(draws))
            aspect = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * next(draws))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            u_left, u_upper = next(draws), next(draws)
            if 0 < w <= width and 0 < h <= height:
                left = math.floor(u_left * (width - w + 1))
                upper = math.floor(u_upper * (height - h + 1))
                break
        else:
            w, h = width, height
            if width / height < 3 / 4:
                h = round(w / (3 / 4))
            elif width / height > 4 / 3:
                w = round(h * (4 / 3))
            left, upper = (width - w) // 2, (height - h) // 2
        expected = Crop((left, upper, left + w, upper + h), bool(uniform[40] < 0.5))
        assert view.crop(width, height, uniform) == expected


def test_areas_and_shapes_of_random_crops_are_spread_as_asked_for():
    view = random_resized_crop(32, scale=(0.25, 0.75), ratio=(1 / 2, 2), flip=0.25)
    crops = [view.crop(1000, 1000, RNG.random(NUMBERS)) for _ in range(2000)]
    boxes = np.array([crop.box for crop in crops])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas = w * h / 1e6
    assert 0.249 < areas.min() < 0.27
    assert 0.7 < areas.max() < 0.751
    # Uniform in area and in the logarithm of the shape: means of 2,000 draws, three deviations.
    # Tall shapes of large areas do not fit and are drawn again, which takes from the mean area.
    assert 0.4 < areas.mean() < 0.51
    assert abs(np.log(w / h).mean()) < 3 * math.log(4) / math.sqrt(12 * 2000)
    assert abs(np.mean([crop.flip for crop in crops]) - 0.25) < 3 * math.sqrt(0.1875 / 2000)
    assert (boxes >= 0).all()
    assert (boxes <= 1000).all()
    assert boxes[:, 0].min() < 10
    assert boxes[:, 2].max() > 990


def test_a_crop_is_resized_as_pillow_does():
    pixels, view = photo(200, 150), random_resized_crop(48)
    for _ in range(5):
        uniform = RNG.random(NUMBERS)
        box, flip = view.crop(200, 150, uniform)
        expected = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR, box)
        expected = np.asarray(expected)[:, ::-1] if flip else np.asarray(expected)
        np.testing.assert_array_equal(seen(pixels, view, uniform), expected)


def test_a_crop_differs_from_one_cut_first_at_its_edge_only():
    pixels, view = photo(200, 150), random_resized_crop(48, scale=(0.3, 0.9), flip=0.0)
    for _ in range(5):
        uniform = RNG.random(NUMBERS)
        box, _ = view.crop(200, 150, uniform)
        left, upper, right, lower = box
        cut = Image.fromarray(pixels).crop((left, upper, right, lower))
        expected = np.asarray(cut.resize((48, 48), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(seen(pixels, view, uniform)[2:-2, 2:-2], expected[2:-2, 2:-2])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (300, 257), (1000, 260)])
@pytest.mark.parametrize("resample", [2, BICUBIC])
def test_a_centre_crop_is_that_of_resizing_all_and_cutting_then(size, resample):
    width, height = size
    pixels = photo(width, height)
    short = min(size)
    # torchvision's Resize(256) and CenterCrop(224) of a PIL image.
    resized = [int(256 * side / short) if side > short else 256 for side in size]
    image = Image.fromarray(pixels).resize(resized, Image.Resampling(resample))
    left, upper = (round((side - 224) / 2.0) for side in resized)
    expected = np.asarray(image.crop((left, upper, left + 224, upper + 224)))
    found = seen(pixels, centre_crop(224, resize=256, resample=resample))
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1  # of the rounding of the edges
    assert (difference > 0).mean() < 0.01


def test_a_view_of_all_stretches_it_or_leaves_it():
    pixels = photo(40, 30)
    np.testing.assert_array_equal(seen(pixels, whole()), pixels)
    stretched = Image.fromarray(pixels).resize((10, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(seen(pixels, whole(20, 10)), np.asarray(stretched))
    np.testing.assert_array_equal(seen(pixels, whole(30, 40)), pixels)
    assert seen(pixels, whole(20, 10, channels=1)).shape == (20, 10, 1)


def test_a_draft_is_taken_only_where_enough_pixels_are_left():
    view = random_resized_crop(100, draft=True)
    for side, scale in (199, 1), (200, 2), (399, 2), (400, 4), (799, 4), (800, 8), (5000, 8):
        assert draft_scale(Crop((7, 7, 7 + side, 7 + 2 * side)), view) == scale
    assert draft_scale(Crop((0, 0, 5000, 5000)), random_resized_crop(100)) == 1
    assert draft_scale(Crop((0, 0, 5000, 5000)), whole()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_resized_crop(8, scale=(0, 1)), "scale"),
        (lambda: random_resized_crop(8, scale=(0.5, 2)), "scale"),
        (lambda: random_resized_crop(8, ratio=(2, 1)), "ratio"),
        (lambda: random_resized_crop(8, flip=2), "flip 2: give a probability"),
        (lambda: random_resized_crop(-8), "a view of -8x-8 pixels"),
        (lambda: centre_crop(8, resize=4), "resize 4 leaves no centre of 8 pixels"),
        (lambda: whole(8), "a view of 8x0 pixels"),
        (lambda: whole(8, 8, channels=4), "channels 4: give 3 for colours or 1 for grey"),
    ],
)
def test_a_view_of_nothing_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
