"""Pools against PyTorch, and against what a mean and a maximum must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.test_util import check_grads
from oracle import (
    assert_close,
    channels_first,
    channels_last,
    compiled,
    normal,
    pad_spatial,
    same_pads,
    x64,
)

from convjax import ops

adaptive_avg_pool = compiled(ops.adaptive_avg_pool)
adaptive_max_pool = compiled(ops.adaptive_max_pool)
avg_pool = compiled(ops.avg_pool)
blur_pool = compiled(ops.blur_pool)
global_avg_pool = compiled(ops.global_avg_pool)
global_max_pool = compiled(ops.global_max_pool)
lp_pool = compiled(ops.lp_pool)
max_pool = compiled(ops.max_pool)

pytestmark = pytest.mark.usefixtures(x64.__name__)

spatial = (9, 8, 7)
max_of_rank = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
avg_of_rank = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
adaptive_avg_of_rank = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
adaptive_max_of_rank = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1},
        {"stride": 2, "padding": 1},
        {"stride": 5},
        {"stride": 1, "dilation": 2},
        {"stride": 2, "dilation": 3, "padding": 1},
    ],
    ids=str,
)
def test_max_pool_equals_pytorch(rank, options, ceil):
    x = normal(2, *spatial[:rank], 3)
    settings = {"padding": 0, **options}
    expected = max_of_rank[rank](channels_first(x), 3, ceil_mode=ceil, **settings)
    y = max_pool(x, 3, ceil=ceil, **settings)
    np.testing.assert_array_equal(y, channels_last(expected))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 1, "padding": 1}, {"stride": 2, "padding": 1}, {"stride": 5}],
    ids=str,
)
def test_avg_pool_equals_pytorch(rank, options, ceil, count_padding):
    x = normal(2, *spatial[:rank], 3)
    settings = {"padding": 0, **options}
    expected = avg_of_rank[rank](
        channels_first(x), 3, ceil_mode=ceil, count_include_pad=count_padding, **settings
    )
    y = avg_pool(x, 3, ceil=ceil, count_padding=count_padding, **settings)
    assert_close(y, channels_last(expected))


@pytest.mark.parametrize("p", [2, 4])
def test_lp_pool_equals_pytorch_for_even_powers(p):
    x = normal(2, 8, 7, 3)
    expected = F.lp_pool2d(channels_first(x), p, 3, stride=2)
    assert_close(lp_pool(x, 3, p=p, stride=2), channels_last(expected))


def test_lp_pool_of_power_one_sums_the_absolute_values():
    x = np.array([1.0, -2.0, -3.0, 4.0]).reshape(1, 4, 1)
    assert lp_pool(x, 2, p=1).ravel().tolist() == [3.0, 7.0]


def test_gradient_of_lp_pool_is_zero_where_all_numbers_are():
    grad = jax.grad(lambda x: lp_pool(x, 2).sum())(jnp.zeros((1, 4, 1)))
    np.testing.assert_array_equal(grad, np.zeros((1, 4, 1)))


def windows_of(x, window, stride, dilation, pads, fill):
    """The windows over [size], one a row, with `fill` where they leave it."""
    x = np.pad(x, pads, constant_values=fill)
    extent = (window - 1) * dilation + 1
    starts = range(0, len(x) - extent + 1, stride)
    return np.stack([x[start : start + extent : dilation] for start in starts])


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER"])
def test_same_padding_neither_wins_a_maximum_nor_counts_in_a_mean(size, stride, dilation, padding):
    x = normal(size) - 10
    pads = same_pads(size, 4, stride, dilation, lower=padding == "SAME_LOWER")
    windows = windows_of(x, 4, stride, dilation, pads, np.nan)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    image = x.reshape(1, size, 1)
    y = max_pool(image, 4, **options).ravel()
    np.testing.assert_array_equal(y, np.nanmax(windows, axis=1))
    y = avg_pool(image, 4, **options).ravel()
    assert_close(y, np.nanmean(windows, axis=1))
    y = avg_pool(image, 4, count_padding=True, **options).ravel()
    assert_close(y, np.nan_to_num(windows).mean(axis=1))
    y = lp_pool(image, 4, p=3, **options).ravel()
    assert_close(y, np.nansum(np.abs(windows) ** 3, axis=1) ** (1 / 3))


@pytest.mark.parametrize(
    ("padding", "mode"), [("CIRCULAR", "wrap"), ("REFLECT", "reflect"), ("EDGE", "edge")]
)
@pytest.mark.parametrize("dilation", [1, 2])
def test_pools_see_the_pixels_that_a_padding_copies(padding, mode, dilation):
    x = normal(1, 6, 5, 2) - 10
    pads = [same_pads(size, 3, dilation=dilation) for size in (6, 5)]
    wide = channels_first(pad_spatial(x, pads, mode))
    options = {"stride": 1, "padding": padding, "dilation": dilation}
    expected = channels_last(F.max_pool2d(wide, 3, 1, dilation=dilation))
    np.testing.assert_array_equal(max_pool(x, 3, **options), expected)
    mean = torch.ones(2, 1, 3, 3, dtype=torch.float64) / 9
    expected = channels_last(F.conv2d(wide, mean, groups=2, dilation=dilation))
    assert_close(avg_pool(x, 3, **options), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool_of_integers_is_exact_and_padding_never_wins(dtype, dilation):
    info = np.iinfo(dtype)
    numbers = np.random.default_rng(0).integers(info.min, 0 if info.min else 9, 8, dtype)
    windows = windows_of(numbers, 3, 1, dilation, (dilation, dilation), info.min)
    y = max_pool(numbers.reshape(1, 8, 1), 3, stride=1, padding=dilation, dilation=dilation)
    assert y.dtype == dtype
    assert y.ravel().tolist() == windows.max(1).tolist()


@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool_keeps_infinities_and_nan(dilation):
    x = np.array([-np.inf, -np.inf, -np.inf, -np.inf, -np.inf, 1.0, np.nan, np.inf])
    expected = windows_of(x, 2, 1, dilation, (0, 0), 0.0).max(1)
    assert np.isneginf(expected).any()
    assert np.isnan(expected).any()
    y = max_pool(x.reshape(1, 8, 1), 2, stride=1, dilation=dilation)
    np.testing.assert_array_equal(y.ravel(), expected)


@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1}, {"dilation": 2}], ids=str)
def test_the_gradient_of_max_pool_goes_to_the_first_of_equals_as_in_pytorch(options):
    options = {"stride": 2, "padding": 0, **options}
    x = np.random.default_rng(0).integers(0, 2, (2, 7, 8, 2)).astype(np.float64)
    tensor = channels_first(x).requires_grad_()
    y = F.max_pool2d(tensor, 3, **options)
    weights = normal(*channels_last(y).shape, seed=1)
    (expected,) = torch.autograd.grad(y, tensor, channels_first(weights))
    grad = jax.grad(lambda x: (max_pool(x, 3, **options) * weights).sum())(jnp.asarray(x))
    assert_close(grad, channels_last(expected))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, (4, 2, 7), (9, 8, 7), 11], ids=str)
def test_adaptive_pools_equal_pytorch(rank, size):
    size = size if isinstance(size, int) else size[:rank]
    x = normal(2, *spatial[:rank], 3)
    expected = adaptive_avg_of_rank[rank](channels_first(x), size)
    assert_close(adaptive_avg_pool(x, size), channels_last(expected))
    expected = adaptive_max_of_rank[rank](channels_first(x), size)
    np.testing.assert_array_equal(adaptive_max_pool(x, size), channels_last(expected))


def test_the_gradient_of_adaptive_max_pool_goes_to_the_first_of_equals_as_in_pytorch():
    x = np.random.default_rng(0).integers(0, 2, (2, 7, 8, 2)).astype(np.float64)
    tensor = channels_first(x).requires_grad_()
    y = F.adaptive_max_pool2d(tensor, 3)
    weights = normal(*channels_last(y).shape, seed=1)
    (expected,) = torch.autograd.grad(y, tensor, channels_first(weights))
    grad = jax.grad(lambda x: (adaptive_max_pool(x, 3) * weights).sum())(jnp.asarray(x))
    assert_close(grad, channels_last(expected))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pools_equal_numpy(rank):
    x = normal(2, *spatial[:rank], 3)
    axes = tuple(range(1, 1 + rank))
    assert_close(global_avg_pool(x), x.mean(axes))
    np.testing.assert_array_equal(global_max_pool(x), x.max(axes))


@pytest.mark.parametrize("shape", [(8, 7), (9, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_blur_pool_is_a_strided_binomial_filter_over_a_reflected_border(shape, stride, size):
    x = normal(2, *shape, 3)
    taps = np.poly1d([0.5, 0.5]) ** (size - 1)  # the coefficients of ((1 + z) / 2)^(size - 1)
    taps = np.atleast_1d(taps.coeffs if size > 1 else 1.0)
    kernel = torch.from_numpy(np.outer(taps, taps)).expand(3, 1, size, size)
    border = ((size - 1) // 2, size // 2)
    wide = channels_first(pad_spatial(x, [border, border], "reflect"))
    expected = channels_last(F.conv2d(wide, kernel, stride=stride, groups=3))
    y = blur_pool(x, stride=stride, size=size)
    assert y.shape[1:3] == tuple(-(-length // stride) for length in shape)
    assert_close(y, expected)


smooth = {
    "max": lambda x: max_pool(x, 2, stride=1, padding="SAME"),
    "dilated max": lambda x: max_pool(x, 2, stride=1, dilation=2, padding=1),
    "avg": lambda x: avg_pool(x, 3, stride=2, padding=1, ceil=True),
    "dilated avg": lambda x: avg_pool(x, 2, dilation=2),
    "lp": lambda x: lp_pool(x, 2, p=3),
    "global avg": global_avg_pool,
    "global max": global_max_pool,
    "adaptive avg": lambda x: adaptive_avg_pool(x, 2),
    "adaptive max": lambda x: adaptive_max_pool(x, 2),
    "blur": blur_pool,
}


@pytest.mark.parametrize("name", smooth)
@pytest.mark.parametrize("mapped", [False, True], ids=["one", "vmap"])
def test_gradients_of_pools(name, mapped):
    x = normal(2, 1, 5, 4, 2)
    function = jax.jit(jax.vmap(smooth[name]) if mapped else smooth[name])
    check_grads(function, (x if mapped else x[0],), 1, ["fwd", "rev"])


def test_second_derivatives_through_a_max_pool():
    check_grads(lambda x: ops.max_pool(x, 2) ** 3, (normal(1, 4, 6, 2),), 2, ["fwd", "rev"])


@pytest.mark.parametrize("name", smooth)
def test_bfloat16_results_are_those_of_float32_rounded_once(name):
    x = jnp.asarray(normal(2, 6, 5, 3), jnp.bfloat16)
    y = smooth[name](x)
    assert y.dtype == jnp.bfloat16
    expected = smooth[name](x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(jnp.float32))


def test_a_mean_of_many_half_precision_numbers_does_not_stall():
    # Summed in bfloat16 a sum of ones stops at 256.
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    for mean in (avg_pool(x, 64), global_avg_pool(x), adaptive_avg_pool(x, 1)):
        assert mean.ravel().tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: max_pool(x, 9), r"max_pool: a window of \(9, 9\) .* does not fit .*\[1,8,8,3\]"),
        (lambda x: max_pool(x, 2, padding=2), r"lies in the padding \(\(2, 2\), .* pad less"),
        (lambda x: avg_pool(x, 2, padding=2), r"lies in the padding \(\(2, 2\), .* pad less"),
        (lambda x: avg_pool(x, (2, 2, 2)), r"window=\(2, 2, 2\) has 3 entries, but x has 2"),
        (lambda x: max_pool(x, 2, stride=0), r"stride must be at least 1, got 0"),
        (lambda x: lp_pool(x, 2, p=0.5), r"p=0.5 is not the power of a norm"),
        (lambda x: adaptive_avg_pool(x, 0), r"size must be at least 1, got 0"),
        (lambda x: adaptive_max_pool(x, (1, 2, 3)), r"size=\(1, 2, 3\) has 3 entries"),
        (lambda x: blur_pool(x, size=0), r"size must be at least 1, got 0"),
        (lambda x: global_avg_pool(x[0, 0]), r"global_avg_pool needs x \[batch, \*spatial, chann"),
        (lambda x: global_max_pool(x[0, 0]), r"global_max_pool needs x .* got float32\[8,3\]"),
    ],
)
def test_an_error_names_the_values_and_the_next_step(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((1, 8, 8, 3), jnp.float32))


def test_a_mean_of_integers_asks_for_a_floating_dtype():
    for pool in (global_avg_pool, blur_pool, lambda x: avg_pool(x, 2)):
        with pytest.raises(TypeError, match=r"got uint8\[1,8,8,3\]: convert x first"):
            pool(np.ones((1, 8, 8, 3), np.uint8))
