"""Geometric changes by given amounts: pixels move, and none gets a new value but by resizing.

    rotate_by(images, 30.0)                     # all images, or one angle an image: `[batch]`

Images are `[batch, height, width, channels]` of any floating dtype and range, or uint8.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from convjax.augment.arguments import Pixel, along, batch, each, one_of, pixel

MODES = ("zero", "reflect", "edge")


def flip_where(images: ArrayLike, mask: ArrayLike, *, vertical: bool = False) -> Array:
    """Mirrors the images that the mask, bool `[batch]`, names: left to right, or top to bottom."""
    images = batch("flip_where", images)
    mask = along(each("flip_where", "mask", mask, images, bool))
    return jnp.where(mask, images[:, ::-1] if vertical else images[:, :, ::-1], images)


def shift_by(images: ArrayLike, down: ArrayLike, right: ArrayLike, mode: str = "zero") -> Array:
    """Moves the images by whole pixels: down and right, or up and left for negative numbers.

    mode: what comes in at the edge: "zero", "reflect" (the image mirrored at its outermost pixels,
        which are not repeated) or "edge" (the outermost pixel), as `numpy.pad` has them. So it is
        the window of a padded image, of whatever padding.
    """
    images = batch("shift_by", images)
    one_of("shift_by", "mode", mode, MODES)
    down = each("shift_by", "down", down, images, jnp.int32)[:, None]
    right = each("shift_by", "right", right, images, jnp.int32)[:, None]
    rows = jnp.arange(images.shape[1])[None] - down
    cols = jnp.arange(images.shape[2])[None] - right
    if mode == "reflect":
        rows, cols = _mirrored(rows, images.shape[1]), _mirrored(cols, images.shape[2])
    return take_pixels(images, rows[:, :, None], cols[:, None, :], None if mode != "zero" else 0)


def rotate_by(images: ArrayLike, degrees: ArrayLike, *, fill: Pixel = 0) -> Array:
    """Turns the images counter-clockwise about their centre; `PIL.Image.rotate`, nearest pixel."""
    images = batch("rotate_by", images)
    angle = -jnp.deg2rad(each("rotate_by", "degrees", degrees, images))
    return warp_by(images, rotation(angle, *images.shape[1:3]), fill=fill)


def shear_x_by(images: ArrayLike, amount: ArrayLike, *, fill: Pixel = 0) -> Array:
    """Takes pixel (y, x) from x + amount * y, measured from the upper left corner.

    As `torchvision.transforms.RandAugment` does it; `PIL.Image.transform` with `Image.AFFINE`.
    """
    images = batch("shear_x_by", images)
    amount = each("shear_x_by", "amount", amount, images)
    return warp_by(images, _matrix(amount, b=amount), fill=fill)


def shear_y_by(images: ArrayLike, amount: ArrayLike, *, fill: Pixel = 0) -> Array:
    """Takes pixel (y, x) from y + amount * x, measured from the upper left corner."""
    images = batch("shear_y_by", images)
    amount = each("shear_y_by", "amount", amount, images)
    return warp_by(images, _matrix(amount, d=amount), fill=fill)


def warp_by(images: ArrayLike, matrix: ArrayLike, *, fill: Pixel = 0) -> Array:
    """Takes pixel (y, x) from the nearest to (d x + e y + f, a x + b y + c).

    matrix: (a, b, c, d, e, f), `[6]`, or `[batch, 6]`, in pixels, with pixel centres at
        half-integers: what `PIL.Image.transform` takes for `Image.AFFINE`.
    fill: what lies outside, a number or one a channel, in units of the pixels.

    Coordinates have 16 bits behind the point, as in Pillow, and the result equals Pillow's, but
    for pixels that lie within 1e-4 of the border between two: the matrix is float32 here.
    """
    images = batch("warp_by", images)
    matrix = jnp.broadcast_to(jnp.asarray(matrix, jnp.float32), (len(images), 6))
    a, b, c, d, e, f = (matrix[:, i, None, None] for i in range(6))
    rows, cols = jnp.arange(images.shape[1])[None, :, None], jnp.arange(images.shape[2])[None, None]
    x = _fixed(a) * cols + _fixed(b) * rows + _fixed(c + (a + b) / 2)
    y = _fixed(d) * cols + _fixed(e) * rows + _fixed(f + (d + e) / 2)
    return take_pixels(images, y >> _BITS, x >> _BITS, fill)


def resized_crop_at(
    images: ArrayLike,
    top: ArrayLike,
    left: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    size: tuple[int, int],
) -> Array:
    """Cuts a box out of each image, and resamples it linearly to `size` = (height, width).

    Where the box shrinks, the filter widens with it (antialias): `PIL.Image.resize` of the box by
    `BILINEAR`, to within one grey level. The box, in whole pixels, must lie inside the image.
    """
    op = "resized_crop_at"
    images = batch(op, images)
    across = _resampling(each(op, "left", left, images), each(op, "width", width, images), size[1])
    down = _resampling(each(op, "top", top, images), each(op, "height", height, images), size[0])
    x = images.astype(jnp.float64 if images.dtype == jnp.float64 else jnp.float32)
    # Rows first, and rounded between, as in Pillow.
    for equation, weights in (("bvw,bhwc->bhvc", across), ("buh,bhvc->buvc", down)):
        pixels = x.shape[2] if weights is across else x.shape[1]
        x = jnp.einsum(equation, weights(pixels).astype(x.dtype), x, precision="highest")
        if images.dtype == jnp.uint8:
            x = jnp.floor(x + 0.5)
    return x.astype(images.dtype)


def rotation(angle: Array, height: int, width: int) -> Array:
    """The matrix of `warp_by` for a turn about the centre, clockwise by radians: `[batch, 6]`."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.stack((cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y), axis=-1)


def take_pixels(images: Array, rows: Array, cols: Array, fill: Pixel | None) -> Array:
    """Pixel (y, x) of the result is pixel (rows, cols) of the image: one gather.

    rows, cols: int32, broadcast to `[batch, height, width]`. fill: what lies outside, a number or
    one a channel; None takes the nearest pixel inside.
    """
    height, width = images.shape[1:3]
    number = jnp.arange(len(images))[:, None, None]
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    rows, cols = rows.clip(0, height - 1), cols.clip(0, width - 1)
    taken = images.at[number, rows, cols].get(mode="promise_in_bounds")
    if fill is None:
        return taken
    value = pixel("warp", "fill", fill, images)
    return jnp.where(inside[..., None], taken, value[None, None, None])


_BITS = 16


def _fixed(value: Array) -> Array:
    return jnp.floor(value * 2**_BITS + 0.5).astype(jnp.int32)


def _matrix(like: Array, **entries: Array) -> Array:
    """The identity but for these entries, `[batch, 6]`."""
    identity = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0, "f": 0.0}
    return jnp.stack(
        [entries.get(name, jnp.full_like(like, value)) for name, value in identity.items()], -1
    )


def _mirrored(index: Array, size: int) -> Array:
    if size == 1:
        return jnp.zeros_like(index)
    index = index % (2 * size - 2)
    return jnp.where(index < size, index, 2 * size - 2 - index)


def _resampling(start: Array, length: Array, into: int) -> Callable[[int], Array]:
    """What each of `into` places takes of a line of n pixels: `n -> weights [batch, into, n]`."""

    def weights(n: int) -> Array:
        scale = (length / into)[:, None, None]
        centre = (jnp.arange(into, dtype=jnp.float32) + 0.5)[None, :, None] * scale
        place = jnp.arange(n, dtype=jnp.float32)[None, None, :] - start[:, None, None]
        inside = (place >= 0) & (place < length[:, None, None])
        weight = jnp.maximum(1 - jnp.abs(place + 0.5 - centre) / jnp.maximum(scale, 1), 0)
        weight = jnp.where(inside, weight, 0)
        weight = weight / weight.sum(-1, keepdims=True)
        return jnp.round(weight * 2**22) / 2**22  # As Pillow has them.

    return weights
