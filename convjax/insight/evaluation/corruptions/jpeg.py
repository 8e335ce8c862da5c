"""JPEG there and back, without a file: colours, 8 x 8 cosines, quantisation, and all of it undone.

    image = jpeg_compression(key, image, quality=25)        # as Pillow saves and opens it

ITU-T T.81 (1992) and JFIF, as libjpeg does by default: colours at half of the size (4:2:0), halved
by means and doubled by a triangle filter. The entropy coding loses nothing, and is left out.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def jpeg_compression(key: Array, image: Array, quality: float | Array) -> Array:
    """The image after it was saved as JPEG and opened again.

    image: `[height, width, channels]` in [0, 1], of 1 channel or 3. quality: 1 to 100, as libjpeg
    and Pillow have it.
    """
    height, width, channels = image.shape
    levels = jnp.round(image * 255)
    bright, coloured = (_table(table, quality) for table in (_BRIGHT, _COLOURED))
    if channels == 1:
        return _coded(levels[..., 0], bright)[..., None] / 255
    red, green, blue = (levels[..., i] for i in range(3))
    luma = jnp.floor(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)
    chromas = (
        -0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128,
        0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128,
    )
    luma = _coded(luma, bright)
    # libjpeg adds a little less than a half, so that 255.5 stays below 256.
    halved = (_halved(jnp.floor(each + 0.4999)) for each in chromas)
    b, r = (
        _doubled(_coded(each, coloured)[:, : -(-width // 2)], height, width) - 128
        for each in halved
    )
    rgb = (luma + 1.402 * r, luma - 0.344136286 * b - 0.714136286 * r, luma + 1.772 * b)
    return jnp.floor(jnp.stack(rgb, -1) + 0.5).clip(0, 255) / 255


def _coded(plane: Array, table: Array) -> Array:
    """Levels `[height, width]` that went through cosines and whole multiples of the table."""
    height, width = plane.shape
    padded = jnp.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    rows, cols = (size // 8 for size in padded.shape)
    blocks = padded.reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3) - 128
    cosines = jnp.asarray(_COSINES, jnp.float32)
    high = lax.Precision.HIGHEST
    found = jnp.einsum("ui,rcij,vj->rcuv", cosines, blocks, cosines, precision=high)
    # libjpeg knows cosines to an eighth: so does what lies in the middle of two go the same way.
    table, eighths = table[None, None], jnp.floor(8 * jnp.abs(found) + 0.5)
    kept = jnp.sign(found) * jnp.floor((eighths + 4 * table) / (8 * table)) * table
    blocks = jnp.einsum("ui,rcuv,vj->rcij", cosines, kept, cosines, precision=high)
    whole = (jnp.floor(blocks + 0.5) + 128).clip(0, 255).transpose(0, 2, 1, 3)
    return whole.reshape(padded.shape)[:height, :width]


def _halved(plane: Array) -> Array:
    """The means of 2 x 2 levels, rounded down and up in turn; columns are added to fill blocks."""
    height, width = plane.shape
    padded = jnp.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    total = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).sum((1, 3))
    bias = 1 + jnp.arange(total.shape[1]) % 2
    return jnp.floor((total + bias[None].astype(total.dtype)) / 4)


def _doubled(plane: Array, height: int, width: int) -> Array:
    """Three quarters of the nearest level and a quarter of the next one, each way, twice as large.

    Rounded up and down in turn.
    """
    rows = _between(plane)
    wide = _between(rows.T).T
    bias = 8 - jnp.arange(wide.shape[1]) % 2
    return jnp.floor((wide + bias[None].astype(wide.dtype)) / 16)[:height, :width]


def _between(plane: Array) -> Array:
    """Four times the values between rows, at quarters: twice as many rows."""
    before = jnp.concatenate([plane[:1], plane[:-1]])
    behind = jnp.concatenate([plane[1:], plane[-1:]])
    pairs = jnp.stack([3 * plane + before, 3 * plane + behind], 1)
    return pairs.reshape(2 * len(plane), -1)


def _table(table: np.ndarray, quality: float | Array) -> Array:
    """A table of quantisation for a quality, as libjpeg scales it: float32 `[8, 8]`."""
    quality = jnp.asarray(quality, jnp.float32)
    scale = jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)
    scaled = jnp.floor((jnp.asarray(table, jnp.float32) * scale + 50) / 100)
    return scaled.clip(1, 255)


# T.81, annex K: tables K.1 and K.2.
_BRIGHT = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_COLOURED = np.full((8, 8), 99)
_COLOURED[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# The orthonormal cosine transform: row u is the cosine of u half-waves.
_COSINES = np.sqrt(2 / 8) * np.cos(
    np.arange(8)[:, None] * (2 * np.arange(8)[None] + 1) * np.pi / 16
)
_COSINES[0] /= np.sqrt(2)
