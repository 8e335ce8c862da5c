"""Layers: the operations of `convjax.ops` with parameters of their own.

Images are `[batch, *spatial, channels]`, with one, two or three spatial axes, read from the input.
Parameters are float32; the computation follows the dtype of the input. What has no parameters is a
plain function of an array: `relu`, `flatten`, `max_pool(2)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax import ops
from convjax.combine import serial, shaped
from convjax.initializers import Initializer, he_normal, lecun_normal, ones, zeros
from convjax.layer import Context, Layer, Net, Params, State, compose, expect, fold, parametric
from convjax.ops.arguments import each_dimension

Size = int | Sequence[int]  # one number for every spatial axis, or one for each
Padding = str | int | Sequence[Any]  # see convjax.ops.padding

# -- Convolutions and dense layers -----------------------------------------------------------------


def conv(
    width: int,
    window: Size,
    *,
    stride: Size = 1,
    padding: Padding = "SAME",
    dilation: Size = 1,
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
    window: Size,
    *,
    multiplier: int = 1,
    stride: Size = 1,
    padding: Padding = "SAME",
    dilation: Size = 1,
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


def separable_conv(width: int, window: Size, *, multiplier: int = 1, **options: Any) -> Layer:
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
    window: Size,
    *,
    stride: Size = 1,
    padding: Padding = "SAME",
    dilation: Size = 1,
    groups: int = 1,
    output_padding: Size = 0,
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


# -- Normalisation: all of one kind, so that swapping one for another keeps the paths --------------


def batch_norm(
    *,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
) -> Layer:
    """Normalises each channel by its mean and variance over the batch (Ioffe and Szegedy 2015).

    When training, by those of the batch, and `running = momentum * running + (1 - momentum) *
    batch` (Flax's and TensorFlow's convention: PyTorch's momentum is one minus this), the running
    variance from the unbiased one as in PyTorch. Otherwise by the running ones. Under a mapped
    `ctx.axis` the batch is that of all devices.

    Parameters: scale and bias; state: mean and var, float32; all `[channels]`.
    """

    makers = _affine(scale, bias, scale_init, bias_init)

    def init(key: Array, x: Any) -> tuple[Params, State]:
        params = {name: make(fold(key, name), x) for name, make in makers.items()}
        channels = x.shape[-1:]
        return params, {"mean": zeros(key, channels), "var": ones(key, channels)}

    def apply(params: Params, state: State, x: Array, ctx: Context = Context()):
        expect("batch_norm has the parameters", makers, params)
        expect("batch_norm has the state", ("mean", "var"), state)
        affine = params.get("scale"), params.get("bias")
        if not ctx.train:
            return ops.batch_norm(x, state["mean"], state["var"], *affine, epsilon=epsilon), state
        mean, var = ops.moments(x, tuple(range(x.ndim - 1)), axis_name=ctx.axis)
        devices = 1 if ctx.axis is None else lax.axis_size(ctx.axis)
        count = devices * x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))

        def running(old: Array, new: Array) -> Array:
            return momentum * old + (1 - momentum) * lax.stop_gradient(new)

        state = {"mean": running(state["mean"], mean), "var": running(state["var"], unbiased)}
        return ops.batch_norm(x, mean, var, *affine, epsilon=epsilon), state

    return Layer(init, apply, "norm")


def frozen_norm(norm: Layer) -> Layer:
    """A batch norm that keeps to its running statistics when training too, and never changes them.

    For fine-tuning on batches too small to take statistics of, as torchvision's and Detectron's
    `FrozenBatchNorm2d`. Those fix scale and bias as well: here a rule does, `*/norm*: freeze`, and
    without one they learn. Parameters and state are those of `norm`.

    >>> frozen_norm(batch_norm(epsilon=1e-3, scale=False))
    norm

    Raises:
        ValueError: when initialised, for a layer that keeps no statistics.
    """

    def apply(params: Params, state: State, x: Array, ctx: Context = Context()):
        return norm.apply(params, state, x, replace(ctx, train=False))

    return Layer(_with_statistics("frozen_norm", norm), apply, norm.kind)


def ghost_norm(norm: Layer, size: int) -> Layer:
    """A batch norm that, when training, normalises each `size` images by their own statistics.

    The groups are of consecutive images of the whole batch, on however many devices; a batch of
    fewer than `size` images is one group. Hoffer et al., Train longer, generalize better, 2017
    (arXiv 1705.08741); but running statistics take one step towards the mean over all groups, where
    the paper takes a step for each. Parameters and state are those of `norm`.

    Where each device is to take statistics of its own part of a batch, as PyTorch's BatchNorm does
    under data parallelism, that part is the size.

    >>> ghost_norm(batch_norm(momentum=0.99), 32)
    norm

    Raises:
        ValueError: for a size below 1; when initialised, for a layer that keeps no statistics; when
            training, for a batch that does not divide into the groups, or whose part on a device
            of `ctx.axis` does not.
    """
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(f"ghost_norm: size must be a whole number of 1 or more, got {size!r}")

    def apply(params: Params, state: State, x: Array, ctx: Context = Context()):
        if not ctx.train:
            return norm.apply(params, state, x, ctx)
        images = x.shape[0]
        if ctx.axis is None and images < size:
            return norm.apply(params, state, x, ctx)
        if images % size:
            raise ValueError(
                f"ghost_norm takes groups of {size} images, and a batch of {images}"
                f"{'' if ctx.axis is None else ' on a device'} does not divide into them: "
                f"choose a multiple of {size}, or a divisor of {images} for the size"
            )

        def each(group: Array) -> tuple[Array, State]:
            return norm.apply(params, state, group, replace(ctx, axis=None))

        y, states = jax.vmap(each)(x.reshape(images // size, size, *x.shape[1:]))
        state = jax.tree.map(lambda leaf: leaf.mean(0), states)
        return y.reshape(x.shape), state if ctx.axis is None else lax.pmean(state, ctx.axis)

    return Layer(_with_statistics("ghost_norm", norm), apply, norm.kind)


def layer_norm(*, epsilon: float = 1e-6, scale: bool = True, bias: bool = True) -> Layer:
    """Normalises the channels at each place (Ba et al. 2016), as ConvNeXt does."""
    return _norm(ops.layer_norm, scale=scale, bias=bias, epsilon=epsilon)


def group_norm(
    groups: int = 32, *, epsilon: float = 1e-5, scale: bool = True, bias: bool = True
) -> Layer:
    """Normalises each group of channels over all places of an image (Wu and He 2018)."""
    return _norm(partial(ops.group_norm, groups=groups), scale=scale, bias=bias, epsilon=epsilon)


def instance_norm(*, epsilon: float = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Normalises each channel over all places of an image (Ulyanov et al. 2016)."""
    return _norm(ops.instance_norm, scale=scale, bias=bias, epsilon=epsilon)


def rms_norm(*, epsilon: float = 1e-6, scale: bool = True) -> Layer:
    """Divides the channels at each place by their root mean square (Zhang and Sennrich 2019)."""
    return _norm(ops.rms_norm, scale=scale, bias=False, epsilon=epsilon)


def local_response_norm(
    size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Callable[[Array], Array]:
    """Divides each channel by the activity of its `size` neighbours (Krizhevsky et al. 2012).

    alpha is divided by the size, as in PyTorch and ONNX.
    """
    return partial(ops.local_response_norm, size=size, alpha=alpha, beta=beta, k=k)


# -- Noise -----------------------------------------------------------------------------------------


def dropout(rate: float | Array) -> Layer:
    """When training, drops each number with probability `rate` and scales up the rest.

    The rate may be a traced array. Raises a ValueError when training without `Context(key=...)`.
    Srivastava et al. 2014.
    """
    return _noise(ops.dropout, rate, "dropout")


def spatial_dropout(rate: float | Array) -> Layer:
    """Dropout of whole channels (Tompson et al. 2015)."""
    return _noise(ops.spatial_dropout, rate, "spatial_dropout")


def drop_path(rate: float | Array) -> Layer:
    """Stochastic depth: drops all of an example's input, as at the end of a residual branch.

    Huang et al. 2016.
    """
    return _noise(ops.drop_path, rate, "drop_path")


# -- Pooling, shapes, activation -------------------------------------------------------------------


def max_pool(
    window: Size, *, stride: Size | None = None, padding: Padding = "VALID"
) -> Callable[[Array], Array]:
    """Keeps the largest of each window; the stride is the window unless given."""
    return partial(ops.max_pool, window=window, stride=stride, padding=padding)


def avg_pool(
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = "VALID",
    count_padding: bool = False,
) -> Callable[[Array], Array]:
    """Keeps the mean of each window; the stride is the window unless given."""
    return partial(
        ops.avg_pool, window=window, stride=stride, padding=padding, count_padding=count_padding
    )


def adaptive_avg_pool(size: Size) -> Callable[[Array], Array]:
    """Means over as many windows as make an output of that size (PyTorch's bins)."""
    return partial(ops.adaptive_avg_pool, size=size)


def adaptive_max_pool(size: Size) -> Callable[[Array], Array]:
    """Maxima over as many windows as make an output of that size (PyTorch's bins)."""
    return partial(ops.adaptive_max_pool, size=size)


def blur_pool(*, stride: int = 2, size: int = 3) -> Callable[[Array], Array]:
    """Blurs, then keeps every `stride`-th place: downsampling without aliasing (Zhang 2019)."""
    return partial(ops.blur_pool, stride=stride, size=size)


def resize(size: Size, *, method: str = "linear") -> Callable[[Array], Array]:
    """Resizes to a size in pixels, with half-pixel centres: method linear, nearest or cubic."""
    return partial(ops.resize, size=size, method=method)


def pixel_shuffle(factor: int) -> Callable[[Array], Array]:
    """Turns channels into pixels: `factor` times as high and wide (Shi et al. 2016)."""
    return partial(ops.pixel_shuffle, factor=factor)


def pixel_unshuffle(factor: int) -> Callable[[Array], Array]:
    """Turns pixels into channels, the inverse of `pixel_shuffle`."""
    return partial(ops.pixel_unshuffle, factor=factor)


def prelu(*, shared: bool = False, slope: float = 0.25) -> Layer:
    """A ReLU whose slope below zero is learned, per channel or shared (He et al. 2015)."""

    def maker(key: Array, x: Any) -> Array:
        return jnp.full(() if shared else x.shape[-1:], slope, jnp.float32)

    def apply(params: Params, x: Array) -> Array:
        return ops.prelu(x, **params)

    return parametric("prelu", apply, slope=maker)


def squeeze_excite(
    ratio: float = 1 / 16,
    *,
    activation: Callable[[Array], Array] = ops.relu,
    gate: Callable[[Array], Array] = ops.sigmoid,
) -> Layer:
    """Weighs the channels of an image by what it shows as a whole (Hu et al. 2018).

    ratio: width of the hidden layer as a share of the channels, at least 1 in all.
    """

    def wire(net: Net, x: Array) -> Array:
        weights = net.gate(net.expand(net.activation(net.squeeze(net.mean(x)))))
        return x * weights.reshape(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])

    def make(x: Any) -> Layer:
        channels = x.shape[-1]
        return compose(
            wire,
            mean=ops.global_avg_pool,
            squeeze=dense(max(1, round(channels * ratio)), kernel_init=he_normal),
            activation=activation,
            expand=dense(channels),
            gate=gate,
        )

    return shaped(make).named("squeeze_excite")


# -- What they share -------------------------------------------------------------------------------


def _norm(op: Callable[..., Array], scale: bool, bias: bool, **options: Any) -> Layer:
    def apply(params: Params, x: Array) -> Array:
        return op(x, **params, **options)

    return parametric("norm", apply, **_affine(scale, bias, ones, zeros))


def _with_statistics(wrapper: str, norm: Layer) -> Callable[[Array, Any], tuple[Params, State]]:
    """The init of a norm, which is refused if there is nothing that the norm remembers."""

    def init(key: Array, x: Any) -> tuple[Params, State]:
        params, state = norm.init(key, x)
        if not state:
            raise ValueError(
                f"{wrapper} takes a norm with running statistics, such as batch_norm(), but this "
                f"{norm.kind} keeps none: leave it as it is"
            )
        return params, state

    return init


def _noise(op: Callable[..., Array], rate: float | Array, kind: str) -> Layer:
    """Noise drawn for each example by its number in the whole batch, on however many devices."""

    def apply(params: Params, state: State, x: Array, ctx: Context = Context()):
        if not ctx.train or (isinstance(rate, int | float) and rate == 0):
            return x, state
        key = ctx.rng(kind)
        numbers = jnp.arange(x.shape[0])
        if ctx.axis is not None:
            numbers = numbers + lax.axis_index(ctx.axis) * x.shape[0]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return jax.vmap(lambda key, each: op(key, each[None], rate)[0])(keys, x), state

    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise ValueError(f"{kind} takes a rate between 0 and 1, not {rate}")
    return Layer(lambda key, spec: ({}, {}), apply, kind)


def _affine(scale: bool, bias: bool, scale_init: Initializer, bias_init: Initializer):
    makers = {}
    if scale:
        makers["scale"] = lambda key, x: scale_init(key, x.shape[-1:])
    if bias:
        makers["bias"] = lambda key, x: bias_init(key, x.shape[-1:])
    return makers


def _bias(wanted: bool, init: Initializer, width: int | Callable[[Any], int]):
    if not wanted:
        return {}
    return {"bias": lambda key, x: init(key, (width(x) if callable(width) else width,))}


def _window(window: Size, x: Any) -> tuple[int, ...]:
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
