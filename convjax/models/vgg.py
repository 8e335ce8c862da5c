"""VGG (Simonyan and Zisserman 2015): 3x3 convolutions, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jax import Array

from convjax.combine import serial
from convjax.layer import Layer
from convjax.layers import adaptive_avg_pool, batch_norm, conv, dense, dropout, max_pool
from convjax.ops import flatten, relu


def vgg(
    classes: int = 1000,
    *,
    depths: Sequence[int],
    normalized: bool = False,
    width: int = 64,
    hidden: int = 4096,
    dropout_rate: float | Array = 0.5,
) -> Layer:
    """Stages of `depths` convolutions, then three dense layers, as torchvision builds it.

    Each stage halves the image: five of them want one of 32 pixels or more.

    normalized: batch normalisation after every convolution.
    width: features of the first stage; they double with each stage up to eight times as many.
    hidden: width of the two hidden dense layers.
    """

    def features(width: int) -> list[Any]:
        norm = [batch_norm()] if normalized else []
        return [conv(width, 3, padding=1), *norm, relu]

    def stage(number: int, depth: int) -> Layer:
        wide = width * min(2**number, 8)
        return serial(*(part for _ in range(depth) for part in features(wide)), max_pool(2))

    return serial(
        **{f"stage{n + 1}": stage(n, depth) for n, depth in enumerate(depths)},
        pool=adaptive_avg_pool(7),
        flatten=flatten,
        head=serial(
            *(dense(hidden), relu, dropout(dropout_rate)),
            *(dense(hidden), relu, dropout(dropout_rate)),
            dense(classes),
        ),
    )


vgg11 = partial(vgg, depths=(1, 1, 2, 2, 2))
vgg13 = partial(vgg, depths=(2, 2, 2, 2, 2))
vgg16 = partial(vgg, depths=(2, 2, 3, 3, 3))
vgg19 = partial(vgg, depths=(2, 2, 4, 4, 4))
vgg11_bn = partial(vgg11, normalized=True)
vgg13_bn = partial(vgg13, normalized=True)
vgg16_bn = partial(vgg16, normalized=True)
vgg19_bn = partial(vgg19, normalized=True)
