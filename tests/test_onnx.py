"""The node tests that the `onnx` package makes, for every operator that `convjax.ops` claims.

Each operator has an adapter below that turns ONNX's layout [batch, channels, *spatial] and its
attributes into ours. `left_out` says which cases are not run, and why; all others of those
operators are run, so that a new version of onnx adds none in silence.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from convjax import ops
from convjax.ops import activation

adapters: dict[str, Callable] = {}


def adapter(function):
    """Registers the adapter of the operator that it is named after.

    It takes the inputs as arrays, and the attributes as keywords; it returns one output or several.
    """
    adapters[function.__name__] = function
    return function


def to_last(x):
    return jnp.moveaxis(x, 1, -1)


def to_first(x):
    return jnp.moveaxis(x, -1, 1)


def window_options(pads=None, auto_pad="NOTSET", strides=1, dilations=1, **rest):
    """The attributes that convolutions and pools share, in our words."""
    named = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}
    rank = 0 if pads is None else len(pads) // 2
    pairs = 0 if pads is None else tuple(zip(pads[:rank], pads[rank:], strict=True))
    padding = named.get(auto_pad, pairs)
    return {"stride": strides, "dilation": dilations, "padding": padding}, rest


@adapter
def Conv(x, weight, bias=None, *, kernel_shape=None, group=1, **attributes):
    options, rest = window_options(**attributes)
    assert not rest
    kernel = jnp.moveaxis(weight, (1, 0), (-2, -1))
    return to_first(ops.conv(to_last(x), kernel, bias, groups=group, **options))


@adapter
def ConvTranspose(x, weight, bias=None, *, kernel_shape=None, group=1, **attributes):
    output_padding = attributes.pop("output_padding", [0] * (x.ndim - 2))
    output_shape = attributes.pop("output_shape", None)
    options, rest = window_options(**attributes)
    assert not rest
    if output_shape is not None:  # the size that is asked for, instead of how much to pad
        sizes = zip(x.shape[2:], options["stride"], weight.shape[2:], strict=True)
        full = [(size - 1) * stride + window for size, stride, window in sizes]
        output_padding = np.subtract(output_shape, full).tolist()
    # [in, out / groups, *window], group after group of the inputs.
    parts = jnp.split(weight, group)
    kernel = jnp.concatenate([jnp.moveaxis(part, (0, 1), (-2, -1)) for part in parts], axis=-1)
    options |= {"groups": group, "output_padding": output_padding}
    return to_first(ops.conv_transpose(to_last(x), kernel, bias, **options))


def pool(function, x, kernel_shape, ceil_mode=0, **attributes):
    options, rest = window_options(**attributes)
    return to_first(function(to_last(x), kernel_shape, ceil=bool(ceil_mode), **options, **rest))


@adapter
def MaxPool(x, *, kernel_shape, **attributes):
    return pool(ops.max_pool, x, kernel_shape, **attributes)


@adapter
def AveragePool(x, *, kernel_shape, count_include_pad=0, **attributes):
    count = bool(count_include_pad)
    return pool(ops.avg_pool, x, kernel_shape, count_padding=count, **attributes)


@adapter
def LpPool(x, *, kernel_shape, p=2, **attributes):
    return pool(ops.lp_pool, x, kernel_shape, p=p, **attributes)


@adapter
def GlobalAveragePool(x):
    return jnp.expand_dims(ops.global_avg_pool(to_last(x)), tuple(range(2, x.ndim)))


@adapter
def GlobalMaxPool(x):
    return jnp.expand_dims(ops.global_max_pool(to_last(x)), tuple(range(2, x.ndim)))


@adapter
def LRN(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    return to_first(ops.local_response_norm(to_last(x), size, alpha=alpha, beta=beta, k=bias))


@adapter
def BatchNormalization(x, scale, bias, mean, var, *, epsilon=1e-5, momentum=0.9, training_mode=0):
    x = to_last(x)
    if not training_mode:
        return to_first(ops.batch_norm(x, mean, var, scale, bias, epsilon))
    batch_mean, batch_var = ops.moments(x, tuple(range(x.ndim - 1)))
    y = ops.batch_norm(x, batch_mean, batch_var, scale, bias, epsilon)
    running_mean = momentum * mean + (1 - momentum) * batch_mean
    running_var = momentum * var + (1 - momentum) * batch_var
    return to_first(y), running_mean, running_var


@adapter
def LayerNormalization(x, scale, bias=None, *, axis=-1, epsilon=1e-5):
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean, var = ops.moments(x, axes, keepdims=True)
    y = ops.layer_norm(x, scale, bias, axes=axes, epsilon=epsilon)
    return y, mean, 1 / jnp.sqrt(var + epsilon)


@adapter
def RMSNormalization(x, scale, *, axis=-1, epsilon=1e-5):
    axes = tuple(range(axis % x.ndim, x.ndim))
    return ops.rms_norm(x, scale, axes=axes, epsilon=epsilon)


@adapter
def GroupNormalization(x, scale, bias, *, num_groups, epsilon=1e-5):
    return to_first(ops.group_norm(to_last(x), num_groups, scale, bias, epsilon=epsilon))


@adapter
def InstanceNormalization(x, scale, bias, *, epsilon=1e-5):
    return to_first(ops.instance_norm(to_last(x), scale, bias, epsilon=epsilon))


@adapter
def Relu(x):
    return activation.relu(x)


@adapter
def LeakyRelu(x, *, alpha=0.01):
    return activation.leaky_relu(x, alpha)


@adapter
def PRelu(x, slope):
    return activation.prelu(x, slope)


@adapter
def ThresholdedRelu(x, *, alpha=1.0):
    return activation.threshold(x, alpha)


@adapter
def Elu(x, *, alpha=1.0):
    return activation.elu(x, alpha)


@adapter
def Selu(x):
    return activation.selu(x)


@adapter
def Celu(x, *, alpha=1.0):
    return activation.celu(x, alpha)


@adapter
def Gelu(x, *, approximate="none"):
    return {"none": activation.gelu, "tanh": activation.gelu_tanh}[approximate](x)


@adapter
def HardSigmoid(x, *, alpha=0.2, beta=0.5):
    return activation.hard_sigmoid(x, slope=alpha, offset=beta)


@adapter
def HardSwish(x):
    return activation.hard_swish(x)


@adapter
def Mish(x):
    return activation.mish(x)


@adapter
def Sigmoid(x):
    return activation.sigmoid(x)


@adapter
def Softplus(x):
    return activation.softplus(x)


@adapter
def Softsign(x):
    return activation.softsign(x)


@adapter
def Swish(x, *, alpha=1.0):
    assert alpha == 1.0
    return activation.silu(x)


@adapter
def Tanh(x):
    return activation.tanh(x)


@adapter
def Softmax(x, *, axis=-1):
    return activation.softmax(x, axis)


@adapter
def LogSoftmax(x, *, axis=-1):
    return activation.log_softmax(x, axis)


def exchange_channels(x, outer, inner):
    """Channels numbered (outer, inner), in the first-channels layout, as (inner, outer)."""
    split = x.reshape(x.shape[0], outer, inner, *x.shape[2:])
    return jnp.swapaxes(split, 1, 2).reshape(x.shape)


@adapter
def DepthToSpace(x, *, blocksize, mode="DCR"):
    # DCR numbers channels (pixel, channel), CRD as PyTorch and we do (channel, pixel).
    if mode == "DCR":
        x = exchange_channels(x, blocksize**2, x.shape[1] // blocksize**2)
    return to_first(ops.pixel_shuffle(to_last(x), blocksize))


@adapter
def SpaceToDepth(x, *, blocksize, mode="DCR"):
    y = to_first(ops.pixel_unshuffle(to_last(x), blocksize))
    return exchange_channels(y, x.shape[1], blocksize**2) if mode == "DCR" else y


@adapter
def Resize(x, roi=None, scales=None, sizes=None, *, mode="nearest", antialias=0, **attributes):
    spatial = tuple(range(2, x.ndim))
    axes = attributes.pop("axes", tuple(range(x.ndim)))
    attributes.pop("nearest_mode", None)
    transform = attributes.pop("coordinate_transformation_mode", "half_pixel")
    assert transform in ("half_pixel", "pytorch_half_pixel")
    assert not attributes
    assert roi is None
    wanted = list(x.shape)
    for place, axis in enumerate(axes):
        if sizes is not None:
            wanted[axis] = int(sizes[place])
        elif scales is not None:
            size = x.shape[axis] * float(scales[place])
            assert size == int(size), "ONNX samples by the scale, we by the size"
            wanted[axis] = int(size)
    assert wanted[:2] == list(x.shape[:2])
    size = [wanted[axis] for axis in spatial]
    return to_first(ops.resize(to_last(x), size, method=mode, antialias=bool(antialias)))


@adapter
def Upsample(x, scales, *, mode="nearest"):
    return to_first(ops.upsample(to_last(x), [int(scale) for scale in scales[2:]], method=mode))


@adapter
def Flatten(x, *, axis=1):
    assert axis % x.ndim == 1
    return ops.flatten(x)


@adapter
def Gemm(x, kernel, bias=None, *, transA=0, transB=0):
    bias = None if bias is None else jnp.squeeze(bias, 0)
    return ops.dense(x.T if transA else x, kernel.T if transB else kernel, bias)


@adapter
def MatMul(x, kernel):
    return ops.dense(x, kernel)


@adapter
def Dropout(x, rate=0.5, training=False, *, seed=0):
    assert training
    y = ops.dropout(jax.random.key(seed), x, rate)
    return y, y == x


indices = "asks for the indices of the maxima, which max_pool does not give"
corners = "aligns corners, where resize puts pixel centres at half-integers"
ties = "breaks a tie between two pixels downwards, where resize breaks it upwards as PyTorch does"
other_filter = "has a wider filter than PyTorch's antialias, which resize equals"
no_integer_scale = "samples by a scale that is no ratio of sizes, where resize takes sizes"
crop = "crops, which is not what resize is for"
aspect = "derives the size from an aspect ratio, where resize takes sizes"
numpy_mask = "expects the mask of NumPy's generator"
evaluation = "is evaluation, in which the layer leaves dropout out"
one_axis = "flattens at another axis than after the batch"
scaled = "scales the product or the bias, which dense does not"
many_kernels = "multiplies by many kernels or a vector, where dense has one matrix"
fixed_constants = "changes the constants, which are part of what SELU is"

left_out = {
    "test_maxpool_with_argmax_2d_precomputed_pads": indices,
    "test_maxpool_with_argmax_2d_precomputed_strides": indices,
    "test_selu": fixed_constants,
    "test_selu_example": fixed_constants,
    "test_prelu_example": "has a slope for every number, where prelu has one a channel",
    "test_resize_downsample_scales_cubic": no_integer_scale,
    "test_resize_downsample_scales_cubic_A_n0p5_exclude_outside": no_integer_scale,
    "test_resize_downsample_scales_cubic_align_corners": corners,
    "test_resize_downsample_scales_cubic_antialias": no_integer_scale,
    "test_resize_downsample_scales_linear": no_integer_scale,
    "test_resize_downsample_scales_linear_align_corners": corners,
    "test_resize_downsample_scales_linear_antialias": no_integer_scale,
    "test_resize_downsample_scales_linear_half_pixel_symmetric": no_integer_scale,
    "test_resize_downsample_sizes_cubic_antialias": other_filter,
    "test_resize_downsample_sizes_linear_antialias": other_filter,
    "test_resize_downsample_sizes_linear_pytorch_half_pixel": (
        "takes pixel 0 where the size is 1, which PyTorch no longer does"
    ),
    "test_resize_downsample_sizes_nearest": ties,
    "test_resize_upsample_sizes_nearest": ties,
    "test_resize_upsample_sizes_nearest_axes_2_3": ties,
    "test_resize_upsample_sizes_nearest_axes_3_2": ties,
    "test_resize_downsample_scales_nearest": no_integer_scale,
    "test_resize_downsample_sizes_nearest_not_larger": aspect,
    "test_resize_downsample_sizes_nearest_not_smaller": aspect,
    "test_resize_tf_crop_and_resize": crop,
    "test_resize_tf_crop_and_resize_axes_2_3": crop,
    "test_resize_tf_crop_and_resize_axes_3_2": crop,
    "test_resize_tf_crop_and_resize_extrapolation_value": crop,
    "test_resize_upsample_scales_cubic_A_n0p5_exclude_outside": (
        "takes the coefficient -0.5 without antialias, where resize takes PyTorch's -0.75"
    ),
    "test_resize_upsample_scales_cubic_align_corners": corners,
    "test_resize_upsample_scales_cubic_asymmetric": "puts pixel centres at integers",
    "test_resize_upsample_scales_linear_align_corners": corners,
    "test_resize_upsample_scales_linear_half_pixel_symmetric": no_integer_scale,
    "test_resize_upsample_sizes_nearest_ceil_half_pixel": "rounds up, where resize rounds",
    "test_resize_upsample_sizes_nearest_floor_align_corners": corners,
    "test_resize_upsample_sizes_nearest_not_larger": aspect,
    "test_resize_upsample_sizes_nearest_not_smaller": aspect,
    "test_resize_upsample_sizes_nearest_round_prefer_ceil_asymmetric": (
        "puts pixel centres at integers"
    ),
    "test_flatten_axis0": one_axis,
    "test_flatten_axis2": one_axis,
    "test_flatten_axis3": one_axis,
    "test_flatten_negative_axis1": one_axis,
    "test_flatten_negative_axis2": one_axis,
    "test_flatten_negative_axis4": one_axis,
    "test_dropout_default": evaluation,
    "test_dropout_default_mask": evaluation,
    "test_dropout_default_mask_ratio": evaluation,
    "test_dropout_default_old": evaluation,
    "test_dropout_default_ratio": evaluation,
    "test_dropout_random_old": evaluation,
    "test_training_dropout": numpy_mask,
    "test_training_dropout_default": numpy_mask,
    "test_training_dropout_default_mask": numpy_mask,
    "test_training_dropout_mask": numpy_mask,
    "test_gemm_all_attributes": scaled,
    "test_gemm_alpha": scaled,
    "test_gemm_beta": scaled,
    "test_gemm_default_matrix_bias": "has a bias for every number, where dense has one a feature",
    "test_gemm_default_scalar_bias": "has one bias for all, where dense has one a feature",
    "test_gemm_default_single_elem_vector_bias": (
        "has one bias for all, where dense has one a feature"
    ),
    "test_matmul_1d_1d": many_kernels,
    "test_matmul_1d_3d": many_kernels,
    "test_matmul_3d": many_kernels,
    "test_matmul_4d": many_kernels,
    "test_matmul_4d_1d": many_kernels,
    "test_matmul_bcast": many_kernels,
}


tolerance = {  # onnx's own runner compares to 1e-3
    "test_averagepool_2d_ceil_last_window_starts_on_pad": 1e-3,  # is written with four digits
    "test_celu_float16": 1e-3,  # 11 bits
    "test_celu_bfloat16": 8e-3,  # 8 bits
}


def collect():
    """The node tests of one node each, by name; those that are expanded into many are not ours."""
    state = np.random.get_state()
    with warnings.catch_warnings():
        # onnx makes its cases of other operators by overflowing casts and divisions by zero.
        warnings.simplefilter("ignore", RuntimeWarning)
        from onnx.backend.test.case.node import collect_testcases

        np.random.seed(0)
        cases = collect_testcases(None)
    np.random.set_state(state)
    found = {}
    for case in cases:
        nodes = case.model.graph.node if case.model else []
        if len(nodes) == 1 and nodes[0].op_type in adapters:
            found[case.name] = nodes[0], case.data_sets or []
    return found


cases = collect()  # name -> (node, [(inputs, outputs), ...])


def attributes_of(node):
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


@pytest.mark.parametrize("name", sorted(cases.keys() - left_out.keys()))
def test_node(name):
    node, data_sets = cases[name]
    assert data_sets
    for inputs, expected in data_sets:
        given = iter(inputs)  # inputs that a node leaves out are named ""
        arguments = [jnp.asarray(next(given)) if name else None for name in node.input]
        outputs = adapters[node.op_type](*arguments, **attributes_of(node))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert len(outputs) >= len(expected)
        for output, value in zip(outputs, expected, strict=False):
            assert output.dtype == value.dtype
            assert output.shape == value.shape
            np.testing.assert_allclose(
                np.asarray(output, np.float64),
                np.asarray(value, np.float64),
                rtol=tolerance.get(name, 1e-5),
                atol=1e-6,
            )


def test_every_case_that_is_left_out_exists_with_its_reason():
    assert not left_out.keys() - cases.keys()
    assert all(left_out.values())


def test_every_operator_that_is_claimed_is_run():
    run = {cases[name][0].op_type for name in cases.keys() - left_out.keys()}
    assert run == adapters.keys()
