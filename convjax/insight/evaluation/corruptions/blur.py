"""Blur: of a lens out of focus, of frosted glass, of a hand that moves, of a camera that nears."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.insight.evaluation.corruptions.sampling import cut, resampled, smoothing, zooming


def gaussian_blur(key: Array, image: Array, sigma: float) -> Array:
    """A Gaussian of `sigma` pixels, cut off at 4 of them; outside, the outermost pixel."""
    return resampled(image, *(smoothing(size, sigma) for size in image.shape[:2]))


def defocus_blur(key: Array, image: Array, radius: float, alias_blur: float) -> Array:
    """The mean over a disk of `radius` pixels, whose edge a Gaussian of `alias_blur` softens.

    Outside, the image is mirrored at its outermost pixels, which are not repeated.
    """
    kernel = disk(radius, alias_blur)
    border = len(kernel) // 2
    # `numpy.pad` mirrors as often as it takes where an image is smaller than the disk.
    rows, cols = (np.pad(np.arange(size), border, mode="reflect") for size in image.shape[:2])
    padded = image[rows][:, cols]
    planes = padded.transpose(2, 0, 1)[:, None]  # A channel is an image of its own.
    weights = jnp.asarray(kernel, image.dtype)[None, None]
    blurred = lax.conv_general_dilated(
        planes, weights, (1, 1), "VALID", precision=lax.Precision.HIGHEST
    )
    return blurred[:, 0].transpose(1, 2, 0)


def disk(radius: float, alias_blur: float) -> np.ndarray:
    """The weights of `defocus_blur`, which sum to 1: 17 x 17, or more for a radius above 8."""
    reach, width = (8, 3) if radius <= 8 else (int(radius), 5)
    place = np.arange(-reach, reach + 1)
    inside = place[:, None] ** 2 + place[None] ** 2 <= radius**2
    offsets = np.arange(width) - width // 2
    weights = np.exp(-(offsets**2) / (2 * alias_blur**2))
    soft = inside / inside.sum()
    for _ in range(2):  # Down, then across, by way of the transpose.
        padded = np.pad(soft, ((width // 2, width // 2), (0, 0)), mode="reflect")
        shifted = [padded[first : first + len(soft)] for first in range(width)]
        soft = np.einsum("k,kij->ji", weights / weights.sum(), np.stack(shifted))
    return soft


def glass_blur(key: Array, image: Array, sigma: float, reach: int, times: int) -> Array:
    """Pixels that take the place of others near by, between two Gaussian blurs.

    From the lower right to the upper left each pixel takes the colour of one of those at -reach to
    reach - 1 rows and columns from it, `times` times over. That is what the published code does to
    colour images, and so what its images show: it means to swap the two.
    """
    height, width = image.shape[:2]
    down, across = (smoothing(size, sigma) for size in (height, width))
    image = cut(resampled(image, down, across)) / 255
    rows, cols = np.meshgrid(
        np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1), indexing="ij"
    )
    places = jnp.asarray((rows * width + cols).ravel(), jnp.int32)
    moves = jax.random.randint(key, (times, places.size, 2), -reach, reach)

    def take(number: Array, source: Array) -> Array:
        turn, place = number // places.size, number % places.size
        move = moves[turn, place]
        to = places[place]
        return source.at[to].set(source[to + move[0] * width + move[1]])

    source = jnp.arange(height * width)
    if places.size:
        source = lax.fori_loop(0, times * places.size, take, source)
    moved = image.reshape(height * width, -1)[source].reshape(image.shape)
    return resampled(moved, down, across)


def motion_blur(key: Array, image: Array, radius: int, sigma: float) -> Array:
    """Half a Gaussian along a line at -45 to 45 degrees, drawn for each image; see `streaked`."""
    degrees = jax.random.uniform(key, (), minval=-45, maxval=45)
    return jnp.round(streaked(image, degrees, radius, sigma) * 255) / 255  # ImageMagick's levels.


def streaked(image: Array, degrees: Array, radius: int, sigma: float) -> Array:
    """Each pixel is a mean of those behind it on a line: ImageMagick's `MotionBlurImage`.

    Of the pixels 0, 1, ..., 2 radius steps away, the nearest to the line at `degrees` from the
    columns' axis counts for exp(-step^2 / (2 sigma^2)). Outside is the outermost pixel.
    """
    height, width = image.shape[:2]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = jnp.asarray(weights / weights.sum(), image.dtype)
    angle = jnp.deg2rad(degrees)
    steps = jnp.asarray(steps, jnp.float32)
    down = jnp.ceil(steps * jnp.sin(angle) - 0.5).astype(jnp.int32)
    right = jnp.ceil(steps * jnp.cos(angle) - 0.5).astype(jnp.int32)

    def add(step: Array, total: Array) -> Array:
        rows = (jnp.arange(height) + down[step]).clip(0, height - 1)
        cols = (jnp.arange(width) + right[step]).clip(0, width - 1)
        return total + weights[step] * image[rows][:, cols]

    return lax.fori_loop(0, len(weights), add, jnp.zeros_like(image))


def zoom_blur(key: Array, image: Array, most: float, step: float) -> Array:
    """The mean of the image and of what zooms 1, 1 + step, ... short of `most` make of it."""
    factors = np.arange(1, most, step)
    total = image
    for factor in factors:
        total = total + resampled(image, *(zooming(size, factor) for size in image.shape[:2]))
    return total / (len(factors) + 1)
