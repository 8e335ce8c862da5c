"""Wide ResNet (Zagoruyko and Komodakis 2016): wide residual blocks in place of many thin ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jax import Array

from convjax.combine import identity, serial
from convjax.layer import Layer, Net, compose
from convjax.layers import batch_norm, conv, dense, dropout
from convjax.ops import global_avg_pool, relu

Norm = Callable[[], Layer]


def pre_activated(
    width: int,
    stride: int,
    *,
    reshaped: bool,
    norm: Norm = batch_norm,
    dropout_rate: float | Array = 0.0,
) -> Layer:
    """Two 3x3 convolutions, each after a norm and a ReLU (He et al. 2016).

    reshaped: whether the output differs in shape from the input. Then the shortcut is a 1x1
        convolution of what the first convolution sees too; otherwise it is the input itself.
    """

    def block(net: Net, x: Array) -> Array:
        active = net.relu1(net.norm1(x))
        y = net.dropout1(net.relu2(net.norm2(net.conv1(active))))
        return net.conv2(y) + net.shortcut(active if reshaped else x)

    return compose(
        block,
        norm1=norm(),
        relu1=relu,
        conv1=conv(width, 3, stride=stride, padding=1, bias=False),
        norm2=norm(),
        relu2=relu,
        dropout1=dropout(dropout_rate),
        conv2=conv(width, 3, padding=1, bias=False),
        shortcut=conv(width, 1, stride=stride, bias=False) if reshaped else identity,
    )


def wide_resnet(
    classes: int = 10,
    *,
    depths: Sequence[int],
    widening: int,
    dropout_rate: float | Array = 0.0,
    norm: Norm = batch_norm,
) -> Layer:
    """A pre-activated residual network for images of about 32 pixels.

    depths: blocks of each stage; each stage but the first halves the image and doubles the width.
    widening: how many times wider than 16, 32 and 64 features the stages are: k of the paper.
    dropout_rate: dropout between the two convolutions of a block; 0.3 in the paper, where it has
        any on CIFAR.
    """

    def stage(number: int, depth: int) -> Layer:
        width, stride = 16 * widening * 2**number, 1 if number == 0 else 2
        reshaped = stride > 1 or widening > 1
        block = partial(pre_activated, width, norm=norm, dropout_rate=dropout_rate)
        return serial(block(stride, reshaped=reshaped), *[block(1, reshaped=False)] * (depth - 1))

    return serial(
        stem=conv(16, 3, padding=1, bias=False),
        **{f"stage{n + 1}": stage(n, depth) for n, depth in enumerate(depths)},
        norm=norm(),
        relu=relu,
        pool=global_avg_pool,
        head=dense(classes),
    )


# Of 6n + 4 layers, n blocks a stage.
wrn_16_4 = partial(wide_resnet, depths=(2, 2, 2), widening=4)
wrn_28_10 = partial(wide_resnet, depths=(4, 4, 4), widening=10)
wrn_40_4 = partial(wide_resnet, depths=(6, 6, 6), widening=4)
