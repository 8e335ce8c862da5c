"""Layers: the operations of `convjax.ops` with parameters of their own.

    from convjax.layers import batch_norm, conv, dense, dropout, max_pool

Images are `[batch, *spatial, channels]`, with one, two or three spatial axes, read from the input.
Parameters are float32; the computation follows the dtype of the input. What has no parameters is a
plain function of an array: `relu`, `flatten`, `max_pool(2)`.
"""

from convjax.layers.convolution import (
    conv,
    conv_transpose,
    dense,
    depthwise_conv,
    separable_conv,
    weight_standardized,
)
from convjax.layers.gate import (
    prelu,
    squeeze_excite,
)
from convjax.layers.noise import (
    drop_path,
    dropout,
    spatial_dropout,
)
from convjax.layers.norm import (
    batch_norm,
    frozen_norm,
    ghost_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    rms_norm,
)
from convjax.layers.pool import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    blur_pool,
    max_pool,
    pixel_shuffle,
    pixel_unshuffle,
    resize,
)

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "batch_norm",
    "blur_pool",
    "conv",
    "conv_transpose",
    "dense",
    "depthwise_conv",
    "drop_path",
    "dropout",
    "frozen_norm",
    "ghost_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "max_pool",
    "pixel_shuffle",
    "pixel_unshuffle",
    "prelu",
    "resize",
    "rms_norm",
    "separable_conv",
    "spatial_dropout",
    "squeeze_excite",
    "weight_standardized",
]
