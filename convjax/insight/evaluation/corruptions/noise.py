"""Noise: each level of an image `[height, width, channels]`, in [0, 1], by chance of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def gaussian_noise(key: Array, image: Array, scale: float) -> Array:
    """Adds a normal number of deviation `scale`."""
    return image + scale * jax.random.normal(key, image.shape)


def shot_noise(key: Array, image: Array, photons: float) -> Array:
    """The count of a Poisson process of so many photons for white, as a share of them."""
    return jax.random.poisson(key, image * photons).astype(image.dtype) / photons


def impulse_noise(key: Array, image: Array, amount: float) -> Array:
    """Salt and pepper: replaces this share of the levels, each by 0 or 1 alike."""
    flips, salts = jax.random.split(key)
    salt = jax.random.bernoulli(salts, 0.5, image.shape).astype(image.dtype)
    return jnp.where(jax.random.uniform(flips, image.shape) < amount, salt, image)


def speckle_noise(key: Array, image: Array, scale: float) -> Array:
    """Adds a normal number of deviation `scale` times the level."""
    return image + image * scale * jax.random.normal(key, image.shape)
