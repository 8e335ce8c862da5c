"""ConvNeXt (Liu, Mao, Wu and others 2022): a ResNet brought to the ways of a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jax import Array

from convjax.combine import residual, serial
from convjax.initializers import constant, normal
from convjax.layer import Layer, parametric
from convjax.layers import conv, dense, depthwise_conv, drop_path, layer_norm
from convjax.ops import gelu, global_avg_pool

Norm = Callable[[], Layer]

# PyTorch's `trunc_normal_(std=0.02)` cuts at -2 and 2, a hundred deviations away: it cuts nothing.
_kernels = normal(0.02)


def layer_scale(first: float | Array = 1e-6) -> Layer:
    """Scales each channel by a learned number that begins small (Touvron et al. 2021)."""
    return parametric(
        "layer_scale",
        lambda params, x: x * params["scale"].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)),
        scale=lambda key, x: constant(first)(key, x.shape[-1:]),
    )


def block(
    width: int,
    *,
    drop_rate: float | Array = 0.0,
    first_scale: float | Array = 1e-6,
    norm: Norm = layer_norm,
) -> Layer:
    """A depthwise 7x7 convolution, then two dense layers at each place, four times as wide inside.

    drop_rate: probability that an example skips the block when training.
    """
    return residual(
        *(depthwise_conv(7, padding=3, kernel_init=_kernels), norm()),
        *(dense(4 * width, kernel_init=_kernels), gelu, dense(width, kernel_init=_kernels)),
        layer_scale=layer_scale(first_scale),
        drop_path=drop_path(drop_rate),
    ).named("block")


def convnext(
    classes: int = 1000,
    *,
    depths: Sequence[int],
    width: int = 96,
    patch: int = 4,
    drop_path_rate: float | Array = 0.1,
    first_scale: float | Array = 1e-6,
    norm: Norm = layer_norm,
) -> Layer:
    """A ConvNeXt as torchvision builds it; each stage but the first doubles the width.

    depths: blocks of each stage.
    width: features of the stem and the first stage.
    patch: height and width of the stem's patches; 1 or 2 for images of about 32 pixels.
    drop_path_rate: stochastic depth of the last block; it grows from 0 in equal steps, block by
        block.
    first_scale: what each layer scale begins with.
    """
    last = max(1, sum(depths) - 1)

    def stage(number: int, depth: int) -> Layer:
        wide, before = width * 2**number, sum(depths[:number])
        # Of the first block nothing is ever dropped: a Python 0 leaves its draws out.
        rates = [drop_path_rate * n / last if n else 0.0 for n in range(before, before + depth)]
        make = partial(block, wide, first_scale=first_scale, norm=norm)
        blocks = {f"block{n + 1}": make(drop_rate=rate) for n, rate in enumerate(rates)}
        if number == 0:
            return serial(**blocks)
        halve = conv(wide, 2, stride=2, padding="VALID", kernel_init=_kernels)
        return serial(downsample=serial(norm(), halve), **blocks)

    stem = conv(width, patch, stride=patch, padding="VALID", kernel_init=_kernels)
    return serial(
        stem=serial(stem, norm()),
        **{f"stage{n + 1}": stage(n, depth) for n, depth in enumerate(depths)},
        pool=global_avg_pool,
        norm=norm(),
        head=dense(classes, kernel_init=_kernels),
    )


convnext_tiny = partial(convnext, depths=(3, 3, 9, 3))
convnext_small = partial(convnext, depths=(3, 3, 27, 3), drop_path_rate=0.4)
convnext_base = partial(convnext, depths=(3, 3, 27, 3), width=128, drop_path_rate=0.5)
