"""The hue of RGB levels, by way of HSV in the 255 steps that Pillow has."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array


def turn_hue(x: Array, turn: Array) -> Array:
    """RGB levels with the hue turned by `turn`, float32 `[batch]`.

    HSV in 255 steps is coarser than RGB: a turn by 0 changes an image too.
    """
    if x.shape[-1] == 1:
        return x
    top, bottom = x.max(-1), x.min(-1)
    span, middle = top - bottom, x.sum(-1) - top - bottom
    red, green, blue = (x[..., i] for i in range(3))
    after = jnp.where(red == top, 0, jnp.where(green == top, 2, 4))
    # Which of the other two is at the bottom: from one colour of the circle to the next, or back.
    back = jnp.where(red == top, green, jnp.where(green == top, blue, red)) == bottom
    case = (after + back.astype(jnp.int32)) * 256 + span
    hue_table, saturation_table = (jnp.asarray(table) for table in _hsv_tables())
    hue = hue_table[case * 256 + top - middle].astype(jnp.int32)
    saturation = saturation_table[span * 256 + top].astype(jnp.int32)
    hue += (turn * 255).astype(jnp.int32)[:, None, None]
    return _from_hsv(hue & 255, saturation, top)


@functools.cache
def _hsv_tables() -> tuple[np.ndarray, np.ndarray]:
    """Hues and saturations for all differences of levels, uint8, in the float32 of Pillow.

    On the device a division may be off by its last bit, which a hue of 255 steps would show.
    """
    span, down = np.meshgrid(*[np.arange(256, dtype=np.float32)] * 2, indexing="ij")
    part = np.where(down <= span, down, 0) / np.maximum(span, 1)
    sixths = [1 - part, part - 1, 3 - part, 1 + part, 5 - part, 3 + part]
    hue = np.mod(np.array(sixths, np.float64) / 6 + 1, 1).astype(np.float32) * np.float64(255)
    hue = np.where(span == 0, 0, hue)
    saturation = np.minimum(span / np.maximum(down, 1), 1) * np.float64(255)
    return hue.astype(np.uint8).reshape(-1), saturation.astype(np.uint8).reshape(-1)


def _from_hsv(hue: Array, saturation: Array, value: Array) -> Array:
    """The colours, `[..., 3]`; in whole numbers, where Pillow has floating ones."""
    # Of value (1 - saturation part), red, green and blue have the part that a trapezium over the
    # circle gives them, which has 6 x 255 places.
    places = 6 * 255
    start = np.array((5 * 255, 3 * 255, 255), np.int32).reshape((1,) * hue.ndim + (3,))
    place = 6 * hue[..., None] + start
    place = jnp.where(place >= places, place - places, place)
    part = jnp.minimum(place, 4 * 255 - place).clip(0, 255)
    square = 255 * 255
    whole = value[..., None] * (square - saturation[..., None] * part)
    near = jnp.round(whole.astype(jnp.float32) * (1 / square)).astype(jnp.int32)
    rest = 2 * (whole - near * square)
    return near + (rest > square).astype(jnp.int32) - (rest < -square).astype(jnp.int32)
