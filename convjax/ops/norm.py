"""Normalisation: subtract a mean, divide by a standard deviation; they differ in the axes.

    mean, var = moments(x, axes=(0, 1, 2))     # float32, whatever the dtype of x
    y = batch_norm(x, mean, var, scale, bias)  # in the dtype of x

Statistics and the arithmetic with them are in float32 (float64 for float64); the result has the
dtype of `x`. `scale` and `bias` may each be None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from convjax.ops.arguments import along, describe, floating, spatial, wide_dtype
from convjax.ops.primitive import unmarked
from convjax.ops.sums import channel_sum, spread, spread_along


def moments(
    x: ArrayLike,
    axes: int | Sequence[int],
    *,
    keepdims: bool = False,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """The mean and the biased variance of `x` over `axes`, in float32.

    With s a mean of some of the numbers, and d = x - s:

        mean = s + mean(d)      var = mean((x - mean)^2) - rounding^2

    so that no digits are lost to a large mean, as they are by the mean of squares less the square
    of the mean; the last term takes back what rounding the mean to a float32 has added (the
    corrected two-pass algorithm: Chan, Golub and LeVeque, Algorithms for Computing the Sample
    Variance, 1983). For the unbiased variance multiply by n / (n - 1).

    axes: the axes to reduce; they are dropped unless `keepdims`.
    axis_name: a mapped axis (of pmap, shard_map or vmap) over which the mean is taken too, where
        all its members hold equally many numbers.

    >>> mean, var = moments(jnp.array([[1.0, 2.0], [3.0, 6.0]]), axes=0)
    >>> mean.tolist(), var.tolist()
    ([2.0, 4.0], [1.0, 4.0])
    """
    x = floating("moments", x)
    x = x.astype(wide_dtype(x))

    reduced = sorted(axis % x.ndim for axis in _axes(axes))
    all_places = reduced == list(range(x.ndim - 1))

    def average(values: Array) -> Array:
        shape = [1 if axis in reduced else size for axis, size in enumerate(values.shape)]
        summed = channel_sum(values) if all_places else values.sum(reduced)
        mean = summed.reshape(shape) / (values.size // math.prod(shape))
        return mean if axis_name is None else lax.pmean(mean, axis_name)

    # JAX slices no axis that is spread over devices by name.
    about = lax.stop_gradient(average(x[:1] if all_places and unmarked(x) else x))
    away = average(x - about)
    mean = about + away
    # A fixed number in the place of the mean: so neither gradient needs a sum over the other's.
    center = lax.stop_gradient(mean)
    var = average(jnp.square(x - center)) - jnp.square(away - (center - about))
    var = jnp.maximum(var, 0)
    return (mean, var) if keepdims else (mean.squeeze(_axes(axes)), var.squeeze(_axes(axes)))


def batch_norm(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """Normalises every channel by the `mean` and `var` that it is given.

    Ioffe and Szegedy, Batch Normalization, 2015 (arXiv 1502.03167). In training they are
    `moments(x, axes=all but the last)`, in evaluation running averages of those.

    x: [..., channels]; mean, var, scale, bias: [channels].

    Returns `(x - mean) / sqrt(var + epsilon) * scale + bias`.

    >>> batch_norm(jnp.array([[3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0).item()
    1.0
    """
    x = floating("batch_norm", x)
    y = x.astype(wide_dtype(x))
    mean, var = (
        along("batch_norm", name, values, x).reshape(x.shape[-1:]).astype(y.dtype)
        for name, values in (("mean", mean), ("var", var))
    )
    slope = lax.rsqrt(var + epsilon)
    if scale is not None:
        slope *= along("batch_norm", "scale", scale, x).reshape(slope.shape).astype(y.dtype)
    # (y - shift) * slope + offset, which needs but two sums for all of its gradients.
    shift = lax.stop_gradient(mean)
    offset = (shift - mean) * slope
    if bias is not None:
        offset += along("batch_norm", "bias", bias, x).reshape(slope.shape).astype(y.dtype)
    y = (y - spread(shift, y.shape)) * spread(slope, y.shape) + spread(offset, y.shape)
    return y.astype(x.dtype)


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
) -> Array:
    """Normalises every example, or every pixel of it, over `axes`.

    Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv 1607.06450). The default takes the
    channels of each pixel together, as ConvNeXt does; `axes=(1, 2, 3)` a whole image.

    scale, bias: of the shape of `axes`.

    >>> layer_norm(jnp.array([[1.0, 3.0]]), epsilon=0.0).tolist()
    [[-1.0, 1.0]]
    """
    x = floating("layer_norm", x)
    mean, var = moments(x, axes, keepdims=True)
    return _normalise("layer_norm", x, mean, var, scale, bias, epsilon, _axes(axes))


def group_norm(
    x: ArrayLike,
    groups: int,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-5,
) -> Array:
    """Normalises every example over all pixels of each of `groups` equal slices of its channels.

    Wu and He, Group Normalization, 2018 (arXiv 1803.08494); `torch.nn.GroupNorm`.

    x: [batch, *spatial, channels]; scale, bias: [channels]. Raises ValueError where the channels
    do not divide into the groups.
    """
    x = floating("group_norm", x)
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(
            f"group_norm: the {x.shape[-1]} channels of x {describe(x)} do not divide into "
            f"groups={groups}: take a divisor of the channels"
        )
    split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    mean, var = moments(split, (*range(1, x.ndim - 1), x.ndim), keepdims=True)
    y = _normalise("group_norm", split.astype(wide_dtype(x)), mean, var, None, None, epsilon)
    return _affine("group_norm", y.reshape(x.shape), scale, bias, (-1,)).astype(x.dtype)


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-5,
) -> Array:
    """Normalises every channel of every example over its pixels.

    Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016 (arXiv 1607.08022).

    x: [batch, *spatial, channels]; scale, bias: [channels].
    """
    x = floating("instance_norm", x)
    axes = tuple(range(1, 1 + len(spatial("instance_norm", x))))
    mean, var = moments(x, axes, keepdims=True)
    return _normalise("instance_norm", x, mean, var, scale, bias, epsilon)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
) -> Array:
    """Divides by the root of the mean square over `axes`; no mean is subtracted.

    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv 1910.07467);
    `torch.nn.RMSNorm`, and ONNX's RMSNormalization with its epsilon.

    scale: of the shape of `axes`.

    >>> rms_norm(jnp.array([[2.0, -2.0]]), epsilon=0.0).tolist()
    [[1.0, -1.0]]
    """
    x = floating("rms_norm", x)
    y = x.astype(wide_dtype(x))
    y = y * lax.rsqrt(jnp.square(y).mean(_axes(axes), keepdims=True) + epsilon)
    return _affine("rms_norm", y, scale, None, _axes(axes)).astype(x.dtype)


def local_response_norm(
    x: ArrayLike, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
    """Divides every number by the energy of the `size` channels around it.

    Returns `x / (k + alpha / size * sum(x^2 over the channels around))^beta`. As in PyTorch and
    ONNX alpha is divided by the size; in AlexNet (Krizhevsky, 2012: k=2, alpha=1e-4) and in
    TensorFlow it is not, so give `size * alpha` for those. An even size sees one channel more
    before than after, as in PyTorch; ONNX has it the other way round.
    """
    if size < 1:
        raise ValueError(f"local_response_norm: size must be at least 1, got {size}")
    x = floating("local_response_norm", x)
    y = x.astype(wide_dtype(x))
    ones = (1,) * (x.ndim - 1)
    energy = lax.reduce_window(
        jnp.square(y),
        np.asarray(0, y.dtype),
        lax.add,
        window_dimensions=(*ones, size),
        window_strides=(*ones, 1),
        padding=(*((0, 0),) * (x.ndim - 1), (size // 2, (size - 1) // 2)),
    )
    return (y / (k + alpha / size * energy) ** beta).astype(x.dtype)


def standardize_kernel(kernel: ArrayLike, epsilon: float = 1e-10) -> Array:
    """Gives the weights of every output feature mean 0 and variance 1 (weight standardisation).

    Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization,
    2019 (arXiv 1903.10520), with the biased variance and the epsilon of Big Transfer
    (Kolesnikov et al., 2019).

    kernel: [..., features]; of convolutions and of dense maps alike.

    Returns `(kernel - mean) / sqrt(var + epsilon)`.
    """
    kernel = floating("standardize_kernel", kernel)
    mean, var = moments(kernel, range(kernel.ndim - 1), keepdims=True)
    return _normalise("standardize_kernel", kernel, mean, var, None, None, epsilon)


def _normalise(
    op: str,
    x: Array,
    mean: Array,
    var: Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    epsilon: float,
    axes: Sequence[int] = (-1,),
) -> Array:
    """The formula that all share, for moments that broadcast against `x`."""
    dtype = wide_dtype(x)
    y = (x.astype(dtype) - mean.astype(dtype)) * lax.rsqrt(var.astype(dtype) + epsilon)
    return _affine(op, y, scale, bias, axes).astype(x.dtype)


def _affine(
    op: str, y: Array, scale: ArrayLike | None, bias: ArrayLike | None, axes: Sequence[int]
) -> Array:
    for name, values in (("scale", scale), ("bias", bias)):
        if values is None:
            continue
        if tuple(axes) == (-1,):
            broadcast = spread_along(op, name, values, y)
        else:
            broadcast = along(op, name, values, y, axes).astype(y.dtype)
        y = y * broadcast if name == "scale" else y + broadcast
    return y


def _axes(axes: int | Sequence[int]) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)
