"""Activations and their gradients against PyTorch."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.test_util import check_grads
from oracle import normal, x64

from convjax.ops import activation

sixty_four_bits = pytest.mark.usefixtures(x64.__name__)

# name -> (ours, PyTorch's), over the last axis where there is one.
functions = {
    "celu": (lambda x: activation.celu(x, 1.5), lambda x: F.celu(x, 1.5)),
    "elu": (lambda x: activation.elu(x, 1.5), lambda x: F.elu(x, 1.5)),
    "gelu": (activation.gelu, F.gelu),
    "gelu_tanh": (activation.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    "glu": (activation.glu, F.glu),
    "hard_sigmoid": (activation.hard_sigmoid, F.hardsigmoid),
    "hard_swish": (activation.hard_swish, F.hardswish),
    "hard_tanh": (activation.hard_tanh, F.hardtanh),
    "leaky_relu": (activation.leaky_relu, F.leaky_relu),
    "log_sigmoid": (activation.log_sigmoid, F.logsigmoid),
    "log_softmax": (activation.log_softmax, lambda x: F.log_softmax(x, -1)),
    "mish": (activation.mish, F.mish),
    "prelu": (
        lambda x: activation.prelu(x, 0.3),
        lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)),
    ),
    "relu": (activation.relu, F.relu),
    "relu6": (activation.relu6, F.relu6),
    "selu": (activation.selu, F.selu),
    "sigmoid": (activation.sigmoid, torch.sigmoid),
    "silu": (activation.silu, F.silu),
    "softmax": (activation.softmax, lambda x: F.softmax(x, -1)),
    "softplus": (activation.softplus, F.softplus),
    "softsign": (activation.softsign, F.softsign),
    "tanh": (activation.tanh, torch.tanh),
    "threshold": (
        lambda x: activation.threshold(x, 0.7, -2.0),
        lambda x: F.threshold(x, 0.7, -2.0),
    ),
}


def test_every_activation_is_compared():
    assert sorted(functions) == sorted(activation.__all__)


@sixty_four_bits
@pytest.mark.parametrize("name", functions)
def test_values_and_gradients_equal_pytorch(name):
    ours, theirs = functions[name]
    x = np.concatenate([normal(4, 6) * 3, normal(1, 6, seed=1) * 40])
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor)
    # PyTorch's softplus turns linear at 20, where the two differ by 2e-9.
    np.testing.assert_allclose(ours(x), expected.detach().numpy(), rtol=1e-8, atol=1e-12)
    weights = normal(*expected.shape, seed=2)
    (gradient,) = torch.autograd.grad(expected, tensor, torch.from_numpy(weights))
    ours_gradient = jax.grad(lambda x: (ours(x) * weights).sum())(jnp.asarray(x))
    # PyTorch's gradient of hard_sigmoid has 1/6 in float32.
    np.testing.assert_allclose(ours_gradient, gradient.numpy(), rtol=1e-7, atol=1e-12)


@sixty_four_bits
@pytest.mark.parametrize("name", functions)
def test_forward_derivatives(name):
    check_grads(jax.jit(functions[name][0]), (normal(2, 4),), 1, ["fwd"])


@pytest.mark.parametrize("name", functions)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_dtype_is_kept_and_the_values_are_near(name, dtype):
    ours, theirs = functions[name]
    x = jnp.asarray(normal(4, 6) * 2, dtype)
    y = ours(x)
    assert y.dtype == dtype
    expected = theirs(torch.from_numpy(np.asarray(x, np.float64))).numpy()
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("name", functions)
def test_large_numbers_give_neither_nan_nor_a_nan_gradient(name):
    x = jnp.asarray([[-1e4, -100.0, 100.0, 1e4]], jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: functions[name][0](x).sum())(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", activation.__all__)
def test_an_activation_is_called_by_its_own_name(name):
    # A layer that is a plain function is named after it.
    assert getattr(activation, name).__name__ == name
    assert inspect.getdoc(getattr(activation, name))


@sixty_four_bits
def test_prelu_takes_a_slope_for_each_channel_and_learns_it():
    x, slope = normal(2, 3, 4, 5), normal(5, seed=1)
    tensor, slopes = torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.from_numpy(slope)
    slopes.requires_grad_()
    expected = F.prelu(tensor, slopes)
    y = activation.prelu(x, slope)
    np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), expected.detach(), rtol=1e-12)
    (gradient,) = torch.autograd.grad(expected.sum(), slopes)
    ours = jax.grad(lambda slope: activation.prelu(x, slope).sum())(jnp.asarray(slope))
    np.testing.assert_allclose(ours, gradient, rtol=1e-12)


def test_hard_sigmoid_reaches_the_default_of_onnx():
    x = jnp.asarray([-3.0, -1.0, 0.0, 1.0, 3.0], jnp.float32)
    y = activation.hard_sigmoid(x, slope=0.2, offset=0.5)
    np.testing.assert_allclose(y, [0.0, 0.3, 0.5, 0.7, 1.0], atol=1e-6)


def test_a_slope_that_fits_no_channels_is_named():
    with pytest.raises(ValueError, match=r"prelu: slope must have the shape \(5,\), got .*\[3\]"):
        activation.prelu(jnp.ones((2, 4, 5), jnp.float32), np.ones(3, np.float32))


@pytest.mark.parametrize("name", ["hard_sigmoid", "prelu", "threshold"])
def test_integers_are_not_activated_silently(name):
    with pytest.raises(TypeError, match=f"{name} computes .* got int32\\[2\\]: convert x"):
        functions[name][0](np.ones(2, np.int32))
