"""Convolutions and dense layers: what compares an image, or a part of it, with learned features."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

from jax import Array

from convjax import ops
from convjax.combine import serial
from convjax.initializers import Initializer, he_normal, lecun_normal, zeros
from convjax.layer import Context, Layer, Params, State, parametric
from convjax.ops.arguments import Sizes, each_dimension
from convjax.ops.padding import Padding


def conv(
    width: int,
    window: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    kernel_init: Initializer = he_normal,
    bias_init: Initializer = zeros,
) -> Layer:
    """Compares every patch with `width` learned features: a convolution.

    window: size of the features, as in `conv(64, 3)` or `conv(64, (1, 7))`.
    Parameters: kernel `[*window, channels / groups, width]` and bias `[width]`.

    >>> import jax, jax.numpy as jnp
    >>> params, _ = conv(8, 3).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> params["kernel"].shape, params["bias"].shape
    ((3, 3, 1, 8), (8,))

    Raises:
        ValueError: if channels or width do not divide by groups, for an unknown padding, or a
            window that does not fit the number of spatial axes.
    """
    _features("conv", width)

    def kernel(key: Array, x: Any) -> Array:
        _divides(x.shape[-1], groups)
        return kernel_init(key, (*_window(window, x), x.shape[-1] // groups, width))

    def apply(params: Params, x: Array) -> Array:
        return ops.conv(
            x,
            **params,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )

    return parametric("conv", apply, kernel=kernel, **_bias(bias, bias_init, width))


def depthwise_conv(
    window: Sizes,
    *,
    multiplier: int = 1,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    bias: bool = True,
    kernel_init: Initializer = he_normal,
    bias_init: Initializer = zeros,
) -> Layer:
    """A convolution of each channel with features of its own, `multiplier` of them.

    Parameters: kernel `[*window, 1, channels * multiplier]` and bias.
    """

    def kernel(key: Array, x: Any) -> Array:
        return kernel_init(key, (*_window(window, x), 1, x.shape[-1] * multiplier))

    def apply(params: Params, x: Array) -> Array:
        return ops.depthwise_conv(
            x,
            **params,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )

    biases = _bias(bias, bias_init, lambda x: x.shape[-1] * multiplier)
    return parametric("conv", apply, kernel=kernel, **biases)


def separable_conv(width: int, window: Sizes, *, multiplier: int = 1, **options: Any) -> Layer:
    """A depthwise convolution, then a pointwise one that mixes the channels (Chollet 2017).

    options: those of `depthwise_conv`; a bias stands in the pointwise part only.
    """
    of_bias = {name: options.pop(name) for name in ("bias", "bias_init") if name in options}
    return serial(
        depthwise=depthwise_conv(window, multiplier=multiplier, bias=False, **options),
        pointwise=conv(width, 1, **of_bias),
    ).named("separable_conv")


def conv_transpose(
    width: int,
    window: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: int = 1,
    output_padding: Sizes = 0,
    bias: bool = True,
    kernel_init: Initializer = he_normal,
    bias_init: Initializer = zeros,
) -> Layer:
    """The transpose of a convolution, which enlarges by the stride (Zeiler et al. 2010).

    Parameters: kernel `[*window, channels / groups, width]` and bias. With "SAME" the output is the
    input times the stride; a number pads as PyTorch's `ConvTranspose2d` does.
    """
    _features("conv_transpose", width)

    def kernel(key: Array, x: Any) -> Array:
        _divides(x.shape[-1], groups)
        return kernel_init(key, (*_window(window, x), x.shape[-1] // groups, width))

    def apply(params: Params, x: Array) -> Array:
        return ops.conv_transpose(
            x,
            **params,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            output_padding=output_padding,
        )

    return parametric("conv_transpose", apply, kernel=kernel, **_bias(bias, bias_init, width))


def dense(
    width: int,
    *,
    bias: bool = True,
    kernel_init: Initializer = lecun_normal,
    bias_init: Initializer = zeros,
) -> Layer:
    """Weighs all of the last axis, `width` times: a fully connected layer.

    Parameters: kernel `[channels, width]` and bias `[width]`.
    """
    _features("dense", width)

    def kernel(key: Array, x: Any) -> Array:
        return kernel_init(key, (x.shape[-1], width))

    def apply(params: Params, x: Array) -> Array:
        return ops.dense(x, **params)

    return parametric("dense", apply, kernel=kernel, **_bias(bias, bias_init, width))


def weight_standardized(layer: Layer, epsilon: float = 1e-10) -> Layer:
    """A layer whose kernel has mean 0 and variance 1 for every output (Qiao et al. 2019).

    >>> from convjax import group_norm
    >>> net = serial(weight_standardized(conv(64, 3)), group_norm(32))

    Raises:
        ValueError: for a layer without a kernel of its own.
    """
    if layer.kind not in ("conv", "conv_transpose", "dense"):
        raise ValueError(f"weight_standardized takes one convolution or dense layer, not {layer!r}")
    inner = layer.apply

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
        if "kernel" not in params:
            raise ValueError(f"weight_standardized takes a layer with a kernel, not {layer!r}")
        kernel = ops.standardize_kernel(params["kernel"], epsilon=epsilon)
        return inner({**params, "kernel": kernel}, state, x, ctx)

    return layer.around(apply)


# -- What they share -------------------------------------------------------------------------------


def _bias(wanted: bool, init: Initializer, width: int | Callable[[Any], int]):
    if not wanted:
        return {}
    return {"bias": lambda key, x: init(key, (width(x) if callable(width) else width,))}


def _window(window: Sizes, x: Any) -> tuple[int, ...]:
    spatial = len(x.shape) - 2
    if spatial < 1:
        raise ValueError(
            f"an image is [batch, *spatial, channels], not of shape {tuple(x.shape)}: "
            "is a `flatten` too early, or the channel axis missing?"
        )
    return each_dimension("conv", "window", window, spatial)


def _features(op: str, width: Any) -> None:
    if not isinstance(width, Integral) or width < 1:
        raise ValueError(f"{op}: width must be a whole number of 1 or more, got {width!r}")


def _divides(channels: int, groups: int) -> None:
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
