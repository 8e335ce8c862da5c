"""A convolution and its two gradients in terms of `lax.conv`, dots, slices and sums.

Each function computes one of

    forward(x, kernel, geometry) -> y
    input_gradient(g, kernel, geometry) -> gradient of x
    weight_gradient(x, g, geometry) -> gradient of the kernel

for x `[batch, *size, channels]`, y and g `[batch, *out, features]` and a kernel
`[*window, channels / groups, features]`, in one of these ways:

lax: XLA's own convolution, and what JAX makes of its gradients.
canonical: the weight gradient as a correlation of x with g whose contracted axis is the batch, in
    the one layout that XLA's CPU backend is fast in; to the body of a loop it brings no other.
dot: one dot; the window is a single pixel.
taps: a dot of what each place of the window sees, summed up.
im2col: what all places see, side by side, and one dot.
pairs: what two neighbouring windows see together, side by side, and one dot whose matrix has the
    kernel twice, once for each of them, with zeros beside it: fewer and longer pieces to copy.
col2im: one dot, and its pieces added back where they came from.
flipped: the input gradient of a stride of 1, as a convolution with the flipped kernel.
phases: the input gradient of a larger stride, as one convolution for each remainder.

The literature knows the middle ones as direct, im2col and col2im (Chellapilla et al., High
Performance Convolutional Neural Networks for Document Processing, 2006).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.ops.geometry import Geometry, Tap, flat, interleave, painted, shifted, total

Algorithm = Callable[[Array, Array, Geometry], Array]

# XLA compiles every group by itself: 64 of them took it 8 s.
MOST_GROUPS = 32


def lax_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=dimensions(x.ndim),
        feature_group_count=geometry.groups,
    )


def lax_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """What JAX makes of the input gradient of XLA's convolution."""
    x = jax.ShapeDtypeStruct(
        (g.shape[0], *geometry.size, kernel.shape[-2] * geometry.groups), g.dtype
    )
    (x,) = jax.linear_transpose(lambda x: lax_forward(x, kernel, geometry), x)(g)
    return x


def lax_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """What JAX makes of the weight gradient of XLA's convolution."""
    channels = x.shape[-1] // geometry.groups
    kernel = jax.ShapeDtypeStruct((*geometry.window, channels, g.shape[-1]), g.dtype)
    (kernel,) = jax.linear_transpose(lambda k: lax_forward(x, k, geometry), kernel)(g)
    return kernel


def canonical_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """A correlation of `x` with `g`, with their batches as channels; one group."""
    spans = [(w - 1) * gap + 1 for w, gap in zip(geometry.window, geometry.dilation, strict=True)]
    reach = [(n - 1) * step + 1 for n, step in zip(geometry.out, geometry.stride, strict=True)]
    pads = [
        (low, span + have - 1 - size - low)
        for size, (low, _), span, have in zip(
            geometry.size, geometry.pads, spans, reach, strict=True
        )
    ]
    kernel = lax.conv_general_dilated(
        jnp.moveaxis(x, (0, -1), (-1, 0)),
        jnp.moveaxis(g, 0, -2),
        geometry.dilation,
        pads,
        rhs_dilation=geometry.stride,
        dimension_numbers=dimensions(x.ndim),
    )
    return jnp.moveaxis(kernel, 0, -2)


def dot_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """One dot of the pixels that a window of one pixel sees; one group."""
    (seen,) = shifted(x, geometry)
    return _dot(seen, kernel.reshape(kernel.shape[-2:]))


def dot_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """One dot, painted back; a window of one pixel, one group."""
    return painted(lambda _, seen: _dot_turned(seen, kernel[(0,) * (g.ndim - 2)]), g, geometry)


def dot_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """One dot over all pixels; a window of one pixel, one group."""
    return im2col_weight(x, g, geometry)


def taps_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """A dot for each place of the window; one group."""
    seen = shifted(x, geometry)
    return total([_dot(a, kernel[tap]) for a, tap in zip(seen, geometry.taps, strict=True)])


def taps_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """A dot for each place of the window, painted back; one group."""
    return painted(
        lambda number, seen: _dot_turned(seen, kernel[geometry.taps[number]]), g, geometry
    )


def taps_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """A dot over all pixels for each place of the window; one group."""
    parts = [_dot_of_rows(seen, g) for seen in shifted(x, geometry)]
    return jnp.stack(parts).reshape(*geometry.window, x.shape[-1], g.shape[-1])


def im2col_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """What all places of the window see side by side, and one dot."""
    if geometry.groups > 1:
        return _split(im2col_forward, x, kernel, geometry)
    patches = jnp.concatenate(shifted(x, geometry), -1)
    return _dot(patches, flat(kernel))


def im2col_weight(x: Array, g: Array, geometry: Geometry) -> Array:
    """What all places of the window see side by side, and one dot over all pixels."""
    if geometry.groups > 1:
        return _split(im2col_weight, x, g, geometry)
    patches = jnp.concatenate(shifted(x, geometry), -1)
    return _dot_of_rows(patches, g).reshape(*geometry.window, x.shape[-1], g.shape[-1])


def pairs_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """What each two windows of a row see, side by side, and one dot; no dilation along rows."""
    (w, step, out) = (each[-1] for each in (geometry.window, geometry.stride, geometry.out))
    low, channels, pairs, span = geometry.pads[-1][0], x.shape[-1], -(-out // 2), w + step
    # Rows in pieces of two steps: the windows of a pair begin with one, and end in one of the next.
    reach = -(-span // (2 * step))
    high = (pairs + reach - 1) * 2 * step - x.shape[-2] - low
    config = [(0, 0, 0)] * (x.ndim - 2) + [(low, high, 0), (0, 0, 0)]
    pieces = lax.pad(x, np.asarray(0, x.dtype), config)
    pieces = pieces.reshape(*x.shape[:-2], pairs + reach - 1, 2 * step * channels)
    seen = [
        pieces[..., number : number + pairs, : (span - 2 * step * number) * channels]
        for number in range(reach)
    ]
    columns = Geometry(
        (*geometry.size[:-1], pairs),
        (*geometry.window[:-1], 1),
        (*geometry.stride[:-1], 1),
        (*geometry.dilation[:-1], 1),
        (*geometry.pads[:-1], (0, 0)),
    )
    patches = jnp.concatenate(shifted(jnp.concatenate(seen, -1), columns), -1)
    beside = [(0, 0, 0)] * (kernel.ndim - 3)
    both = [
        lax.pad(kernel, np.asarray(0, kernel.dtype), [*beside, pad, (0, 0, 0), (0, 0, 0)])
        for pad in ((0, step, 0), (step, 0, 0))
    ]
    y = _dot(patches, flat(jnp.concatenate(both, -1)))
    y = y.reshape(*y.shape[:-2], 2 * pairs, kernel.shape[-1])
    return y[..., :out, :]


def col2im_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """One dot, and its pieces painted where each place of the window has been."""
    if geometry.groups > 1:
        return _split(col2im_input, g, kernel, geometry)
    channels = kernel.shape[-2]
    pieces = _dot_turned(g, flat(kernel))
    return painted(
        lambda number, seen: lax.slice_in_dim(
            seen, number * channels, (number + 1) * channels, axis=-1
        ),
        pieces,
        geometry,
    )


def flipped_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """A convolution with the flipped kernel; a stride of 1."""
    return lax_forward(g, turned(kernel, geometry.groups), turned_geometry(geometry))


def phases_input(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """One convolution for the pixels of each remainder by the stride; no dilation, one group.

    Such pixels see but every stride-th row and column of the kernel.
    """
    length = tuple(-(-n // step) for n, step in zip(geometry.size, geometry.stride, strict=True))
    images: dict[Tap, Array] = {}
    for phase in itertools.product(*map(range, geometry.stride)):
        firsts = [
            (place + low) % step
            for place, (low, _), step in zip(phase, geometry.pads, geometry.stride, strict=True)
        ]
        part = kernel[tuple(map(slice, firsts, geometry.window, geometry.stride))]
        if 0 in part.shape:
            images[phase] = jnp.zeros((len(g), *length, kernel.shape[-2]), g.dtype)
            continue
        pads = []
        for place, (low, _), step, first, taps, n, have in zip(
            phase,
            geometry.pads,
            geometry.stride,
            firsts,
            part.shape,
            length,
            geometry.out,
            strict=False,
        ):
            start = (place + low - first) // step - (taps - 1)
            pads.append((-start, start + n + taps - 1 - have))
        alone = (1,) * len(length)
        small = Geometry(geometry.out, part.shape[: len(length)], alone, alone, tuple(pads))
        images[phase] = lax_forward(g, turned(part, 1), small)
    image = interleave(images, geometry.stride)
    return image[(slice(None), *map(slice, geometry.size))]


def turned(kernel: Array, groups: int) -> Array:
    """The kernel of the input gradient: flipped in space, `[*window, features / groups, channels]`.

    kernel: `[*window, channels / groups, features]`.
    """
    *window, channels, features = kernel.shape
    split = kernel.reshape(*window, channels, groups, features // groups)
    swapped = jnp.moveaxis(split, (-3, -2, -1), (-1, -2, -3))
    flipped = jnp.flip(swapped, tuple(range(len(window))))
    return flipped.reshape(*window, features // groups, groups * channels)


def turned_geometry(geometry: Geometry) -> Geometry:
    """That of the input gradient of a stride of 1, as a convolution over `g`."""
    pads = tuple(
        ((w - 1) * gap - low, n + low - have)
        for n, w, gap, (low, _), have in zip(
            geometry.size,
            geometry.window,
            geometry.dilation,
            geometry.pads,
            geometry.out,
            strict=True,
        )
    )
    return geometry._replace(size=geometry.out, pads=pads)


def dimensions(ndim: int) -> lax.ConvDimensionNumbers:
    """Images with their channels last, kernels `[*window, in, out]`."""
    spatial = tuple(range(1, ndim - 1))
    image = (0, ndim - 1, *spatial)
    return lax.ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


def _split(algorithm: Algorithm, a: Array, b: Array, geometry: Geometry) -> Array:
    """A grouped convolution as one for each group, or as batched dots where they would be many."""
    groups, one = geometry.groups, geometry._replace(groups=1)
    if groups <= MOST_GROUPS:
        pairs = zip(jnp.split(a, groups, -1), jnp.split(b, groups, -1), strict=True)
        return jnp.concatenate([algorithm(*pair, one) for pair in pairs], -1)
    split = [jnp.moveaxis(each.reshape(*each.shape[:-1], groups, -1), -2, 0) for each in (a, b)]
    result = jnp.moveaxis(jax.vmap(lambda a, b: algorithm(a, b, one))(*split), 0, -2)
    return result.reshape(*result.shape[:-2], -1)


def _dot(x: Array, matrix: Array) -> Array:
    """`[..., in] x [in, out] -> [..., out]`."""
    return (flat(x) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _dot_turned(x: Array, matrix: Array) -> Array:
    """`[..., out] x [in, out] -> [..., in]`."""
    y = lax.dot_general(flat(x), matrix, (((1,), (1,)), ((), ())))
    return y.reshape(*x.shape[:-1], matrix.shape[0])


def _dot_of_rows(x: Array, g: Array) -> Array:
    """`[places, in] x [places, out] -> [in, out]`."""
    return lax.dot_general(flat(x), flat(g), (((0,), (0,)), ((), ())))
