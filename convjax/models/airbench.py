"""The network of airbench (Jordan 2024), whose first layer comes from training images.

net = airbench94()
params, state = net.init(key, images)
params = whitened(params, images)                   # once, before the first step
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from convjax import ops
from convjax.combine import serial
from convjax.initializers import Initializer, variance_scaling, zeros
from convjax.layer import Layer, Params, parametric
from convjax.layers import batch_norm, conv, dense, max_pool
from convjax.ops import flatten, gelu
from convjax.ops.arguments import describe, wide_dtype

# What PyTorch begins convolutions and dense layers with: up to 1 / sqrt(fan_in) either way.
torch_uniform = variance_scaling(1 / 3, "fan_in", "uniform")


def airbench94(
    classes: int = 10,
    *,
    widths: Sequence[int] = (64, 256, 256),
    scaling: float | Array = 1 / 9,
    activation: Callable[[Array], Array] = gelu,
) -> Layer:
    """airbench94 for images of 25 pixels or more: 1,971,640 parameters for CIFAR-10.

    As `airbench94.py` of its author has it: a whitening layer, three blocks of two 3x3
    convolutions, each with half the height and width of the one before, and a dense layer without
    bias. Batch norms have no scale. The whitening kernel is to be set by `whitened`, which sees
    images, and to be frozen, by the rule "whitening/kernel: freeze"; until then it is random.

    widths: features of each block.
    scaling: what the logits are multiplied by.

    Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024 (arXiv 2404.00498).
    """

    def norm() -> Layer:
        return batch_norm(momentum=0.6, epsilon=1e-12, scale=False)

    def block(width: int) -> Layer:
        features = conv(width, 3, bias=False, kernel_init=identity_first(torch_uniform))
        return serial(
            *(features, max_pool(2), norm(), activation),
            *(features, norm(), activation),
        ).named("block")

    def scaled(x: Array) -> Array:
        return x * jnp.asarray(scaling, x.dtype)

    return serial(
        whitening=whitening_conv(2),
        activation=activation,
        **{f"block{number}": block(width) for number, width in enumerate(widths, 1)},
        pool=max_pool(3),
        flatten=flatten,
        head=dense(classes, bias=False, kernel_init=torch_uniform),
        scaled=scaled,
    )


def whitening_conv(window: int) -> Layer:
    """A convolution with two features for each number of a patch, without padding.

    Parameters: kernel `[window, window, channels, 2 * window * window * channels]`, random until
    `whitened` sets it, and bias.
    """

    def width(x: Any) -> int:
        return 2 * window * window * x.shape[-1]

    return parametric(
        "conv",
        lambda params, x: ops.conv(x, **params, padding="VALID"),
        kernel=lambda key, x: torch_uniform(key, (window, window, x.shape[-1], width(x))),
        bias=lambda key, x: zeros(key, (width(x),)),
    )


def whitened(params: Params, images: ArrayLike) -> Params:
    """The parameters of `airbench94` with the whitening kernel of these images.

    images: `[N, height, width, channels]` as the network sees them, normalised; the author takes
        the first 5,000 of the train split.

    Raises:
        ValueError: if there is no whitening kernel, or the images have other channels than it.
    """
    old, x = params.get("whitening", {}), jnp.asarray(images)
    if "kernel" not in old:
        raise ValueError(
            f"whitened sets whitening/kernel, but the parameters are {', '.join(params) or 'none'}:"
            " give those of airbench94"
        )
    kernel = whitening(x, old["kernel"].shape[0])
    if kernel.shape != old["kernel"].shape:
        raise ValueError(
            f"whitened makes a kernel {describe(kernel)} of images {describe(x)}, but "
            f"whitening/kernel is {describe(old['kernel'])}: give images of as many channels"
        )
    own: Mapping[str, Any] = {**old, "kernel": kernel.astype(old["kernel"].dtype)}
    return {**params, "whitening": own}


# One program: run one by one, its operations take ten.
@functools.partial(jax.jit, static_argnames="window")
def whitening(images: ArrayLike, window: int = 2, epsilon: float = 5e-4) -> Array:
    """The kernel that takes patches of images apart into uncorrelated numbers of variance 1.

    It holds the eigenvectors of the second moments of all patches of `window` by `window` pixels,
    the largest eigenvalue first, each divided by the root of its eigenvalue plus `epsilon`; then
    the same times -1, so that no sign is lost to an activation (tysam-code, hlb-CIFAR10, 2023).

    images: floating `[N, height, width, channels]`, of mean 0.

    Returns `[window, window, channels, 2 * window * window * channels]`, float32 or wider.

    Raises:
        ValueError: for images that are smaller than the window, none, or no floating numbers.
    """
    x = jnp.asarray(images)
    if x.ndim != 4 or min(x.shape[1:3]) < window or not len(x):
        raise ValueError(
            f"whitening needs images [N, height, width, channels] of at least {window}x{window} "
            f"pixels, got {describe(x)}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"whitening needs images as the network sees them, got {describe(x)}: "
            "normalise them first"
        )
    x = x.astype(wide_dtype(x))
    height, width = (size - window + 1 for size in x.shape[1:3])
    places = [(row, column) for row in range(window) for column in range(window)]
    patches = jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in places], axis=-1)
    patches = patches.reshape(-1, patches.shape[-1])
    moments = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    variances, vectors = jnp.linalg.eigh(moments)
    features = (vectors / jnp.sqrt(variances + epsilon)[None, :])[:, ::-1]
    both = jnp.concatenate((features, -features), axis=1)
    return both.reshape(window, window, x.shape[-1], -1)


def identity_first(rest: Initializer) -> Initializer:
    """A kernel whose first features are its inputs, so that a fresh layer hands them on.

    As many as there are inputs, or outputs if those are fewer: as `torch.nn.init.dirac_`. All
    other features are those of `rest`.
    """

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        *window, inputs, outputs = shape
        same = min(inputs, outputs)
        centre = tuple(size // 2 for size in window)
        unit = np.zeros((*window, inputs, same), dtype)
        unit[(*centre, np.arange(same), np.arange(same))] = 1
        kernel = rest(key, shape, dtype)
        if isinstance(kernel, Tracer):
            return jnp.concatenate((unit, kernel[..., same:]), axis=-1)
        # NumPy compiles nothing.
        return jax.device_put(np.concatenate((unit, np.asarray(kernel)[..., same:]), axis=-1))

    return init
