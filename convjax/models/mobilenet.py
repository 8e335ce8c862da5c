"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov and Chen 2018): wide inside, thin between blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jax import Array

from convjax.combine import residual, serial
from convjax.initializers import normal, variance_scaling
from convjax.layer import Layer
from convjax.layers import batch_norm, conv, dense, depthwise_conv, dropout
from convjax.ops import global_avg_pool, relu6

Norm = Callable[[], Layer]

# Table 2 of the paper: expansion, width and number of blocks of each stage.
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))

# As torchvision draws them.
_conv = partial(conv, bias=False, kernel_init=variance_scaling(2.0, "fan_out"))
_depthwise = partial(depthwise_conv, bias=False, kernel_init=variance_scaling(2.0, "fan_out"))


def inverted_residual(
    channels: int, width: int, stride: int, *, expansion: int, norm: Norm = batch_norm
) -> Layer:
    """A depthwise 3x3 convolution of more channels, between two 1x1 ones; the last is linear.

    channels: those of the input; it is added where the output has the same shape.
    expansion: how many times wider than the input the block is inside.
    """
    wide = expansion * channels
    expand = {"expand": serial(_conv(wide, 1), norm(), relu6)} if expansion > 1 else {}
    combine = residual if stride == 1 and channels == width else serial
    return combine(
        **expand,
        depthwise=serial(_depthwise(3, stride=stride, padding=1), norm(), relu6),
        project=serial(_conv(width, 1), norm()),
    ).named("block")


def mobilenet_v2(
    classes: int = 1000,
    *,
    width_multiplier: float = 1.0,
    stages: Sequence[tuple[int, int, int]] = STAGES,
    strides: Sequence[int] = (2, 1, 2, 2, 2, 1, 2, 1),
    dropout_rate: float | Array = 0.2,
    norm: Norm = batch_norm,
) -> Layer:
    """MobileNetV2 as torchvision builds it: 3,504,872 parameters with a thousand classes.

    width_multiplier: factor of every width but the last layer's, which only grows with it.
    stages: expansion, width and number of blocks of each.
    strides: of the stem and of each stage; (1, 1, 1, 2, 2, 1, 2, 1) for images of about 32 pixels.

    Raises:
        ValueError: unless there is one stride more than stages.
    """
    if len(strides) != 1 + len(stages):
        raise ValueError(
            f"mobilenet_v2: strides are those of the stem and of {len(stages)} stages, "
            f"{1 + len(stages)} numbers, got {strides!r}"
        )

    def stage(channels: int, width: int, depth: int, stride: int, expansion: int) -> Layer:
        block = partial(inverted_residual, width=width, expansion=expansion, norm=norm)
        return serial(block(channels, stride=stride), *[block(width, stride=1)] * (depth - 1))

    widths = [round_width(width_multiplier * width) for width in (32, *(row[1] for row in stages))]
    last = round_width(max(1.0, width_multiplier) * 1280)
    return serial(
        stem=serial(_conv(widths[0], 3, stride=strides[0], padding=1), norm(), relu6),
        **{
            f"stage{n + 1}": stage(widths[n], widths[n + 1], depth, strides[n + 1], expansion)
            for n, (expansion, _, depth) in enumerate(stages)
        },
        last=serial(_conv(last, 1), norm(), relu6),
        pool=global_avg_pool,
        dropout=dropout(dropout_rate),
        head=dense(classes, kernel_init=normal(0.01)),
    )


def round_width(width: float) -> int:
    """The nearest multiple of eight that is at least eight and 90 % of the width.

    >>> round_width(32.0), round_width(33.6), round_width(18.0)
    (32, 32, 24)
    """
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
