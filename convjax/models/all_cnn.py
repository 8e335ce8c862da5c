"""All-CNN-C (Springenberg, Dosovitskiy, Brox and Riedmiller 2015): convolutions are enough."""

from __future__ import annotations

from convjax.combine import serial
from convjax.layer import Layer
from convjax.layers import conv, dropout
from convjax.ops import global_avg_pool, relu


def all_cnn_c(classes: int = 10, *, width: int = 96) -> Layer:
    """All-CNN-C for 32x32 images: 1,369,738 parameters with three channels and ten classes.

    Convolutions of stride 2 stand where others pool, and the last one votes. Dropout as in the
    paper: 20 % of the input, 50 % after each convolution of stride 2.
    """
    wide = 2 * width
    return serial(
        *(dropout(0.2), conv(width, 3), relu, conv(width, 3), relu),
        *(conv(width, 3, stride=2, padding=1), relu, dropout(0.5)),
        *(conv(wide, 3), relu, conv(wide, 3), relu),
        *(conv(wide, 3, stride=2, padding=1), relu, dropout(0.5)),
        *(conv(wide, 3, padding="VALID"), relu, conv(wide, 1), relu),
        *(conv(classes, 1), relu, global_avg_pool),
    )
