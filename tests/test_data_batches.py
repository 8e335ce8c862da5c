"""Batches are a function of (seed, epoch, step); evaluation counts every image once."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from convjax.data import (
    batch_indices,
    channel_statistics,
    epoch_order,
    eval_batches,
    load,
    steps_per_epoch,
)

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
ALL_BITS = 2**64 - 1


def philox(counter: Iterable[int], key: Iterable[int]) -> list[int]:
    """Philox4x64-10 in Python's integers, from the paper (Salmon et al., 2011)."""
    (a, b, c, d), (left, right) = counter, key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b = (second >> 64) ^ b ^ left, second & ALL_BITS
        c, d = (first >> 64) ^ d ^ right, first & ALL_BITS
        left = left + 0x9E3779B97F4A7C15 & ALL_BITS
        right = right + 0xBB67AE8584CAA73B & ALL_BITS
    return [a, b, c, d]


def slow_order(seed: int, epoch: int, size: int) -> list[int]:
    """The documented order: by the numbers of blocks 1, 2, ... under the key (seed, epoch)."""
    blocks = range(1, size // 4 + 2)
    numbers = [number for block in blocks for number in philox((block, 0, 0, 0), (seed, epoch))]
    return sorted(range(size), key=lambda image: numbers[image])


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        (0, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (ALL_BITS, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    ],
)
def test_the_reference_gives_the_known_answers_of_random123(word, answer):
    assert philox([word] * 4, [word] * 2) == [int(part, 16) for part in answer.split()]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (42, 17), (ALL_BITS, 2**63)])
def test_the_order_of_an_epoch_is_the_documented_one(seed, epoch, size):
    order = epoch_order(seed, epoch, size)
    assert order.dtype == np.int32
    assert order.tolist() == slow_order(seed, epoch, size)


def test_the_order_of_an_epoch_never_changes():
    assert epoch_order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_every_image_is_seen_once_an_epoch():
    for epoch in range(3):
        seen = [batch_indices(5, epoch, step, 96, 8) for step in range(steps_per_epoch(96, 8))]
        assert sorted(np.concatenate(seen).tolist()) == list(range(96))


def test_a_batch_named_again_is_the_same_batch():
    def batch():
        return batch_indices(seed=3, epoch=2, step=4, size=1000, batch_size=32)

    first = batch().copy()
    for epoch in range(5):  # Whatever was asked for in between.
        epoch_order(3, epoch, 1000)
    np.testing.assert_array_equal(batch(), first)
    code = "from convjax.data import batch_indices as b; print(b(3, 2, 4, 1000, 32).tolist())"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == str(first.tolist())


def test_a_batch_is_int32_of_one_size_and_cannot_be_spoilt():
    batch = batch_indices(0, 0, 0, 10, 4)
    assert batch.shape == (4,)
    assert batch.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        batch[0] = 0


def test_seeds_and_epochs_give_different_orders():
    orders = {
        tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_each_image_comes_to_each_place_equally_often():
    size, epochs = 8, 4000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[np.arange(size), epoch_order(0, epoch, size)] += 1
    expected = epochs / size
    # Rows and columns of a permutation both add up to one: (size - 1)**2 = 49 degrees of freedom
    # and the factor (size - 1) / size. The 0.999 quantile of chi-squared (tables) is 85.4.
    chi_squared = (size - 1) / size * ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 85.4


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_a_seed_or_an_epoch_beyond_64_bits_is_an_error_that_names_it(seed, epoch):
    name, value = ("epoch", epoch) if seed == 0 else ("seed", seed)
    with pytest.raises(ValueError, match=f"{name} {value} is outside 0 to 2"):
        epoch_order(seed, epoch, 10)


@pytest.mark.parametrize(("size", "batch_size", "steps"), [(10, 10, 1), (10, 3, 3), (10, 1, 10)])
def test_a_short_last_training_batch_is_dropped(size, batch_size, steps):
    assert steps_per_epoch(size, batch_size) == steps
    with pytest.raises(ValueError, match=f"step {steps} is outside 0 to {steps - 1}"):
        batch_indices(0, 0, steps, size, batch_size)
    with pytest.raises(ValueError, match="step -1 is outside"):
        batch_indices(0, 0, -1, size, batch_size)


@pytest.mark.parametrize(("size", "batch_size"), [(10, 11), (10, 0), (10, -1), (0, 1)])
def test_a_batch_size_that_fits_not_once_is_an_error_with_both_numbers(size, batch_size):
    with pytest.raises(ValueError, match=f"batch size {batch_size} for {size} images"):
        steps_per_epoch(size, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("size", [0, 1, 5, 6, 7])
def test_evaluation_counts_every_image_once_in_batches_of_one_size(size, batch_size):
    counted = []
    for indices, mask in eval_batches(size, batch_size):
        assert indices.shape == mask.shape == (batch_size,)
        assert indices.dtype == np.int32
        assert mask.dtype == np.bool_
        assert mask.any()
        assert ((indices >= 0) & (indices < size)).all()
        counted += indices[mask].tolist()
    assert counted == list(range(size))


@pytest.mark.parametrize(("size", "batch_size"), [(-1, 2), (3, 0)])
def test_evaluation_without_a_batch_size_is_an_error_at_once(size, batch_size):
    with pytest.raises(ValueError, match=f"batch size {batch_size} for {size} images"):
        eval_batches(size, batch_size)


def test_channel_statistics_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 256, (1500, 3, 2, 3), np.uint8)
    mean, std = channel_statistics(images)
    pixels = images.astype(np.float64) / 255
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-7)


def test_channel_statistics_do_not_depend_on_the_order_of_images():
    images = np.random.default_rng(0).integers(0, 256, (2100, 2, 2, 1), np.uint8)
    shuffled = images[np.random.default_rng(1).permutation(len(images))]
    for one, other in zip(channel_statistics(images), channel_statistics(shuffled)):
        assert one.tobytes() == other.tobytes()


def test_a_channel_that_never_varies_has_deviation_zero():
    images = np.zeros((2, 3, 3, 2), np.uint8)
    images[..., 1] = 51  # 51 / 255 = 1 / 5
    mean, std = channel_statistics(images)
    np.testing.assert_array_equal(mean, np.array([0, 0.2], np.float32))
    np.testing.assert_array_equal(std, np.zeros(2, np.float32))


@pytest.mark.parametrize("images", [np.zeros((0, 2, 2, 1), np.uint8), np.zeros((1, 2, 2, 1))])
def test_statistics_of_nothing_or_of_floats_are_an_error(images):
    with pytest.raises(ValueError, match=r"expected uint8 images, got (uint8|float64)\["):
        channel_statistics(images)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_statistics_of_fashion_mnist_are_the_published_ones():
    mean, std = channel_statistics(load("fashion_mnist", "train", DEBIAN).images)
    assert [round(float(mean[0]), 4), round(float(std[0]), 4)] == [0.2860, 0.3530]
