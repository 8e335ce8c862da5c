"""Pure functions of arrays, `[batch, *spatial, channels]`, for any number of spatial dimensions.

    from convjax import ops
    y = ops.max_pool(ops.relu(ops.conv(x, kernel, bias)), 2)

They know no parameters and no state; `convjax.layers` makes layers of them.
"""

from convjax.ops.activation import (
    celu,
    elu,
    gelu,
    gelu_tanh,
    glu,
    hard_sigmoid,
    hard_swish,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    prelu,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
    tanh,
    threshold,
)
from convjax.ops.choice import algorithm
from convjax.ops.conv import conv, conv_transpose, depthwise_conv
from convjax.ops.correlation import convolutions_saveable
from convjax.ops.dense import dense
from convjax.ops.dropout import drop_path, dropout, spatial_dropout
from convjax.ops.norm import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    moments,
    rms_norm,
    standardize_kernel,
)
from convjax.ops.pool import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    blur_pool,
    global_avg_pool,
    global_max_pool,
    lp_pool,
    max_pool,
)
from convjax.ops.shape import flatten, pixel_shuffle, pixel_unshuffle, resize, upsample

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "algorithm",
    "avg_pool",
    "batch_norm",
    "blur_pool",
    "celu",
    "conv",
    "conv_transpose",
    "convolutions_saveable",
    "dense",
    "depthwise_conv",
    "drop_path",
    "dropout",
    "elu",
    "flatten",
    "gelu",
    "gelu_tanh",
    "global_avg_pool",
    "global_max_pool",
    "glu",
    "group_norm",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "local_response_norm",
    "log_sigmoid",
    "log_softmax",
    "lp_pool",
    "max_pool",
    "mish",
    "moments",
    "pixel_shuffle",
    "pixel_unshuffle",
    "prelu",
    "relu",
    "relu6",
    "resize",
    "rms_norm",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "spatial_dropout",
    "standardize_kernel",
    "tanh",
    "threshold",
    "upsample",
]
