"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998), the ConvNet that read bank cheques."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from convjax.combine import Part, serial
from convjax.layer import Layer
from convjax.layers import avg_pool, conv, dense
from convjax.ops import flatten, tanh


def lenet5(
    classes: int = 10,
    *,
    activation: Callable[[Array], Array] = tanh,
    pool: Part = avg_pool(2),
) -> Layer:
    """LeNet-5 for 28x28 images: 61,706 parameters with one channel and ten classes.

    As it is built today: every feature of the second convolution sees every one of the first, the
    pools have no weights, and the last layer is a dense one.
    """
    return serial(
        conv(6, 5, padding=2),
        activation,
        pool,
        conv(16, 5, padding="VALID"),
        activation,
        pool,
        flatten,
        dense(120),
        activation,
        dense(84),
        activation,
        dense(classes),
    )
