"""The host's random numbers: known answers of the paper's authors, and those of JAX."""

import math

import jax
import numpy as np
import pytest
from scipy import special

from convjax import threefry

SIZE = 40_000  # More than two chunks.

# kat_vectors of Random123, the library of Salmon et al.: threefry2x32 with 20 rounds.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def data_of(key):
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_the_hash_gives_the_known_answers(key, counter, expected):
    counters = (np.array([each], np.uint32) for each in counter)
    found = threefry.hash_counts(np.array(key, np.uint32), *counters)
    assert tuple(int(each[0]) for each in found) == expected


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_bits_and_folded_keys_are_those_of_jax(seed):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(
        threefry.bits(data_of(key), 0, SIZE), jax.random.bits(key, (SIZE,))
    )
    for number in (0, 1, 2**32 - 1):
        folded = data_of(jax.random.fold_in(key, number))
        np.testing.assert_array_equal(threefry.fold_in(data_of(key), number), folded)


def test_bits_beyond_the_first_four_billion_count_on_in_the_upper_word():
    key, position = np.array([3, 5], np.uint32), 2**32 + 7
    high, low = threefry.hash_counts(key, np.ones(1, np.uint32), np.array([7], np.uint32))
    assert threefry.bits(key, position, position + 1) == high ^ low


@pytest.mark.parametrize("seed", [0, 7])
def test_uniform_numbers_are_those_of_jax_to_the_bit_and_normal_ones_to_rounding(seed):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(
        threefry.uniform(data_of(key), SIZE, -1.0, 1.0),
        jax.random.uniform(key, (SIZE,), minval=-1.0, maxval=1.0),
    )
    np.testing.assert_allclose(
        threefry.normal(data_of(key), SIZE), jax.random.normal(key, (SIZE,)), rtol=1e-6
    )
    np.testing.assert_allclose(
        threefry.truncated_normal(data_of(key), SIZE),
        jax.random.truncated_normal(key, -2.0, 2.0, (SIZE,)),
        rtol=1e-6,
    )


def test_a_shorter_draw_is_the_beginning_of_a_longer_one():
    key = np.array([1, 2], np.uint32)
    for size in (0, 1, 1000, 1 << 14):
        np.testing.assert_array_equal(threefry.normal(key, SIZE)[:size], threefry.normal(key, size))


def test_the_inverse_error_function_is_that_of_scipy():
    edge = 1 - 2.0**-24
    x = np.concatenate([np.linspace(-0.999, 0.999, 2000), [0.0, edge, -edge, 1e-6, 0.9999]])
    x = x.astype(np.float32)
    expected = special.erfinv(x.astype(np.float64))
    # Near the ends 1 - x^2 has few digits left in float32.
    np.testing.assert_allclose(threefry.erf_inv(x), expected, rtol=1e-5)
    assert math.isclose(
        threefry.erf_inv(np.array([0.5], np.float32))[0], 0.4769362762, rel_tol=1e-6
    )
