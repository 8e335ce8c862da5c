"""Sums over all places and their transpose, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from oracle import assert_close, normal, x64

from convjax import ops
from convjax.ops.sums import channel_sum, spread, sum_places

wide = pytest.mark.usefixtures(x64.__name__)

# Few rows and many: powers of two, primes, and one more than a power.
shapes = [(1, 3), (7, 1, 2), (31, 2), (32, 2), (3, 13, 2), (37, 29, 1), (1021, 2), (8193, 3)]


@wide
@pytest.mark.parametrize("shape", shapes, ids=str)
def test_sums_are_those_of_numpy(shape):
    x = normal(*shape)
    assert_close(jax.jit(channel_sum)(x), x.reshape(-1, shape[-1]).sum(0), 1e-12)
    assert_close(jax.jit(sum_places)(x), x.reshape(-1, shape[-1]).sum(0), 1e-12)


@wide
@pytest.mark.parametrize("shape", [(3, 2), (2, 5, 3), (3, 7, 11, 2), (2, 1, 1, 4)], ids=str)
def test_the_first_axis_is_kept_where_it_is_asked_for(shape):
    x = normal(*shape)
    expected = x.reshape(shape[0], -1, shape[-1]).sum(1)
    assert_close(jax.jit(lambda x: channel_sum(x, keep=1))(x), expected, 1e-12)
    assert_close(channel_sum(jnp.asarray(x), keep=1), expected, 1e-12)


def test_a_sum_over_nothing_is_zero():
    np.testing.assert_array_equal(channel_sum(jnp.zeros((0, 5, 3))), np.zeros(3, np.float32))
    assert channel_sum(jnp.zeros((4, 5, 0)), keep=1).shape == (4, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_single_precision(dtype):
    # One by one in half precision, ones stop adding up at 256 and at 2048.
    x = jnp.ones((4, 1024, 2), dtype)
    total = channel_sum(x)
    assert total.dtype == dtype
    assert total.tolist() == [4096, 4096]
    assert channel_sum(x, keep=1).tolist() == [[1024, 1024]] * 4


def test_a_million_numbers_with_a_large_mean_keep_six_digits():
    x = (1000 + normal(1000, 1000, 1)).astype(np.float32)
    exact = x.astype(np.float64).sum()
    assert abs(float(channel_sum(jnp.asarray(x))[0]) / exact - 1) < 1e-6


@wide
def test_spread_repeats_what_it_is_given():
    values = normal(3, 2)
    expected = np.broadcast_to(values[:, None, None], (3, 4, 5, 2))
    np.testing.assert_array_equal(spread(jnp.asarray(values), (3, 4, 5, 2), keep=1), expected)
    expected = np.broadcast_to(values[0], (4, 5, 2))
    np.testing.assert_array_equal(jax.jit(lambda v: spread(v, (4, 5, 2)))(values[0]), expected)


@wide
@pytest.mark.parametrize("keep", [0, 1])
def test_sum_and_spread_are_each_others_transposes(keep):
    # <sum(x), v> = <x, spread(v)>
    x = jnp.asarray(normal(3, 4, 5, 2))
    v = jnp.asarray(normal(*x.shape[:keep], 2, seed=1))
    there = channel_sum(x, keep=keep)
    back = spread(v, x.shape, keep=keep)
    assert_close(np.vdot(there, v), np.vdot(x, back), 1e-12)
    (gradient,) = jax.vjp(lambda x: channel_sum(x, keep=keep), x)[1](v)
    np.testing.assert_array_equal(gradient, back)
    (gradient,) = jax.vjp(lambda v: spread(v, x.shape, keep=keep), v)[1](x)
    assert_close(gradient, there, 1e-12)


@wide
@pytest.mark.parametrize("keep", [0, 1])
def test_derivatives_of_any_order_and_mode_are_those_of_finite_differences(keep):
    def centered(x):
        mean = channel_sum(x, keep=keep) / 6
        return jnp.square(x - spread(mean, x.shape, keep=keep)) * x

    check_grads(jax.jit(centered), (normal(2, 3, 2),), 2, ["fwd", "rev"])


@wide
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_vmap_sums_every_member_by_itself(axis):
    x = normal(2, 3, 4, 5)
    mapped = jax.jit(jax.vmap(channel_sum, in_axes=axis))(x)
    assert_close(mapped, np.moveaxis(x, axis, 0).sum((1, 2)), 1e-12)
    twice = jax.jit(jax.vmap(jax.vmap(channel_sum), in_axes=axis))(x)
    assert_close(twice, np.moveaxis(x, axis, 0).sum(2), 1e-12)


@wide
def test_vmap_spreads_every_member_by_itself():
    v = normal(2, 3, 4)
    mapped = jax.jit(jax.vmap(lambda v: spread(v, (3, 5, 4), keep=1)))(v)
    np.testing.assert_array_equal(mapped, np.broadcast_to(v[:, :, None], (2, 3, 5, 4)))
    mapped = jax.jit(jax.vmap(lambda v: spread(v, (7, 3)), in_axes=1))(v[0])
    np.testing.assert_array_equal(mapped, np.broadcast_to(v[0].T[:, None], (4, 7, 3)))


@wide
def test_what_is_made_of_sums_is_the_same_by_lax():
    x, scale, bias = normal(3, 5, 7, 4), normal(4, seed=1), normal(4, seed=2)

    def net(x, scale, bias):
        mean, var = ops.moments(x, (0, 1, 2))
        y = ops.batch_norm(x, mean, var, scale, bias)
        return jnp.sin(ops.dense(ops.global_avg_pool(y * y), jnp.outer(scale, bias), bias)).sum()

    def gradients():
        return jax.jit(jax.value_and_grad(net, (0, 1, 2)))(x, scale, bias)

    ours = gradients()
    with ops.algorithm("lax"):
        plain = gradients()
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-11), ours, plain)
