"""Normalisations against PyTorch, and the accuracy of their statistics against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.test_util import check_grads
from oracle import assert_close, channels_first, channels_last, compiled, normal, x64

from convjax import ops

batch_norm = compiled(ops.batch_norm)
group_norm = compiled(ops.group_norm)
instance_norm = compiled(ops.instance_norm)
layer_norm = compiled(ops.layer_norm)
local_response_norm = compiled(ops.local_response_norm)
moments = compiled(ops.moments)
rms_norm = compiled(ops.rms_norm)
standardize_kernel = compiled(ops.standardize_kernel)

sixty_four_bits = pytest.mark.usefixtures(x64.__name__)
spatial = (4, 3, 2)


def of_channels(seed):
    return normal(6, seed=seed) + 2


@sixty_four_bits
@pytest.mark.parametrize("axes", [0, -1, (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_moments_equal_numpy(axes, keepdims):
    x = normal(3, 4, 5, 6) * 2 + 7
    mean, var = moments(x, axes, keepdims=keepdims)
    assert_close(mean, x.mean(axes, keepdims=keepdims))
    assert_close(var, x.var(axes, keepdims=keepdims))


@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, -1e5])
def test_the_variance_keeps_its_digits_when_the_mean_is_large(ratio):
    x = (normal(50_000, 2) + ratio).astype(np.float32)
    exact = x.astype(np.float64)
    mean, var = moments(x, axes=0)
    assert mean.dtype == var.dtype == jnp.float32
    np.testing.assert_allclose(mean, exact.mean(0), rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(var, exact.var(0), rtol=2e-6)


def test_the_variance_of_a_constant_is_zero():
    mean, var = moments(jnp.full((1000, 1), 12345.678, jnp.float32), axes=0)
    assert var.tolist() == [0.0]
    assert mean.tolist() == [float(np.float32(12345.678))]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_moments_of_half_precision_are_float32(dtype):
    x = jnp.asarray(normal(3000, 2) + 10, dtype)
    exact = np.asarray(x, np.float64)
    mean, var = moments(x, axes=0)
    assert mean.dtype == var.dtype == jnp.float32
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-5)


@sixty_four_bits
def test_moments_over_a_mapped_axis_are_those_of_the_whole():
    x = normal(4, 5, 3) + np.arange(4).reshape(4, 1, 1) * 10
    mean, var = jax.vmap(lambda x: moments(x, 0, axis_name="parts"), axis_name="parts")(x)
    assert_close(mean, np.tile(x.mean((0, 1)), (4, 1)))
    assert_close(var, np.tile(x.var((0, 1)), (4, 1)))


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


@sixty_four_bits
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_batch_norm_equals_pytorch(rank):
    x = normal(5, *spatial[:rank], 6)
    mean, var, scale, bias = normal(6, seed=1), of_channels(2) ** 2, of_channels(3), of_channels(4)
    mean_tensor, var_tensor, *affine = tensors(mean, var, scale, bias)
    expected = F.batch_norm(
        channels_first(x), mean_tensor, var_tensor, affine[0], affine[1], eps=1e-3
    )
    y = batch_norm(x, mean, var, scale, bias, epsilon=1e-3)
    assert_close(y, channels_last(expected))


@sixty_four_bits
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_batch_norm_by_the_moments_of_the_batch_equals_pytorch_in_training(rank):
    x = normal(5, *spatial[:rank], 6)
    expected = F.batch_norm(channels_first(x), None, None, training=True)
    y = batch_norm(x, *moments(x, range(1 + rank)))
    assert_close(y, channels_last(expected))


@sixty_four_bits
@pytest.mark.parametrize("axes", [(-1,), (2, 3), (1, 2, 3)])
def test_layer_norm_and_rms_norm_equal_pytorch(axes):
    x = normal(2, 4, 3, 6)
    shape = tuple(x.shape[axis] for axis in axes)
    scale, bias = normal(*shape, seed=1), normal(*shape, seed=2)
    expected = F.layer_norm(torch.from_numpy(x), shape, *tensors(scale, bias), eps=1e-3)
    y = layer_norm(x, scale, bias, axes=axes, epsilon=1e-3)
    assert_close(y, expected.numpy())
    expected = F.rms_norm(torch.from_numpy(x), shape, *tensors(scale), eps=1e-3)
    y = rms_norm(x, scale, axes=axes, epsilon=1e-3)
    assert_close(y, expected.numpy())


@sixty_four_bits
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_group_norm_equals_pytorch(rank, groups):
    x, scale, bias = normal(5, *spatial[:rank], 6), of_channels(1), of_channels(2)
    scale_tensor, bias_tensor = tensors(scale, bias)
    expected = F.group_norm(channels_first(x), groups, scale_tensor, bias_tensor)
    y = group_norm(x, groups, scale, bias)
    assert_close(y, channels_last(expected))


@sixty_four_bits
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_instance_norm_equals_pytorch(rank):
    x, scale, bias = normal(5, *spatial[:rank], 6), of_channels(1), of_channels(2)
    scale_tensor, bias_tensor = tensors(scale, bias)
    expected = F.instance_norm(channels_first(x), weight=scale_tensor, bias=bias_tensor, eps=1e-4)
    y = instance_norm(x, scale, bias, epsilon=1e-4)
    assert_close(y, channels_last(expected))


@sixty_four_bits
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_local_response_norm_equals_pytorch(rank, size):
    x = normal(2, *spatial[:rank], 6) * 5
    options = {"alpha": 0.3, "beta": 0.6, "k": 1.5}
    expected = F.local_response_norm(channels_first(x), size, **options)
    y = local_response_norm(x, size, **options)
    assert_close(y, channels_last(expected))


@sixty_four_bits
@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 4, 5), (4, 5)])
def test_standardized_kernels_have_mean_0_and_variance_1_for_each_feature(shape):
    kernel = normal(*shape) * 0.1 + 0.3
    axes = tuple(range(kernel.ndim - 1))
    expected = (kernel - kernel.mean(axes)) / np.sqrt(kernel.var(axes) + 1e-3)
    assert_close(standardize_kernel(kernel, 1e-3), expected)
    np.testing.assert_allclose(np.var(standardize_kernel(kernel), axes), 1, rtol=1e-6)


def test_standardizing_a_kernel_of_zeros_gives_zeros_and_a_finite_gradient():
    kernel = jnp.zeros((3, 3, 2, 4))
    assert not standardize_kernel(kernel).any()
    gradient = jax.grad(lambda kernel: standardize_kernel(kernel)[0, 0, 0].sum())(kernel)
    assert np.isfinite(gradient).all()


ones = np.ones(6)
functions = {  # with the number of their arguments: x, scale, bias
    "moments": (lambda x: moments(x, (0, 1, 2)), 1),
    "batch": (lambda x, *affine: batch_norm(x, *moments(x, (0, 1, 2)), *affine), 3),
    "batch, given": (lambda x, mean, var: batch_norm(x, mean, jnp.square(var)), 3),
    "layer": (layer_norm, 3),
    "group": (lambda x, *affine: group_norm(x, 2, *affine), 3),
    "instance": (instance_norm, 3),
    "rms": (rms_norm, 2),
    "lrn": (lambda x: local_response_norm(x, 4, alpha=0.5), 1),
    "standardize": (standardize_kernel, 1),
}


@sixty_four_bits
@pytest.mark.parametrize("name", functions)
def test_gradients_of_norms(name):
    function, number = functions[name]
    arguments = (normal(2, 3, 2, 6), of_channels(1), of_channels(2))
    check_grads(jax.jit(function), arguments[:number], 1, ["fwd", "rev"])


@sixty_four_bits
def test_second_derivatives_through_moments():
    check_grads(jax.jit(lambda x: moments(x, 0)), (normal(4, 2),), 2, ["fwd", "rev"])


@pytest.mark.parametrize("name", ["batch", "layer", "group", "instance", "rms"])
def test_bfloat16_results_are_those_of_float32_rounded_once(name):
    x = jnp.asarray(normal(2, 4, 3, 6) * 3 + 5, jnp.bfloat16)
    function, number = functions[name]
    affine = [of_channels(seed).astype(np.float32) for seed in range(1, number)]
    y = function(x, *affine)
    assert y.dtype == jnp.bfloat16
    expected = function(x.astype(jnp.float32), *affine).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(jnp.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: group_norm(x, 4), r"the 6 channels of x float32\[2,3,3,6\] .* groups=4: take a"),
        (lambda x: batch_norm(x, ones[:3], ones), r"mean must have the shape \(6,\), got .*\[3\]"),
        (lambda x: layer_norm(x, ones[:3]), r"layer_norm: scale must have the shape \(6,\)"),
        (lambda x: layer_norm(x, ones, axes=(1, 2)), r"scale must have the shape \(3, 3\)"),
        (lambda x: instance_norm(x, ones, ones[:1]), r"bias must have the shape \(6,\)"),
        (lambda x: instance_norm(x[0, 0]), r"instance_norm needs x \[batch, \*spatial"),
        (lambda x: local_response_norm(x, 0), r"size must be at least 1, got 0"),
    ],
)
def test_an_error_names_the_values_and_the_next_step(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3, 3, 6), jnp.float32))


def test_integers_are_not_normalised_silently():
    with pytest.raises(TypeError, match=r"layer_norm computes .* got uint8\[2,6\]: convert x"):
        layer_norm(np.ones((2, 6), np.uint8))
