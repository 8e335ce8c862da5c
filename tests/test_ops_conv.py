"""Convolutions and the dense map against PyTorch; paddings against NumPy's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from oracle import (
    assert_close,
    channels_first,
    channels_last,
    compiled,
    conv_of_rank,
    conv_transpose_of_rank,
    conv_transpose_weight,
    conv_weight,
    normal,
    pad_spatial,
    same_pads,
    x64,
)

from convjax import ops

conv = compiled(ops.conv)
conv_transpose = compiled(ops.conv_transpose)
dense = compiled(ops.dense)
depthwise_conv = compiled(ops.depthwise_conv)

pytestmark = pytest.mark.usefixtures(x64.__name__)

spatial = (7, 8, 6)
window = (3, 2, 4)


def torch_conv(x, kernel, bias=None, **options):
    bias = None if bias is None else torch.from_numpy(bias)
    function = conv_of_rank[x.ndim - 2]
    return channels_last(function(channels_first(x), conv_weight(kernel), bias, **options))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 2},
        {"dilation": 2, "padding": 3},
        {"groups": 2, "padding": 1},
        {"stride": 3, "padding": 3, "dilation": 2, "groups": 2},
    ],
    ids=str,
)
def test_conv_equals_pytorch(rank, options):
    options = {"padding": 0, **options}
    groups = options.get("groups", 1)
    x = normal(2, *spatial[:rank], 4)
    kernel = normal(*window[:rank], 4 // groups, 6, seed=1)
    bias = normal(6, seed=2)
    expected = torch_conv(x, kernel, bias, **options)
    assert_close(conv(x, kernel, bias, **options), expected)


def test_conv_takes_a_number_for_each_dimension():
    x, kernel = normal(1, 9, 8, 2), normal(3, 3, 2, 4, seed=1)
    options = {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)}
    expected = torch_conv(x, kernel, **options)
    assert_close(conv(x, kernel, **options), expected)


def test_conv_pads_each_side_as_it_is_told():
    x, kernel = normal(1, 5, 6, 2), normal(3, 3, 2, 4, seed=1)
    expected = torch_conv(pad_spatial(x, [(2, 0), (1, 3)]), kernel)
    assert_close(conv(x, kernel, padding=((2, 0), (1, 3))), expected)


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize(
    ("padding", "mode"),
    [
        ("SAME", "constant"),
        ("SAME_LOWER", "constant"),
        ("CIRCULAR", "wrap"),
        ("REFLECT", "reflect"),
        ("EDGE", "edge"),
    ],
)
def test_named_paddings_make_the_output_ceil_size_by_stride(size, stride, dilation, padding, mode):
    x, kernel = normal(1, size, 3), normal(4, 3, 2, seed=1)
    pads = same_pads(size, 4, stride, dilation, lower=padding == "SAME_LOWER")
    expected = torch_conv(pad_spatial(x, [pads], mode), kernel, stride=stride, dilation=dilation)
    y = conv(x, kernel, stride=stride, dilation=dilation, padding=padding)
    assert y.shape[1] == -(-size // stride)
    assert_close(y, expected)


@pytest.mark.parametrize(("padding", "mode"), [("CIRCULAR", "circular"), ("REFLECT", "reflect")])
def test_wrapping_paddings_equal_the_modes_of_pytorch(padding, mode):
    x, kernel = normal(2, 6, 7, 3), normal(3, 5, 3, 4, seed=1)
    layer = torch.nn.Conv2d(3, 4, (3, 5), padding=(1, 2), padding_mode=mode, bias=False)
    layer.weight = torch.nn.Parameter(conv_weight(kernel))
    expected = channels_last(layer(channels_first(x)))
    assert_close(conv(x, kernel, padding=padding), expected)


def test_circular_conv_commutes_with_a_shift_around_the_border():
    x, kernel = normal(1, 6, 5, 2), normal(3, 4, 2, 3, seed=1)
    shifted = conv(np.roll(x, (2, 3), axis=(1, 2)), kernel, padding="CIRCULAR")
    expected = np.roll(conv(x, kernel, padding="CIRCULAR"), (2, 3), axis=(1, 2))
    assert_close(shifted, expected)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_depthwise_conv_equals_pytorch_with_as_many_groups_as_channels(rank, multiplier):
    x = normal(2, *spatial[:rank], 3)
    kernel = normal(*window[:rank], 1, 3 * multiplier, seed=1)
    bias = normal(3 * multiplier, seed=2)
    expected = torch_conv(x, kernel, bias, stride=2, padding=1, groups=3)
    y = depthwise_conv(x, kernel, bias, stride=2, padding=1)
    assert_close(y, expected)


def torch_conv_transpose(x, kernel, bias=None, groups=1, **options):
    bias = None if bias is None else torch.from_numpy(bias)
    weight = conv_transpose_weight(kernel, groups)
    function = conv_transpose_of_rank[x.ndim - 2]
    return channels_last(function(channels_first(x), weight, bias, groups=groups, **options))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": 3, "output_padding": 2},
        {"padding": 1},
        {"stride": 2, "padding": 4},
        {"dilation": 2, "padding": 1},
        {"groups": 2},
        {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2, "groups": 2},
    ],
    ids=str,
)
def test_conv_transpose_equals_pytorch(rank, options):
    options = {"padding": 0, **options}
    x = normal(2, *spatial[:rank], 4)
    kernel = normal(*window[:rank], 4 // options.get("groups", 1), 6, seed=1)
    bias = normal(6, seed=2)
    expected = torch_conv_transpose(x, kernel, bias, **options)
    assert_close(conv_transpose(x, kernel, bias, **options), expected)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("lower", [False, True])
def test_same_conv_transpose_is_the_full_one_cut_to_size_times_stride(stride, dilation, lower):
    x, kernel = normal(1, 4, 2), normal(3, 2, 5, seed=1)
    full = torch_conv_transpose(x, kernel, stride=stride, dilation=dilation)
    low, high = same_pads(4 * stride, 3, stride, dilation, lower)
    full = pad_spatial(full, [(0, max(stride - (2 * dilation + 1), 0))])
    padding = "SAME_LOWER" if lower else "SAME"
    y = conv_transpose(x, kernel, stride=stride, dilation=dilation, padding=padding)
    assert y.shape == (1, 4 * stride, 5)
    assert_close(y, full[:, low : full.shape[1] - high])


def test_valid_conv_transpose_is_the_full_one():
    x, kernel = normal(1, 4, 3, 2), normal(3, 3, 2, 5, seed=1)
    expected = torch_conv_transpose(x, kernel, stride=2)
    y = conv_transpose(x, kernel, stride=2, padding="VALID")
    assert_close(y, expected)


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", 0, 1])
@pytest.mark.parametrize("size", [6, 8])
def test_conv_transpose_is_the_adjoint_of_conv(size, padding):
    # <conv(x, k), y> = <x, conv_transpose(y, k with in and out exchanged)>
    x, kernel = normal(1, size, 2), normal(4, 2, 3, seed=1)
    there = conv(x, kernel, stride=2, padding=padding)
    y = normal(*there.shape, seed=2)
    back = conv_transpose(y, np.swapaxes(kernel, 1, 2), stride=2, padding=padding)
    assert_close(np.vdot(there, y), np.vdot(x, back))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4, 5)])
def test_dense_equals_pytorch(shape):
    x, kernel, bias = normal(*shape), normal(5, 7, seed=1), normal(7, seed=2)
    arguments = torch.from_numpy(x), torch.from_numpy(kernel.T)
    expected = torch.nn.functional.linear(*arguments, torch.from_numpy(bias))
    assert_close(dense(x, kernel, bias), expected.numpy())
    expected = torch.nn.functional.linear(*arguments)
    assert_close(dense(x, kernel), expected.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "dilation": 2, "groups": 2},
        {"padding": "CIRCULAR"},
        {"padding": "REFLECT", "stride": 2},
        {"padding": "EDGE"},
    ],
    ids=str,
)
def test_gradients_of_conv(options):
    x = normal(1, 5, 4, 2)
    kernel = normal(3, 3, 2 // options.get("groups", 1), 2, seed=1)
    arguments = (x, kernel, normal(2, seed=2))
    check_grads(jax.jit(partial(conv, **options)), arguments, 1, ["fwd", "rev"])


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "groups": 2}, {"stride": 3, "padding": 1, "output_padding": 1}],
    ids=str,
)
def test_gradients_of_conv_transpose(options):
    x = normal(1, 3, 4, 2)
    kernel = normal(3, 2, 2 // options.get("groups", 1), 2, seed=1)
    arguments = (x, kernel, normal(2, seed=2))
    check_grads(jax.jit(partial(conv_transpose, **options)), arguments, 1, ["fwd", "rev"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_result_has_the_dtype_of_x_whatever_that_of_the_parameters(dtype):
    x = jnp.asarray(normal(1, 6, 6, 4), dtype)
    kernel, bias = normal(3, 3, 4, 4, seed=1).astype(np.float32), np.ones(4, np.float32)
    exact = torch_conv(np.asarray(x, np.float64), np.asarray(kernel, np.float64), padding=1) + 1
    y = conv(x, kernel, bias)
    assert y.dtype == dtype
    # 36 products, the kernel and the result rounded to `eps` each.
    np.testing.assert_allclose(
        np.asarray(y, np.float64), exact, atol=36 * float(jnp.finfo(dtype).eps)
    )
    assert conv_transpose(x, kernel, bias).dtype == dtype
    assert depthwise_conv(x, kernel[:, :, :1], bias).dtype == dtype
    assert dense(x, kernel[0, 0], bias).dtype == dtype


def test_an_empty_batch_stays_empty():
    x, kernel = np.zeros((0, 6, 6, 3)), np.zeros((3, 3, 3, 4))
    assert conv(x, kernel, stride=2).shape == (0, 3, 3, 4)
    assert conv_transpose(x, kernel, stride=2).shape == (0, 12, 12, 4)


x, kernel = np.ones((1, 8, 8, 4), np.float32), np.ones((3, 3, 4, 6), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: conv(x[0], kernel),
            r"x float32\[8,8,4\] has 1 .* kernel float32\[3,3,4,6\] has 2",
        ),
        (lambda: conv(x[0, 0], kernel), r"a spatial dimension .* got float32\[8,4\].*x\[None\]"),
        (lambda: conv(x, kernel[..., :3, :]), r"takes 3 channels .* has 4: .*\[\*window, 4, feat"),
        (lambda: conv(x, kernel, groups=2), r"kernel needs the shape \[\*window, 2, features\]"),
        (lambda: conv(x, kernel, groups=3), r"the 4 channels .* groups=3: take a divisor"),
        (lambda: conv(x, kernel[..., :2, :5], groups=2), r"the 5 features .* take a multiple"),
        (lambda: conv(x, kernel, padding="same"), r"unknown padding 'same': take one of SAME,"),
        (lambda: conv(x, kernel, padding=(1, 1, 1)), r"padding=\(1, 1, 1\) does not fit 2"),
        (lambda: conv(x, kernel, padding=-1), r"padding=-1 .* none of them negative"),
        (lambda: conv(x, kernel, padding=((1, 2, 3), 1)), r"2 \(low, high\) pairs"),
        (lambda: conv(x, kernel, stride=0), r"stride must be at least 1, got 0"),
        (lambda: conv(x, kernel, stride=(1, 2, 3)), r"stride=\(1, 2, 3\) has 3 entries.*, or 2"),
        (lambda: conv(x, kernel, dilation=(1,)), r"dilation=\(1,\) has 1 entries"),
        (lambda: conv(x, kernel, np.ones(4)), r"bias must have the shape \(6,\), got float64\[4\]"),
        (lambda: conv(x[:, :2], kernel, padding="VALID"), r"window of \(3, 3\) .* does not fit"),
        (lambda: depthwise_conv(x, kernel), r"kernel needs the shape \[\*window, 1, features\]"),
        (lambda: depthwise_conv(x[0, 0, 0], kernel), r"depthwise_conv needs x \[batch, \*spatial"),
        (
            lambda: conv_transpose(x, kernel, padding="EDGE"),
            r"no transposed form of padding='EDGE'",
        ),
        (lambda: conv_transpose(x, kernel, output_padding=1), r"output_padding=1 has no place"),
        (lambda: conv_transpose(x, kernel, padding=5), r"padding=5 takes away more than"),
        (lambda: dense(x, kernel), r"kernel float32\[3,3,4,6\] must be \[channels, features\]"),
        (lambda: dense(x, np.ones((3, 2))), r"channels of x float32\[1,8,8,4\]"),
    ],
)
def test_an_error_names_the_values_and_the_next_step(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv(x.astype(np.uint8), kernel), r"got uint8\[1,8,8,4\]: convert x first"),
        (lambda: conv(x, kernel, stride=1.5), r"stride must be an int .* got 1.5"),
        (lambda: conv(x, kernel, padding=1.5), r"padding must be .* got 1.5"),
    ],
)
def test_a_wrong_type_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_the_rank_of_the_window_may_be_more_than_three():
    x, kernel = normal(1, 3, 3, 3, 3, 2), normal(1, 1, 1, 1, 2, 5, seed=1)
    expected = jax.device_get(jnp.einsum("nabcdi,io->nabcdo", x, kernel[0, 0, 0, 0]))
    assert_close(conv(x, kernel), expected)
