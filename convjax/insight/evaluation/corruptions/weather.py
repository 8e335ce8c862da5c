"""Weather: snow that falls, fog that hangs, and more light than there was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from convjax.insight.evaluation.corruptions.blur import streaked
from convjax.insight.evaluation.corruptions.sampling import cut, resampled, zooming


def snow(
    key: Array,
    image: Array,
    mean: float,
    scale: float,
    zoom: float,
    least: float,
    radius: int,
    sigma: float,
    share: float,
) -> Array:
    """Flakes that fall, steeply, over an image that is whitened.

    mean, scale: of the normal numbers that flakes are made of. zoom: how large they are.
    least: smaller numbers are no flakes. radius, sigma: how far they streak.
    share: of the image as it was; the rest is no darker than 1.5 times its grey and a half.
    """
    draws, angles = jax.random.split(key)
    height, width, channels = image.shape
    layer = mean + scale * jax.random.normal(draws, (height, width, 1))
    layer = resampled(layer, zooming(height, zoom), zooming(width, zoom))
    layer = cut(jnp.where(layer < least, 0, layer)) / 255
    layer = streaked(layer, jax.random.uniform(angles, (), minval=-135, maxval=-45), radius, sigma)
    layer = jnp.round(layer * 255) / 255  # ImageMagick's levels.
    grey = image
    if channels == 3:
        weights = jnp.array([0.299, 0.587, 0.114], image.dtype)
        grey = (image * weights[None, None]).sum(-1, keepdims=True)
    white = share * image + (1 - share) * jnp.maximum(image, grey * 1.5 + 0.5)
    return white + layer + layer[::-1, ::-1]


def fog(key: Array, image: Array, amount: float, decay: float) -> Array:
    """Adds `amount` of a plasma fractal, and scales the sum to what the image's maximum was."""
    height, width = image.shape[:2]
    size = 2 ** max(1, (max(height, width) - 1).bit_length())
    most = image.max()
    clouds = plasma_fractal(key, size, decay)[:height, :width, None]
    return (image + amount * clouds) * most / (most + amount)


def plasma_fractal(key: Array, size: int, decay: float) -> Array:
    """A map of heights from 0 to 1 by the diamond-square algorithm, `[size, size]`.

    size: a power of two. decay: by what the roughness is divided at each scale.
    """
    heights = jnp.zeros((size, size))
    chance = jax.random.uniform(key, (size, size), minval=-1, maxval=1)  # one draw a place
    step, rough = size, 100.0

    while step >= 2:
        half, change = step // 2, chance * rough**2
        corners = heights[::step, ::step]
        square = corners + jnp.roll(corners, -1, 0)
        square = square + jnp.roll(square, -1, 1)
        centres = square / 4 + change[half::step, half::step]
        above = centres + jnp.roll(centres, 1, 0) + corners + jnp.roll(corners, -1, 1)
        left = centres + jnp.roll(centres, 1, 1) + corners + jnp.roll(corners, -1, 0)
        heights = heights.at[half::step, half::step].set(centres)
        heights = heights.at[::step, half::step].set(above / 4 + change[::step, half::step])
        heights = heights.at[half::step, ::step].set(left / 4 + change[half::step, ::step])
        step, rough = half, rough / decay
    heights = heights - heights.min()
    return heights / heights.max()


def brightness(key: Array, image: Array, amount: float) -> Array:
    """Adds to the value of HSV, which is the greatest of the channels; hue and saturation stay."""
    value = image.max(-1, keepdims=True)
    brighter = (value + amount).clip(0, 1)
    return jnp.where(value > 0, image * (brighter / jnp.where(value > 0, value, 1)), brighter)
