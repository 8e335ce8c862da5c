"""Mixup and CutMix: what is mixed, with which weights, and with which probability."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_oracle import unoptimised_programs  # noqa: F401
from scipy import stats

from convjax.augment import cutmix, mixup, mixup_or_cutmix
from convjax.augment.mix import Box, cutmix_box, cutmix_by, mixup_by, symmetric_beta

KEY = jax.random.key(3)
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (10, 8, 6, 3)).astype(np.uint8)
TARGETS = np.eye(10, dtype=np.float32)


def test_mixup_averages_each_image_with_the_one_at_the_mirrored_place():
    weights = rng.uniform(0, 1, 10).astype(np.float32)
    mix = jax.jit(mixup_by)
    images, targets = mix(IMAGES, TARGETS, weights)
    of_pixels = weights[:, None, None, None]
    exact = of_pixels * IMAGES.astype(float) + (1 - of_pixels) * IMAGES[::-1].astype(float)
    assert images.dtype == np.uint8
    assert np.abs(np.asarray(images) - exact).max() <= 0.5 + 1e-4
    expected = weights[:, None] * TARGETS + (1 - weights[:, None]) * TARGETS[::-1]
    np.testing.assert_allclose(targets, expected, atol=1e-7)
    floating, _ = mix(IMAGES.astype(np.float32), TARGETS, weights)
    np.testing.assert_allclose(floating, exact, rtol=1e-5)


def test_cutmix_pastes_the_box_and_weighs_by_the_area():
    box = Box(*(jnp.asarray(rng.integers(0, 4, 10)) for _ in range(4)))
    images, targets = jax.jit(cutmix_by)(IMAGES, TARGETS, box)
    expected, weights = IMAGES.copy(), np.ones(10)
    for i in range(10):
        top, left, height, width = (int(side[i]) for side in box)
        area = (slice(top, top + height), slice(left, left + width))
        expected[i][area] = IMAGES[9 - i][area]
        weights[i] = 1 - height * width / 48
    np.testing.assert_array_equal(images, expected)
    mixed = weights[:, None] * TARGETS + (1 - weights[:, None]) * TARGETS[::-1]
    np.testing.assert_allclose(targets, mixed, atol=1e-6)


def test_boxes_are_timm_s_cut_off_at_the_border():
    weight = rng.uniform(0, 1, 500).astype(np.float32)
    row, col = rng.integers(0, 32, 500), rng.integers(0, 48, 500)
    made = np.stack(cutmix_box(jnp.asarray(weight), jnp.asarray(row), jnp.asarray(col), 32, 48), 1)
    expected = []
    for share, y, x in zip(np.sqrt(1 - weight), row, col):
        high, wide = int(32 * share), int(48 * share)
        top, bottom = np.clip((y - high // 2, y + high // 2), 0, 32)
        left, right = np.clip((x - wide // 2, x + wide // 2), 0, 48)
        expected.append((top, left, bottom - top, right - left))
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_weights_have_the_distribution_beta(alpha):
    first, second = rng.random((2, 20_000), np.float32)
    drawn = np.asarray(jax.jit(symmetric_beta)(first, second, alpha), float)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    # Bins of equal probability: in float32 what is next to 1 is 1, which a finer test would see.
    bins = np.searchsorted(stats.beta(alpha, alpha).ppf(np.linspace(0, 1, 21)[1:-1]), drawn)
    assert stats.chisquare(np.bincount(bins, minlength=20)).pvalue > 1e-3


def test_weights_are_finite_at_the_ends_of_what_is_drawn():
    ends = jnp.array([0.0, 1 - 2**-23, 0.25, 0.5])
    first, second = (each.ravel() for each in jnp.meshgrid(ends, ends))
    beta = jax.jit(symmetric_beta)
    for alpha in 0.0, 1e-3, 0.2, 1.0, 1e3:
        drawn = np.asarray(beta(first, second, alpha))
        assert ((drawn >= 0) & (drawn <= 1)).all(), alpha


def shares(targets):
    """Of each image's target, the share that is its own label's."""
    return np.asarray(targets)[np.arange(10), np.arange(10)]


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_a_batch_has_one_strength_unless_every_image_is_to_have_its_own(make):
    together = shares(jax.jit(make(1.0))(KEY, IMAGES, TARGETS)[1])
    apart = shares(jax.jit(make(1.0, every=True))(KEY, IMAGES, TARGETS)[1])
    assert len({*together.tolist()}) == 1
    assert len({*apart.tolist()}) > 4


def test_targets_of_cutmix_are_the_areas_that_are_seen():
    pixels = np.broadcast_to(np.arange(10, dtype=np.float32)[:, None, None, None], (10, 8, 6, 1))
    images, targets = jax.jit(cutmix(1.0, every=True))(KEY, pixels, TARGETS)
    own = (np.asarray(images) == pixels).mean((1, 2, 3))
    np.testing.assert_allclose(shares(targets), own, atol=1e-6)
    assert ((own > 0) & (own < 1)).any()


def test_the_chooser_takes_cutmix_with_its_probability_and_mixes_with_p():
    pixels = np.zeros((10, 8, 6, 1), np.float32)
    pixels[:5] = 1

    @jax.jit
    @jax.vmap
    def kinds(key):
        images, targets = mixup_or_cutmix(1.0, 1.0, p=0.8, switch=0.3)(key, pixels, TARGETS)
        grey = ((images > 0) & (images < 1)).any()
        mixed = (jnp.diagonal(targets) < 1).any()
        return grey, mixed

    grey, mixed = kinds(jax.random.split(KEY, 2000))
    assert stats.binomtest(int(grey.sum()), 2000, 0.8 * 0.7).pvalue > 1e-3
    # Of the boxes some are empty: those about so small a share that no pixel is in them.
    by_box = int((mixed & ~grey).sum())
    empty = statistics.fmean([not cut_some(weight) for weight in rng.uniform(0, 1, 20_000)])
    assert stats.binomtest(by_box, 2000, 0.8 * 0.3 * (1 - empty)).pvalue > 1e-3


def cut_some(weight):
    """Whether a box of this weight, in 8 x 6 pixels, has a pixel: each half side is one or more."""
    return int(8 * np.sqrt(1 - weight)) >= 2 and int(6 * np.sqrt(1 - weight)) >= 2


makers = {
    "mixup": mixup,
    "cutmix": cutmix,
    "either": lambda alpha: mixup_or_cutmix(alpha, alpha, every=True),
}


@pytest.mark.parametrize("make", makers.values(), ids=makers)
def test_a_swept_alpha_gives_what_the_python_number_gives_and_zero_mixes_nothing(make):
    swept = jax.jit(jax.vmap(lambda alpha: make(alpha)(KEY, IMAGES, TARGETS)))
    some = swept(jnp.array([0.0, 0.7]))
    np.testing.assert_array_equal(some[0][0], IMAGES)
    np.testing.assert_array_equal(some[1][0], TARGETS)
    images, targets = jax.jit(make(0.7))(KEY, IMAGES, TARGETS)
    np.testing.assert_array_equal(some[0][1], images)
    np.testing.assert_allclose(some[1][1], targets, rtol=1e-6)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match=r"^mixup: alpha must be of 0 or more, got -1"):
        mixup(-1)
    with pytest.raises(ValueError, match=r"^cutmix: p must be between 0 and 1, got 3"):
        cutmix(1.0, p=3)
    with pytest.raises(ValueError, match=r"^mixup_or_cutmix: switch must be between 0 and 1"):
        mixup_or_cutmix(1.0, 1.0, switch=-0.5)
    with pytest.raises(ValueError, match=r"targets floating \[batch, classes\], got int32\[10\]"):
        mixup(1.0)(KEY, IMAGES, np.arange(10))
    with pytest.raises(ValueError, match=r"got float32\[4,10\] for uint8\[10,8,6,3\]"):
        cutmix(1.0)(KEY, IMAGES, TARGETS[:4])
    with pytest.raises(TypeError, match=r"mixup needs a key of jax.random.key, got int"):
        mixup(1.0)(3, IMAGES, TARGETS)  # pyright: ignore[reportArgumentType]
