"""Logits averaged over views against airbench's test-time augmentation in PyTorch, float64."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracle import assert_close, channels_first, normal, x64  # noqa: F401

from convjax.training.views import View, averaged, flip, flip_and_shift, views_of

IMAGES = normal(3, 7, 6, 2)
WEIGHTS = normal(7 * 6 * 2, 5, seed=1)


def predict(images: jax.Array) -> jax.Array:
    """Logits that know of every pixel, and are not linear in any."""
    return jnp.tanh(images).reshape(len(images), -1) @ jnp.asarray(WEIGHTS).astype(images.dtype)


def predict_in_pytorch(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x).permute(0, 2, 3, 1).flatten(1) @ torch.tensor(WEIGHTS)


def mirrored_too(x: torch.Tensor) -> torch.Tensor:
    return (predict_in_pytorch(x) + predict_in_pytorch(x.flip(-1))) / 2


def test_flip_is_the_mean_of_an_image_and_its_mirror(x64: None):  # noqa: F811
    found = jax.jit(averaged(predict, flip()))(IMAGES)
    assert_close(found, mirrored_too(channels_first(IMAGES)))


@pytest.mark.parametrize("pixels", [1, 2])
def test_flip_and_shift_is_that_of_airbench(x64: None, pixels: int):  # noqa: F811
    """Half the weight for the image itself, half for two corners of the image with a border."""
    x = channels_first(IMAGES)
    padded = torch.nn.functional.pad(x, (pixels,) * 4, "reflect")
    corners = (padded[..., :7, :6], padded[..., -7:, -6:])
    shifted = sum(mirrored_too(corner) for corner in corners) / 2
    expected = (mirrored_too(x) + shifted) / 2
    found = jax.jit(averaged(predict, flip_and_shift(pixels)))(IMAGES)
    assert_close(found, expected)


def test_views_before_and_after_normalisation_are_the_same():
    images = np.random.default_rng(2).integers(0, 256, (3, 7, 6, 2), np.uint8)
    views = flip_and_shift()

    def prepare(pixels: jax.Array) -> jax.Array:
        return (pixels.astype(jnp.float32) / 255 - 0.4) / 0.2

    after = jax.jit(lambda pixels: averaged(predict, views)(prepare(pixels)))(images)
    before = jax.jit(averaged(lambda pixels: predict(prepare(pixels)), views))(images)
    assert_close(before, after, tolerance=1e-5)


def test_logits_that_no_view_changes_stay_as_they_are():
    images = jnp.asarray(IMAGES, jnp.bfloat16)
    logits = averaged(lambda images: jnp.full((3, 2), 1.5, images.dtype), flip_and_shift())(images)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, np.full((3, 2), 1.5))


def test_network_is_traced_once_for_six_views():
    traced = []

    def counted(images: jax.Array) -> jax.Array:
        traced.append(images.shape)
        return predict(images)

    jax.eval_shape(averaged(counted, flip_and_shift()), jax.ShapeDtypeStruct((3, 7, 6, 2), "f4"))
    assert traced == [(3, 7, 6, 2)]


def test_view_of_ones_own_is_a_share_and_a_change():
    upside_down = View(0.75, lambda images: images[:, ::-1])
    images = jnp.asarray(IMAGES, jnp.float32)
    found = averaged(predict, [View(0.25, lambda images: images), upside_down])(images)
    of = [np.tanh(each).reshape(3, -1) @ WEIGHTS for each in (IMAGES, IMAGES[:, ::-1])]
    assert_close(found, 0.25 * of[0] + 0.75 * of[1], tolerance=1e-5)


@pytest.mark.parametrize("views", [[], [View(0.5, lambda images: images)]])
def test_shares_that_make_no_mean_are_refused(views: list[View]):
    with pytest.raises(ValueError, match="let them sum to 1"):
        averaged(predict, views)


def upside_down_too() -> list[View]:
    return [View(0.5, lambda images: images), View(0.5, lambda images: images[:, ::-1])]


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("flip", flip()),
        ("flip_and_shift", flip_and_shift(1)),
        (f"{__name__}:upside_down_too", upside_down_too()),
    ],
)
def test_views_have_names_for_a_config(name: str, views: Sequence[View]):
    named, images = views_of(name), jnp.asarray(IMAGES, jnp.float32)
    assert [view.share for view in named] == [view.share for view in views]
    for one, other in zip(named, views, strict=True):
        np.testing.assert_array_equal(one.change(images), other.change(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flop", "there are no views 'flop': did you mean 'flip'"),
        (f"{__name__}:upside_down", "did you mean 'upside_down_too'"),
    ],
)
def test_views_that_do_not_exist_name_the_nearest(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        views_of(name)


@pytest.mark.parametrize("pixels", [0, 1.5])
def test_shift_by_no_whole_number_of_pixels_is_refused(pixels: Any):
    with pytest.raises(ValueError, match="pixels must be a whole number of 1 or more"):
        flip_and_shift(pixels)
