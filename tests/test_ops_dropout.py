"""Dropout in its three forms: what is kept, how often, by how much, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import compiled, normal
from scipy import stats

from convjax import ops

# The rate is traced here, so that one program serves all rates of a test.
dropout = jax.jit(ops.dropout)
spatial_dropout = jax.jit(ops.spatial_dropout)
drop_path = jax.jit(ops.drop_path)

drops = [dropout, spatial_dropout, drop_path]
by_name = pytest.mark.parametrize("drop", drops, ids=lambda drop: drop.__name__)
key = jax.random.key(3)
# Sizes of the parts that stand or fall together, for an x [batch, height, width, channels].
together = {dropout: (), spatial_dropout: (1, 2), drop_path: (1, 2, 3)}


@by_name
@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_what_is_kept_is_scaled_by_exactly_one_by_one_minus_rate(drop, rate):
    x = normal(16, 4, 3, 6).astype(np.float32)
    y = np.asarray(drop(key, x, rate))
    kept = y != 0
    scale = np.float32(1) / (np.float32(1) - np.float32(rate))
    np.testing.assert_array_equal(y[kept], (x * scale)[kept])
    assert 0 < kept.mean() < 1


@by_name
def test_whole_parts_stand_or_fall_together(drop):
    y = np.asarray(drop(key, np.ones((8, 5, 4, 6), np.float32), 0.5))
    axes = together[drop]
    np.testing.assert_array_equal(y.min(axes), y.max(axes))
    # Parts are drawn apart from one another: all 2 outcomes occur.
    assert set(np.unique(y.max(axes)).tolist()) == {0.0, 2.0}


@by_name
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.7])
def test_each_part_falls_with_the_probability_of_the_rate(drop, rate):
    shape = {dropout: (10, 10, 10, 10), spatial_dropout: (100, 1, 2, 100)}.get(drop, (10_000, 1))
    y = np.asarray(drop(key, np.ones(shape, np.float32), rate))
    if drop is spatial_dropout:
        y = y[:, 0, 0]
    assert y.size == 10_000
    assert stats.binomtest(int((y == 0).sum()), y.size, rate).pvalue > 1e-3


@by_name
def test_the_mean_over_keys_is_x(drop):
    x = normal(2, 2, 2, 3).astype(np.float32)
    keys = jax.random.split(key, 4000)
    draws = np.asarray(jax.vmap(lambda key: drop(key, x, 0.3))(keys))
    # The standard deviation of a mean of n draws is |x| sqrt(rate / (1 - rate) / n).
    error = np.abs(draws.mean(0) - x) / (np.abs(x) * np.sqrt(0.3 / 0.7 / 4000))
    assert error.max() < 4.5


@by_name
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_gradient_passes_where_numbers_pass_and_nowhere_else(drop, rate):
    x = np.abs(normal(8, 3, 2, 4)).astype(np.float32) + 1
    y, pull = jax.vjp(lambda x: drop(key, x, rate), x)
    (gradient,) = pull(jnp.ones_like(y))
    scale = np.float32(1) / (np.float32(1) - np.float32(rate)) if rate < 1 else 0
    np.testing.assert_array_equal(gradient, np.where(np.asarray(y) != 0, scale, 0))
    _, tangent = jax.jvp(lambda x: drop(key, x, rate), (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(tangent, gradient)


@by_name
def test_rate_zero_gives_x_to_the_bit_and_rate_one_gives_zeros(drop):
    x = np.array([[[1.1, -0.0, np.inf]], [[-3.3, 1e-30, 2.0]]], np.float32)
    for rate in (0, 0.0, jnp.float32(0)):
        y = np.asarray(drop(key, x, rate))
        np.testing.assert_array_equal(y.view(np.uint32), x.view(np.uint32))
    for rate in (1, 1.0, jnp.float32(1)):
        np.testing.assert_array_equal(drop(key, x, rate), np.zeros_like(x))


@by_name
def test_a_traced_rate_gives_the_bits_of_the_same_python_number(drop):
    x = normal(8, 3, 2, 4).astype(np.float32)
    rates = [0.0, 0.1, 0.77, 1.0]
    swept = jax.vmap(lambda rate: drop(key, x, rate))(jnp.asarray(rates, jnp.float32))
    constant = compiled(getattr(ops, drop.__name__))
    for rate, y in zip(rates, swept, strict=True):
        np.testing.assert_array_equal(y, constant(key, x, rate))


@by_name
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_gradient_by_the_rate_is_finite(drop, rate):
    # Of the kept numbers, x / (1 - rate) has the slope x / (1 - rate)^2.
    x = np.abs(normal(8, 3, 2, 4)).astype(np.float32)
    gradient = jax.grad(lambda rate: drop(key, x, rate).sum())(jnp.float32(rate))
    kept = np.asarray(drop(key, x, rate)) != 0
    expected = (x[kept] / (1 - rate) ** 2).sum() if rate < 1 else 0
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@by_name
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_scaled_in_float32_and_rounded_once(drop, dtype):
    x = jnp.asarray(normal(8, 3, 2, 4), dtype)
    y = drop(key, x, 0.1)
    assert y.dtype == dtype
    scale = np.float32(1) / (np.float32(1) - np.float32(0.1))
    scaled = jnp.asarray(np.asarray(x, np.float32) * scale, dtype)
    kept = np.asarray(y, np.float32) != 0
    np.testing.assert_array_equal(y.astype(np.float32)[kept], scaled.astype(np.float32)[kept])


@by_name
def test_another_key_draws_another_mask_and_the_same_key_the_same(drop):
    x = np.ones((32, 2, 2, 4), np.float32)
    first, second = (drop(jax.random.key(seed), x, 0.5) for seed in (0, 1))
    assert (np.asarray(first) != np.asarray(second)).any()
    np.testing.assert_array_equal(first, drop(jax.random.key(0), x, 0.5))


@by_name
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), np.float32(2)])
def test_a_number_that_is_no_probability_is_refused(drop, rate):
    with pytest.raises(ValueError, match=rf"{drop.__name__}: rate is a probability .* got {rate}"):
        getattr(ops, drop.__name__)(key, np.ones((2, 3, 4), np.float32), rate)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"rate must be one number, got float32\[2\]"):
        dropout(key, np.ones((2, 3), np.float32), jnp.ones(2, jnp.float32) / 2)
    with pytest.raises(ValueError, match=r"spatial_dropout needs x .* got float32\[2,3\]"):
        spatial_dropout(key, np.ones((2, 3), np.float32), 0.5)
    with pytest.raises(TypeError, match=r"dropout computes .* got int32\[2\]: convert x first"):
        dropout(key, np.ones(2, np.int32), 0.5)
