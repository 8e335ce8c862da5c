"""Normalisation: all of one kind, so that swapping one for another keeps the paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import jax
from jax import Array, lax

from convjax import ops
from convjax.initializers import Initializer, ones, zeros
from convjax.layer import Context, Layer, Params, State, expect, fold, parametric


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


def _affine(scale: bool, bias: bool, scale_init: Initializer, bias_init: Initializer):
    makers = {}
    if scale:
        makers["scale"] = lambda key, x: scale_init(key, x.shape[-1:])
    if bias:
        makers["bias"] = lambda key, x: bias_init(key, x.shape[-1:])
    return makers
