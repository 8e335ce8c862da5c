"""Resampling and rearranging of pixels against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch.nn.functional as F
from jax.test_util import check_grads
from oracle import assert_close, channels_first, channels_last, compiled, normal, x64

from convjax import ops

flatten = compiled(ops.flatten)
pixel_shuffle = compiled(ops.pixel_shuffle)
pixel_unshuffle = compiled(ops.pixel_unshuffle)
resize = compiled(ops.resize)
upsample = compiled(ops.upsample)

pytestmark = pytest.mark.usefixtures(x64.__name__)

spatial = (5, 6, 4)
linear_of_rank = {1: "linear", 2: "bilinear", 3: "trilinear"}
sizes = [(5, 6, 4), (10, 12, 8), (7, 5, 9), (3, 4, 1), (1, 1, 1)]


def test_flatten_runs_through_the_channels_first():
    x = np.arange(24).reshape(2, 2, 2, 3)
    assert flatten(x)[1].tolist() == list(range(12, 24))
    assert flatten(np.zeros((0, 2, 3))).shape == (0, 6)
    assert flatten(np.zeros(4)).shape == (4, 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", sizes, ids=str)
def test_linear_resize_equals_pytorch(rank, size):
    x = normal(2, *spatial[:rank], 3)
    expected = F.interpolate(channels_first(x), size[:rank], mode=linear_of_rank[rank])
    assert_close(resize(x, size[:rank]), channels_last(expected))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", sizes, ids=str)
def test_nearest_resize_equals_the_exact_one_of_pytorch(rank, size):
    x = normal(2, *spatial[:rank], 3)
    expected = F.interpolate(channels_first(x), size[:rank], mode="nearest-exact")
    y = resize(x, size[:rank], method="nearest")
    np.testing.assert_array_equal(y, channels_last(expected))


@pytest.mark.parametrize("size", sizes, ids=str)
def test_cubic_resize_equals_pytorch(size):
    x = normal(2, *spatial[:2], 3)
    expected = F.interpolate(channels_first(x), size[:2], mode="bicubic")
    y = resize(x, size[:2], method="cubic")
    assert_close(y, channels_last(expected))


@pytest.mark.parametrize("size", sizes, ids=str)
@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_antialiased_resize_equals_pytorch(size, method):
    x = normal(2, 9, 11, 3)
    expected = F.interpolate(channels_first(x), size[:2], mode=f"bi{method}", antialias=True)
    y = resize(x, size[:2], method=method, antialias=True)
    assert_close(y, channels_last(expected))


@pytest.mark.parametrize("method", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_constant_image_stays_constant_and_keeps_its_dtype(method, dtype):
    y = resize(jnp.full((1, 5, 7, 2), 3, dtype), (11, 3), method=method)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), 3.0, rtol=1e-6)


def test_nearest_resize_takes_integers_and_keeps_them():
    x = np.array([[1], [2], [200]], np.uint8)[None]
    y = resize(x, 6, method="nearest")
    assert y.dtype == np.uint8
    assert y.ravel().tolist() == [1, 1, 2, 2, 200, 200]


@pytest.mark.parametrize(("method", "mode"), [("nearest", "nearest-exact"), ("linear", "bilinear")])
def test_upsample_equals_pytorch(method, mode):
    x = normal(2, 3, 4, 2)
    expected = F.interpolate(channels_first(x), scale_factor=(2, 3), mode=mode)
    y = upsample(x, (2, 3), method=method)
    assert_close(y, channels_last(expected))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_equals_pytorch(factor):
    x = normal(2, 3, 4, 5 * factor**2)
    expected = F.pixel_shuffle(channels_first(x), factor)
    np.testing.assert_array_equal(pixel_shuffle(x, factor), channels_last(expected))
    x = normal(2, 3 * factor, 4 * factor, 5)
    expected = F.pixel_unshuffle(channels_first(x), factor)
    np.testing.assert_array_equal(pixel_unshuffle(x, factor), channels_last(expected))


@pytest.mark.parametrize("rank", [1, 3])
def test_pixel_shuffle_in_one_and_three_dimensions_follows_the_same_rule(rank):
    x = normal(2, *spatial[:rank], 3 * 2**rank)
    y = np.asarray(pixel_shuffle(x, 2))
    assert y.shape == (2, *(2 * n for n in spatial[:rank]), 3)
    for place in np.ndindex(y.shape):
        example, *pixel, channel = place
        inner = 0
        for coordinate in pixel:
            inner = 2 * inner + coordinate % 2
        outer = tuple(coordinate // 2 for coordinate in pixel)
        assert y[place] == x[(example, *outer, channel * 2**rank + inner)]
    np.testing.assert_array_equal(pixel_unshuffle(y, 2), x)


@pytest.mark.parametrize(
    "function",
    [
        flatten,
        lambda x: resize(x, (3, 9)),
        lambda x: resize(x, (3, 9), method="cubic"),
        lambda x: resize(x, (3, 9), method="nearest"),
        lambda x: resize(x, (3, 2), antialias=True),
        lambda x: pixel_shuffle(x, 2),
        lambda x: pixel_unshuffle(x, 2),
    ],
)
def test_gradients_of_shapes(function):
    check_grads(jax.jit(function), (normal(1, 4, 6, 4),), 1, ["fwd", "rev"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: resize(x, 3, method="bilinear"), r"unknown method 'bilinear': take \"nearest\""),
        (lambda x: resize(x, 3, method="nearest", antialias=True), r"no filter to widen"),
        (lambda x: resize(x, (1, 2, 3)), r"size=\(1, 2, 3\) has 3 entries, but x has 2"),
        (lambda x: resize(x, 0), r"size must be at least 1, got 0"),
        (lambda x: upsample(x, 0), r"factor must be at least 1, got 0"),
        (lambda x: pixel_shuffle(x, 3), r"factor\^2 with factor=3: give channels \* 9"),
        (lambda x: pixel_unshuffle(x, 3), r"float32\[1,6,8,4\] do not divide by factor=3"),
        (lambda x: pixel_shuffle(x[0, 0], 2), r"pixel_shuffle needs x .* got float32\[8,4\]"),
    ],
)
def test_an_error_names_the_values_and_the_next_step(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((1, 6, 8, 4), jnp.float32))


def test_only_nearest_resamples_integers():
    with pytest.raises(TypeError, match=r"resize computes .* got uint8\[1,2,1\]: convert x first"):
        resize(np.ones((1, 2, 1), np.uint8), 4)
