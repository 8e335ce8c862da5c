"""First values: their spread against theory, their bounds, eager draws against compiled ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from convjax import conv, depthwise_conv
from convjax.initializers import (
    constant,
    fans,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    normal,
    ones,
    truncated_normal,
    uniform,
    variance_scaling,
    zeros,
)

KEY = jax.random.key(7)
SHAPE = (5, 4, 30, 20)  # fan-in 600, fan-out 400, 12,000 numbers

# Each with the variance that its paper asks for.
EXPECTED = {
    "normal": (normal(0.3), 0.3**2, stats.norm),
    "truncated_normal": (truncated_normal(0.3), 0.3**2, stats.truncnorm(-2, 2)),
    "uniform": (uniform(0.3), 0.3**2 / 3, stats.uniform(-1, 2)),
    "he_normal": (he_normal, 2 / 600, stats.norm),
    "he_uniform": (he_uniform, 2 / 600, stats.uniform(-1, 2)),
    "lecun_normal": (lecun_normal, 1 / 600, stats.norm),
    "glorot_normal": (glorot_normal, 2 / (600 + 400), stats.norm),
    "glorot_uniform": (glorot_uniform, 2 / (600 + 400), stats.uniform(-1, 2)),
    "fan_out": (variance_scaling(2.0, "fan_out"), 2 / 400, stats.norm),
    "truncated": (
        variance_scaling(2.0, "fan_in", "truncated_normal"),
        2 / 600,
        stats.truncnorm(-2, 2),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_mean_variance_and_distribution_are_those_of_the_paper(name):
    init, variance, distribution = EXPECTED[name]
    values = np.asarray(init(KEY, SHAPE), np.float64).ravel()
    size, deviation = values.size, math.sqrt(variance)
    # The mean of n numbers has variance v / n; theirs has v^2 (kurtosis - 1) / n, and the excess
    # kurtosis is at most 0 for all of these: four standard deviations.
    assert abs(values.mean()) < 4 * deviation / math.sqrt(size)
    assert abs(values.var() / variance - 1) < 4 * math.sqrt(2 / size)
    unit = values / deviation * distribution.std()
    assert stats.kstest(unit, distribution.cdf).pvalue > 1e-3


def test_fans_count_the_window_on_both_sides():
    assert fans((7, 3)) == (7, 3)
    assert fans((5, 7, 3)) == (35, 15)
    assert fans((2, 3, 4, 10, 20)) == (240, 480)
    with pytest.raises(ValueError, match=r"at least two axes \[in, out\], not the shape \(3,\)"):
        fans((3,))


def test_the_fan_in_of_a_grouped_and_a_depthwise_kernel_is_what_one_output_sees():
    x = jax.ShapeDtypeStruct((1, 8, 8, 64), jnp.float32)
    for layer, seen in ((conv(128, 3, groups=4), 3 * 3 * 16), (depthwise_conv(3), 3 * 3)):
        kernel = np.asarray(layer.init(KEY, x)[0]["kernel"])
        assert abs(kernel.var() / (2 / seen) - 1) < 4 * math.sqrt(2 / kernel.size)


def test_truncated_and_uniform_numbers_stay_within_their_bounds():
    # A cut at two deviations of the uncut normal, widened so that the cut one has deviation 0.3.
    cut = 2 * 0.3 / stats.truncnorm(-2, 2).std()
    values = np.abs(np.asarray(truncated_normal(0.3)(KEY, SHAPE)))
    assert 0.99 * cut < values.max() <= cut * (1 + 1e-6)
    values = np.abs(np.asarray(uniform(0.3)(KEY, SHAPE)))
    assert 0.99 * 0.3 < values.max() <= 0.3 * (1 + 1e-6)


@pytest.mark.parametrize("init", [he_normal, truncated_normal(0.5), uniform(2.0), constant(3.0)])
def test_an_eager_draw_equals_a_compiled_one(init):
    shape = (3, 3, 10, 20)  # More than the thousand numbers of the smallest draw.
    eager = init(KEY, shape)
    compiled = jax.jit(lambda key: init(key, shape))(KEY)
    assert eager.shape == compiled.shape == shape
    assert eager.dtype == compiled.dtype == jnp.float32
    np.testing.assert_allclose(eager, compiled, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 32)])
def test_a_draw_equals_the_normal_numbers_of_jax_times_the_deviation(shape):
    deviation = np.float32(math.sqrt(2 / math.prod(shape[:-1])))
    expected = np.asarray(jax.random.normal(KEY, shape)) * deviation
    np.testing.assert_allclose(he_normal(KEY, shape), expected, rtol=1e-6)


def test_eager_draws_compile_nothing():
    compiled = []

    def listen(event: str, duration_secs: float, **about: str | int):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1)(jnp.float32(1.0))
    heard = len(compiled)
    for rows in range(3, 9):
        for init in (truncated_normal(1.0), he_normal, uniform(1.0), zeros):
            init(KEY, (rows, 50))
    assert heard >= 1
    assert len(compiled) == heard


@pytest.mark.parametrize(
    "key",
    [jax.random.key(3, impl="rbg"), jax.random.PRNGKey(3)],
    ids=["of another kind", "as plain numbers"],
)
def test_a_key_that_numpy_does_not_know_draws_by_jax(key):
    expected = np.asarray(jax.random.normal(key, (6, 5))) * np.float32(0.3)
    np.testing.assert_allclose(normal(0.3)(key, (6, 5)), expected, rtol=1e-6)


def test_without_partitionable_bits_numbers_are_still_those_of_jax():
    with jax.threefry_partitionable(False):
        expected = np.asarray(jax.random.normal(KEY, (6, 5))) * np.float32(0.3)
        np.testing.assert_allclose(normal(0.3)(KEY, (6, 5)), expected, rtol=1e-6)


def test_numbers_come_in_the_dtype_asked_for():
    for init in (he_normal, uniform(1.0), truncated_normal(1.0), zeros, ones):
        assert init(KEY, (4, 4), jnp.bfloat16).dtype == jnp.bfloat16
    np.testing.assert_array_equal(zeros(KEY, (2, 3)), np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(ones(KEY, (2, 3)), np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(constant(-0.5)(KEY, (2,)), np.full(2, -0.5, np.float32))


def test_an_unknown_mode_or_distribution_is_an_error_that_lists_those_known():
    with pytest.raises(ValueError, match="fan_in, fan_out, fan_avg and the distributions normal"):
        variance_scaling(1.0, "fan_inn")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="not 'fan_in' and 'gaussian'"):
        variance_scaling(1.0, "fan_in", "gaussian")  # pyright: ignore[reportArgumentType]


def test_a_kernel_without_inputs_is_empty_and_no_error():
    assert he_normal(KEY, (0, 4)).shape == (0, 4)
