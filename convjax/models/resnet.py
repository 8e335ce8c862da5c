"""ResNet (He, Zhang, Ren and Sun 2015): layers learn what to add to their input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array

from convjax.combine import Part, identity, residual, serial
from convjax.layer import Layer
from convjax.layers import batch_norm, conv, dense, drop_path, max_pool
from convjax.ops import global_avg_pool, relu

Norm = Callable[[], Layer]
Activation = Callable[[Array], Array]


def projection(width: int, stride: int, norm: Norm) -> Layer:
    """A learned shortcut, a 1x1 convolution: option B of the paper."""
    return serial(conv(width, 1, stride=stride, bias=False), norm())


def pad_channels(width: int, stride: int, norm: Norm) -> Callable[[Array], Array]:
    """A shortcut without parameters: option A of the paper. New channels are zero."""

    def shortcut(x: Array) -> Array:
        missing = width - x.shape[-1]
        strided = x[:, *[slice(None, None, stride)] * (x.ndim - 2)]
        return jnp.pad(strided, [(0, 0)] * (x.ndim - 1) + [(missing // 2, -(-missing // 2))])

    return shortcut


def basic(
    width: int,
    stride: int,
    *,
    shortcut: Part,
    norm: Norm = batch_norm,
    activation: Activation = relu,
    drop_rate: float | Array = 0.0,
) -> Layer:
    """Two 3x3 convolutions.

    drop_rate: probability that an example skips them when training (Huang et al. 2016).
    """
    return residual(
        *(conv(width, 3, stride=stride, padding=1, bias=False), norm(), activation),
        *(conv(width, 3, padding=1, bias=False), norm()),
        drop_path=drop_path(drop_rate),
        shortcut=shortcut,
        then=activation,
    ).named("block")


def bottleneck(
    width: int,
    stride: int,
    *,
    shortcut: Part,
    norm: Norm = batch_norm,
    activation: Activation = relu,
    drop_rate: float | Array = 0.0,
) -> Layer:
    """A 3x3 convolution between two 1x1 ones, to four times the width.

    The stride is in the 3x3 one, as in torchvision ("v1.5").

    drop_rate: probability that an example skips them when training (Huang et al. 2016).
    """
    return residual(
        *(conv(width, 1, bias=False), norm(), activation),
        *(conv(width, 3, stride=stride, padding=1, bias=False), norm(), activation),
        *(conv(4 * width, 1, bias=False), norm()),
        drop_path=drop_path(drop_rate),
        shortcut=shortcut,
        then=activation,
    ).named("block")


def imagenet_stem(width: int, norm: Norm, activation: Activation) -> Layer:
    """A 7x7 convolution and a pool: a quarter of the height and width."""
    return serial(
        *(conv(width, 7, stride=2, padding=3, bias=False), norm(), activation),
        max_pool(3, stride=2, padding=1),
    )


def cifar_stem(width: int, norm: Norm, activation: Activation) -> Layer:
    """A 3x3 convolution, for images of about 32 pixels."""
    return serial(conv(width, 3, padding=1, bias=False), norm(), activation)


def resnet(
    classes: int = 1000,
    *,
    depths: Sequence[int],
    block: Callable[..., Layer] = basic,
    expansion: int = 1,
    width: int = 64,
    stem: Callable[[int, Norm, Activation], Layer] = imagenet_stem,
    shortcut: Callable[[int, int, Norm], Part] = projection,
    norm: Norm = batch_norm,
    activation: Activation = relu,
    drop_path_rate: float | Array = 0.0,
) -> Layer:
    """A residual network; each stage but the first halves the image and doubles the width.

    depths: blocks of each stage.
    block: `basic` or `bottleneck`.
    expansion: how many times wider than its `width` the block puts out: 4 for `bottleneck`.
    width: features of the stem and the first stage.
    stem: `imagenet_stem` or `cifar_stem`.
    shortcut: `projection` or `pad_channels`, where a block changes the shape.
    drop_path_rate: stochastic depth of the last block; it grows from 0 in equal steps, block by
        block (Huang et al., Deep networks with stochastic depth, 2016; the steps as in timm).
    """
    last = max(sum(depths) - 1, 1)
    some = isinstance(drop_path_rate, Array) or drop_path_rate > 0

    def stage(number: int, depth: int) -> Layer:
        wide, stride = width * 2**number, 1 if number == 0 else 2
        reshaped = stride > 1 or expansion > 1
        first = shortcut(expansion * wide, stride, norm) if reshaped else identity
        make = partial(block, wide, norm=norm, activation=activation)
        before = sum(depths[:number])
        # Of the first block nothing is ever dropped: a Python 0 leaves its draws out.
        rates = [drop_path_rate * n / last if n else 0.0 for n in range(before, before + depth)]
        # A block of one's own may do without, as long as nothing is to be dropped.
        drops = [{"drop_rate": rate} if some else {} for rate in rates]
        return serial(
            make(stride, shortcut=first, **drops[0]),
            *(make(1, shortcut=identity, **drop) for drop in drops[1:]),
        )

    return serial(
        stem=stem(width, norm, activation),
        **{f"stage{n + 1}": stage(n, depth) for n, depth in enumerate(depths)},
        pool=global_avg_pool,
        head=dense(classes),
    )


resnet18 = partial(resnet, depths=(2, 2, 2, 2))
resnet34 = partial(resnet, depths=(3, 4, 6, 3))
resnet50 = partial(resnet, depths=(3, 4, 6, 3), block=bottleneck, expansion=4)
resnet101 = partial(resnet, depths=(3, 4, 23, 3), block=bottleneck, expansion=4)
resnet152 = partial(resnet, depths=(3, 8, 36, 3), block=bottleneck, expansion=4)

# Section 4.2 of the paper: three stages of 16, 32 and 64 features for CIFAR, option A.
_cifar = partial(resnet, width=16, stem=cifar_stem, shortcut=pad_channels)
resnet20 = partial(_cifar, depths=(3, 3, 3))
resnet32 = partial(_cifar, depths=(5, 5, 5))
resnet44 = partial(_cifar, depths=(7, 7, 7))
resnet56 = partial(_cifar, depths=(9, 9, 9))
resnet110 = partial(_cifar, depths=(18, 18, 18))
