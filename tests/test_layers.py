"""Layers against PyTorch's modules with the same weights, and what they say of bad arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracle import channels_first, channels_last, conv_transpose_weight, conv_weight

from convjax import (
    Context,
    Layer,
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    batch_norm,
    compose,
    conv,
    conv_transpose,
    dense,
    depthwise_conv,
    drop_path,
    dropout,
    frozen_norm,
    ghost_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    loop,
    max_pool,
    pixel_shuffle,
    pixel_unshuffle,
    prelu,
    resize,
    rms_norm,
    separable_conv,
    serial,
    spatial_dropout,
    squeeze_excite,
    weight_standardized,
)
from convjax.initializers import constant
from convjax.layer import as_layer

SIZES = {1: (9,), 2: (8, 7), 3: (5, 6, 4)}
CONVS = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
CONV_TRANSPOSES = {
    1: torch.nn.ConvTranspose1d,
    2: torch.nn.ConvTranspose2d,
    3: torch.nn.ConvTranspose3d,
}
BATCH_NORMS = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}
IMAGE = (3, 6, 5, 8)

# -- Convolutions and dense layers -----------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "groups": 2},
        {"bias": False},
    ],
    ids=str,
)
def test_conv_equals_the_module_of_pytorch(rank: int, options: dict[str, Any]):
    x = _normal(2, *SIZES[rank], 4)
    net = conv(6, 3, **{"padding": "VALID", **options})
    params, _ = _random_init(net, x)
    theirs = CONVS[rank](4, 6, 3, **options)
    _copy(theirs, weight=conv_weight(params["kernel"]), bias=params.get("bias"))
    assert_close(_evaluate(net, params, {}, x), channels_last(theirs(channels_first(x))))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"dilation": 2, "groups": 2},
        {"bias": False},
    ],
    ids=str,
)
def test_conv_transpose_equals_the_module_of_pytorch(rank: int, options: dict[str, Any]):
    x = _normal(2, *SIZES[rank], 4)
    net = conv_transpose(6, 3, **{"padding": "VALID", **options})
    params, _ = _random_init(net, x)
    theirs = CONV_TRANSPOSES[rank](4, 6, 3, **options)
    weight = conv_transpose_weight(params["kernel"], options.get("groups", 1))
    _copy(theirs, weight=weight, bias=params.get("bias"))
    assert_close(_evaluate(net, params, {}, x), channels_last(theirs(channels_first(x))))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_conv_equals_a_grouped_module_of_pytorch(rank: int, multiplier: int):
    x = _normal(2, *SIZES[rank], 4)
    net = depthwise_conv(3, multiplier=multiplier, stride=2, padding=1)
    params, _ = _random_init(net, x)
    theirs = CONVS[rank](4, 4 * multiplier, 3, stride=2, padding=1, groups=4)
    _copy(theirs, weight=conv_weight(params["kernel"]), bias=params["bias"])
    assert_close(_evaluate(net, params, {}, x), channels_last(theirs(channels_first(x))))


def test_separable_conv_equals_two_modules_of_pytorch():
    x = _normal(2, 8, 7, 4)
    net = separable_conv(5, 3, multiplier=2, padding=1)
    params, _ = _random_init(net, x)
    depthwise = torch.nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)
    pointwise = torch.nn.Conv2d(8, 5, 1)
    _copy(depthwise, weight=conv_weight(params["depthwise"]["kernel"]))
    _copy(
        pointwise,
        weight=conv_weight(params["pointwise"]["kernel"]),
        bias=params["pointwise"]["bias"],
    )
    theirs = pointwise(depthwise(channels_first(x)))
    assert_close(_evaluate(net, params, {}, x), channels_last(theirs))


def test_dense_equals_the_module_of_pytorch():
    x = _normal(3, 5)
    net = dense(4)
    params, _ = _random_init(net, x)
    theirs = torch.nn.Linear(5, 4)
    _copy(theirs, weight=params["kernel"].T, bias=params["bias"])
    assert_close(_evaluate(net, params, {}, x), theirs(torch.from_numpy(x)).detach().numpy())


def test_weight_standardized_conv_sees_kernels_of_mean_0_and_variance_1():
    x = _normal(2, 6, 5, 4)
    net = weight_standardized(conv(3, 3, padding=1), epsilon=1e-5)
    params, _ = _random_init(net, x)
    weight = conv_weight(params["kernel"])
    var, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
    standard = (weight - mean) / torch.sqrt(var + 1e-5)
    bias = torch.from_numpy(params["bias"])
    theirs = torch.nn.functional.conv2d(channels_first(x), standard, bias, padding=1)
    assert_close(_evaluate(net, params, {}, x), channels_last(theirs))


# -- Normalisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_batch_norm_trains_and_evaluates_as_the_module_of_pytorch(rank: int, momentum: float):
    """Outputs and running statistics over four steps; PyTorch's momentum is one minus ours."""
    steps = [1 + 3 * _normal(4, *SIZES[rank], 5, seed=seed) for seed in range(4)]
    net = batch_norm(momentum=momentum)
    params, _ = _random_init(net, steps[0])
    _, state = net.init(jax.random.key(0), steps[0])
    theirs = BATCH_NORMS[rank](5, momentum=1 - momentum)
    _copy(theirs, weight=params["scale"], bias=params["bias"])
    for x in steps:
        y, state = net.apply(params, state, x, Context(train=True))
        assert_close(y, channels_last(theirs(channels_first(x))))
        assert_close(state["mean"], theirs.running_mean)
        assert_close(state["var"], theirs.running_var)
    theirs.eval()
    x = _normal(4, *SIZES[rank], 5, seed=9)
    assert_close(_evaluate(net, params, state, x), channels_last(theirs(channels_first(x))))


def test_batch_norm_of_vectors_trains_as_the_module_of_pytorch():
    x = _normal(6, 5)
    net = batch_norm(scale=False, bias=False)
    params, state = net.init(jax.random.key(0), x)
    theirs = torch.nn.BatchNorm1d(5, affine=False)
    y, state = net.apply(params, state, x, Context(train=True))
    assert_close(y, theirs(torch.from_numpy(x)))
    assert_close(state["var"], theirs.running_var)
    assert params == {}


def test_batch_norm_on_a_mapped_axis_sees_the_batch_of_all_devices():
    """Parts with other means and deviations, so that no mean of statistics would do."""
    parts = [seed + (seed + 1) * _normal(2, 3, 3, 5, seed=seed) for seed in range(4)]
    net = batch_norm()
    params, state = net.init(jax.random.key(0), parts[0])
    theirs = torch.nn.BatchNorm2d(5)
    expected = channels_last(theirs(channels_first(np.concatenate(parts))))

    def step(x: jax.Array) -> Any:
        return net.apply(params, state, x, Context(train=True, axis="devices"))

    y, state = jax.vmap(step, axis_name="devices")(jnp.stack(parts))
    assert_close(y.reshape(expected.shape), expected)
    for number in range(4):
        assert_close(state["mean"][number], theirs.running_mean)
        assert_close(state["var"][number], theirs.running_var)


def test_frozen_norm_trains_as_the_module_of_pytorch_in_evaluation_mode():
    """Output and every gradient: scale and bias learn, and no gradient goes through statistics."""
    x, weights = 1 + 3 * _normal(4, *SIZES[2], 5), _normal(4, *SIZES[2], 5, seed=1)
    net = frozen_norm(batch_norm(epsilon=1e-2))
    params, _ = _random_init(net, x)
    state = {"mean": _normal(5, seed=2), "var": np.exp(_normal(5, seed=3))}
    theirs = torch.nn.BatchNorm2d(5, eps=1e-2)
    _copy(theirs, weight=params["scale"], bias=params["bias"])
    _copy(theirs, running_mean=state["mean"], running_var=state["var"])
    theirs.eval()
    y, new = net.apply(params, state, x, Context(train=True))
    images = channels_first(x).requires_grad_()
    expected = theirs(images)
    expected.backward(channels_first(weights))
    assert_close(y, channels_last(expected))
    of_params, of_x = _gradients(net, params, state, x, weights, Context(train=True))
    assert_close(of_params["scale"], theirs.weight.grad)
    assert_close(of_params["bias"], theirs.bias.grad)
    assert_close(of_x, channels_last(images.grad))
    assert all(new[name] is state[name] for name in state)


@pytest.mark.parametrize("devices", [None, 2], ids=["one device", "two devices"])
def test_ghost_norm_trains_as_the_module_of_pytorch_on_each_chunk(devices: int | None):
    """Outputs, gradients and running statistics, these the means of the chunks', over two steps."""
    steps = [_uneven(8, seed) for seed in range(2)]
    weights = _normal(*steps[0].shape, seed=5)
    net = ghost_norm(batch_norm(momentum=0.7), 2)
    params, _ = _random_init(net, steps[0])
    _, state = net.init(jax.random.key(0), steps[0])
    mean, var = np.zeros(5, np.float32), np.ones(5, np.float32)
    for x in steps:
        expected, mean, var = _chunks_of_pytorch(x, weights, 2, params, mean, var, 0.3)
        if devices is None:
            y, state = net.apply(params, state, x, Context(train=True))
            of_params, of_x = _gradients(net, params, state, x, weights, Context(train=True))
        else:
            y, state, of_params, of_x = _on_devices(devices, net, params, state, x, weights)
        assert_close(y, expected["y"])
        assert_close(of_x, expected["of_x"])
        assert_close(of_params["scale"], expected["of_scale"])
        assert_close(of_params["bias"], expected["of_bias"])
        assert_close(state["mean"], mean)
        assert_close(state["var"], var)


@pytest.mark.parametrize("size", [6, 7, 100])
def test_a_batch_of_one_ghost_group_or_less_trains_as_the_module_of_pytorch(size: int):
    x = _uneven(6)
    net = ghost_norm(batch_norm(), size)
    params, state = net.init(jax.random.key(0), x)
    theirs = torch.nn.BatchNorm2d(5)
    y, state = net.apply(params, state, x, Context(train=True))
    assert_close(y, channels_last(theirs(channels_first(x))))
    assert_close(state["var"], theirs.running_var)


def test_ghost_norm_evaluates_as_the_module_of_pytorch_for_any_batch():
    x = _uneven(5)
    net = ghost_norm(batch_norm(), 2)
    params, _ = _random_init(net, x[:2])
    state = {"mean": _normal(5, seed=2), "var": np.exp(_normal(5, seed=3))}
    theirs = torch.nn.BatchNorm2d(5).eval()
    _copy(theirs, weight=params["scale"], bias=params["bias"])
    _copy(theirs, running_mean=state["mean"], running_var=state["var"])
    assert_close(_evaluate(net, params, state, x), channels_last(theirs(channels_first(x))))


def test_a_frozen_ghost_norm_is_frozen():
    x = _uneven(4)
    net = frozen_norm(ghost_norm(batch_norm(), 3))
    params, state = net.init(jax.random.key(0), x)
    y, new = net.apply(params, state, x, Context(train=True))
    assert_close(y, x / np.sqrt(1 + 1e-5))
    assert new == state


NORMS = {
    "group_norm": (group_norm(4), torch.nn.GroupNorm(4, 8)),
    "instance_norm": (instance_norm(), torch.nn.InstanceNorm2d(8, affine=True)),
    "layer_norm": (layer_norm(epsilon=1e-5), torch.nn.LayerNorm(8)),
    "rms_norm": (rms_norm(epsilon=1e-5), torch.nn.RMSNorm(8, eps=1e-5)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm_equals_the_module_of_pytorch(name: str):
    x = 1 + 3 * _normal(*IMAGE)
    net, theirs = NORMS[name]
    params, _ = _random_init(net, x)
    _copy(theirs, weight=params["scale"], bias=params.get("bias"))
    if name in ("layer_norm", "rms_norm"):  # over the channels, which PyTorch takes last
        expected = theirs(torch.from_numpy(x)).detach().numpy()
    else:
        expected = channels_last(theirs(channels_first(x)))
    assert_close(_evaluate(net, params, {}, x), expected)


@pytest.mark.parametrize(
    "make",
    [
        *(batch_norm, layer_norm, instance_norm, lambda: group_norm(4)),
        *(lambda: frozen_norm(batch_norm()), lambda: ghost_norm(batch_norm(), 3)),
    ],
)
def test_every_norm_has_the_same_paths(make: Any):
    params, _ = serial(conv(8, 3), make()).init(jax.random.key(0), _normal(*IMAGE))
    assert {name: leaf.shape for name, leaf in params["norm1"].items()} == {
        "scale": (8,),
        "bias": (8,),
    }


# -- Layers without parameters hand their arguments on ---------------------------------------------

FUNCTIONS = {
    "max_pool": (
        max_pool(3, stride=2, padding=1),
        lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1),
    ),
    "avg_pool": (
        avg_pool(3, stride=2, padding=1),
        lambda x: torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "avg_pool/count_padding": (
        avg_pool((2, 3), stride=1, padding=1, count_padding=True),
        lambda x: torch.nn.functional.avg_pool2d(x, (2, 3), 1, 1),
    ),
    "adaptive_avg_pool": (
        adaptive_avg_pool((4, 3)),
        lambda x: torch.nn.functional.adaptive_avg_pool2d(x, (4, 3)),
    ),
    "adaptive_max_pool": (
        adaptive_max_pool((4, 3)),
        lambda x: torch.nn.functional.adaptive_max_pool2d(x, (4, 3)),
    ),
    "local_response_norm": (
        local_response_norm(3, alpha=0.5, beta=0.6, k=2.0),
        lambda x: torch.nn.functional.local_response_norm(x, 3, 0.5, 0.6, 2.0),
    ),
    "pixel_shuffle": (pixel_shuffle(2), lambda x: torch.nn.functional.pixel_shuffle(x, 2)),
    "pixel_unshuffle": (
        pixel_unshuffle(1),
        lambda x: torch.nn.functional.pixel_unshuffle(x, 1),
    ),
    "resize/linear": (
        resize((9, 4)),
        lambda x: torch.nn.functional.interpolate(x, (9, 4), mode="bilinear"),
    ),
    "resize/cubic": (
        resize((9, 4), method="cubic"),
        lambda x: torch.nn.functional.interpolate(x, (9, 4), mode="bicubic"),
    ),
    "resize/nearest": (
        resize((9, 4), method="nearest"),
        lambda x: torch.nn.functional.interpolate(x, (9, 4), mode="nearest-exact"),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layer_without_parameters_equals_the_function_of_pytorch(name: str):
    ours, theirs = FUNCTIONS[name]
    x = _normal(*IMAGE)
    assert_close(_evaluate(as_layer(ours), {}, {}, x), channels_last(theirs(channels_first(x))))


# -- Small composites ------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_prelu_equals_the_module_of_pytorch(shared: bool):
    x = _normal(*IMAGE)
    net = prelu(shared=shared)
    params, _ = net.init(jax.random.key(0), x)
    theirs = torch.nn.PReLU(1 if shared else 8)
    assert_close(_evaluate(net, params, {}, x), channels_last(theirs(channels_first(x))))
    params, _ = _random_init(net, x)
    _copy(theirs, weight=params["slope"].reshape(-1))
    assert_close(_evaluate(net, params, {}, x), channels_last(theirs(channels_first(x))))


def test_squeeze_excite_weighs_the_channels():
    """By hand: sigmoid(W2 relu(W1 mean)), one weight a channel of each image."""
    x = _normal(*IMAGE)
    net = squeeze_excite(0.25)
    params, _ = _random_init(net, x)
    squeeze, expand = (
        {name: torch.from_numpy(leaf) for name, leaf in params[part].items()}
        for part in ("squeeze", "expand")
    )
    assert squeeze["kernel"].shape == (8, 2)
    images = torch.from_numpy(x)
    hidden = torch.relu(images.mean(dim=(1, 2)) @ squeeze["kernel"] + squeeze["bias"])
    weights = torch.sigmoid(hidden @ expand["kernel"] + expand["bias"])
    assert_close(_evaluate(net, params, {}, x), images * weights[:, None, None, :])


def test_squeeze_excite_keeps_one_hidden_number_at_least():
    params, _ = squeeze_excite(1 / 16).init(jax.random.key(0), _normal(*IMAGE))
    assert params["squeeze"]["kernel"].shape == (8, 1)


# -- Noise -----------------------------------------------------------------------------------------

NOISES = {"dropout": dropout, "spatial_dropout": spatial_dropout, "drop_path": drop_path}


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_the_identity_in_evaluation(name: str):
    x = _normal(*IMAGE)
    y = _evaluate(NOISES[name](0.5), {}, {}, x, Context(jax.random.key(0)))
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("name", NOISES)
def test_noise_needs_a_key_when_training(name: str):
    message = rf"^{name} needs randomness when training: pass Context\(key=..., train=True\)\n"
    with pytest.raises(ValueError, match=message) as caught:
        serial(head=NOISES[name](0.5)).apply({}, {}, _normal(*IMAGE), Context(train=True))
    assert f"in head ({name}), called with float32[3,6,5,8]" in caught.value.__notes__


def test_dropout_at_rate_0_needs_no_key():
    x = _normal(*IMAGE)
    np.testing.assert_array_equal(_evaluate(dropout(0), {}, {}, x, Context(train=True)), x)


@pytest.mark.parametrize(("name", "axes"), [("dropout", ()), ("spatial_dropout", (1, 2)),
                                            ("drop_path", (1, 2, 3))])  # fmt: skip
def test_noise_drops_whole_units_and_scales_up_the_rest(name: str, axes: tuple[int, ...]):
    """A unit is a number, a channel of an image, or an image: all of it is 0 or x / (1 - rate)."""
    rate, x = 0.25, 1 + np.abs(_normal(400, 4, 4, 8))
    y = _evaluate(NOISES[name](rate), {}, {}, x, _training(0))
    factors = np.asarray(y) / x
    kept = factors > 0
    np.testing.assert_allclose(factors[kept], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(kept.all(axes), kept.any(axes))
    units = kept.all(axes)
    # The share that is kept is binomial: five standard deviations.
    assert abs(units.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / units.size)


@pytest.mark.parametrize("name", NOISES)
def test_traced_rate_makes_the_same_noise(name: str):
    """So that a sweep may vary it without a new compilation."""
    x = _normal(16, 4, 4, 8)

    @jax.jit
    def noisy(rate: jax.Array) -> jax.Array:
        return _evaluate(NOISES[name](rate), {}, {}, x, _training(0))

    for rate in (0.25, 0.5):
        expected = _evaluate(NOISES[name](rate), {}, {}, x, _training(0))
        assert_close(noisy(jnp.float32(rate)), expected)


def test_noise_of_an_example_depends_on_its_number_alone():
    """Not on the size of the batch: a masked last batch sees the masks of a full one."""
    x = np.ones((6, 4), np.float32)
    whole = _evaluate(dropout(0.5), {}, {}, x, _training(0))
    np.testing.assert_array_equal(_evaluate(dropout(0.5), {}, {}, x[:4], _training(0)), whole[:4])
    assert len({row.tobytes() for row in np.asarray(whole)}) > 1


def test_noise_differs_by_key_by_part_and_by_call():
    x = np.ones((8, 64), np.float32)
    net = dropout(0.5)
    kept = [
        _evaluate(serial(first=net), {}, {}, x, _training(0)),
        _evaluate(serial(first=net), {}, {}, x, _training(1)),
        _evaluate(serial(second=net), {}, {}, x, _training(0)),
        # Called twice, one part drops other numbers each time: a quarter is left, not half.
        _evaluate(loop(2, net), {}, {}, x, _training(0)),
    ]
    shares = [float((np.asarray(y) > 0).mean()) for y in kept]
    assert shares[:3] == pytest.approx([0.5] * 3, abs=0.1)
    assert shares[3] == pytest.approx(0.25, abs=0.1)
    masks = [(np.asarray(y) > 0).tobytes() for y in kept]
    assert len(set(masks)) == len(masks)


# -- Bad arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rate_is_a_probability(name: str, rate: float):
    with pytest.raises(ValueError, match=f"{name} takes a rate between 0 and 1, not {rate}"):
        NOISES[name](rate)


@pytest.mark.parametrize("make", [conv, conv_transpose])
def test_channels_divide_into_groups(make: Any):
    with pytest.raises(ValueError, match="4 channels do not divide into 3 groups"):
        make(6, 3, groups=3).init(jax.random.key(0), _normal(2, 8, 8, 4))


@pytest.mark.parametrize("make", [conv, conv_transpose])
def test_features_divide_into_groups(make: Any):
    net = serial(features=make(5, 3, groups=2))
    with pytest.raises(ValueError, match=r"5 features .* do not divide into groups=2") as caught:
        net.init(jax.random.key(0), _normal(2, 8, 8, 4))
    where = f"in features ({make.__name__}), called with float32[2,8,8,4]"
    assert where in caught.value.__notes__


@pytest.mark.parametrize("make", [conv, conv_transpose, lambda _, w: depthwise_conv(w)])
def test_window_fits_the_spatial_axes(make: Any):
    with pytest.raises(ValueError, match=r"window.*\(3, 3, 3\).* 2 spatial"):
        make(6, (3, 3, 3)).init(jax.random.key(0), _normal(2, 8, 8, 4))


@pytest.mark.parametrize("window", [0, (3, -1)])
def test_window_is_positive(window: Any):
    with pytest.raises(ValueError, match="window must be at least 1"):
        conv(6, window).init(jax.random.key(0), _normal(2, 8, 8, 4))


def test_convolution_of_vectors_asks_for_the_missing_axes():
    with pytest.raises(
        ValueError, match=r"\[batch, \*spatial, channels\].*is a `flatten` too early"
    ):
        conv(6, 3).init(jax.random.key(0), _normal(2, 64))


@pytest.mark.parametrize("make", [conv, conv_transpose])
def test_unknown_padding_is_named(make: Any):
    with pytest.raises(ValueError, match=r"padding.*'SMAE'"):
        serial(make(6, 3, padding="SMAE")).init(jax.random.key(0), _normal(2, 8, 8, 4))


def test_channels_divide_into_the_groups_of_group_norm():
    with pytest.raises(ValueError, match=r"8 channels .* do not divide into groups=3"):
        serial(group_norm(3)).init(jax.random.key(0), _normal(*IMAGE))


def test_weight_standardized_takes_one_layer_with_a_kernel():
    with pytest.raises(ValueError, match=r"one convolution or dense layer, not serial"):
        weight_standardized(serial(conv(3, 3)))
    with pytest.raises(ValueError, match=r"one convolution or dense layer, not norm"):
        weight_standardized(batch_norm())


@pytest.mark.parametrize("size", [0, -2, 2.0, "32"])
def test_ghost_groups_are_of_a_whole_number_of_images(size: Any):
    with pytest.raises(ValueError, match=f"size must be a whole number of 1 or more, got {size!r}"):
        ghost_norm(batch_norm(), size)


def test_a_batch_divides_into_the_ghost_groups_on_one_device_and_on_each():
    net = serial(ghost_norm(batch_norm(), 4))
    message = r"groups of 4 images, and a batch of 6 does .*: choose a multiple of 4, or a divisor"
    with pytest.raises(ValueError, match=message) as caught:
        net.init(jax.random.key(0), _uneven(6))
    assert "in norm1 (norm), called with float32[6,4,3,5]" in caught.value.__notes__
    x = _uneven(8)
    params, state = net.init(jax.random.key(0), x)
    # A part of fewer images than a group is no group of the whole batch.
    with pytest.raises(ValueError, match=r"groups of 4 .* a batch of 2 on a device does not"):
        _on_devices(4, net, params, state, x, x)


@pytest.mark.parametrize("norm", [group_norm(4), layer_norm(), conv(8, 3)])
@pytest.mark.parametrize("wrap", [frozen_norm, lambda norm: ghost_norm(norm, 1)])
def test_only_what_keeps_statistics_can_be_frozen_or_ghost(norm: Layer, wrap: Any):
    with pytest.raises(ValueError, match=f"this {norm.kind} keeps none: leave it as it is"):
        serial(wrap(norm)).init(jax.random.key(0), _normal(*IMAGE))


def test_separable_conv_begins_with_the_bias_that_is_asked_for():
    net = separable_conv(4, 3, bias_init=constant(2.0))
    params, _ = net.init(jax.random.key(0), _normal(*IMAGE))
    assert params["pointwise"]["bias"].tolist() == [2.0] * 4
    assert "bias" not in params["depthwise"]


def test_part_may_not_be_called_as_what_a_net_has():
    with pytest.raises(ValueError, match="cannot be called 'params'"):
        compose(lambda net, x: net["params"](x), params=conv(3, 3))


# -- What they share -------------------------------------------------------------------------------


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _uneven(images: int, seed: int = 0) -> np.ndarray:
    """Images of 5 channels whose means and deviations grow, so that no group is like another."""
    number = np.arange(1, images + 1, dtype=np.float32).reshape(-1, 1, 1, 1)
    return number * (1 + _normal(images, 4, 3, 5, seed=seed))


def _gradients(net: Layer, params: Any, state: Any, x: Any, weights: Any, ctx: Context) -> Any:
    """Those of the weighted sum of the output, with respect to the parameters and to x."""

    def loss(params: Any, x: Any) -> jax.Array:
        return (weights * net.apply(params, state, x, ctx)[0]).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(params, x)


def _on_devices(devices: int, net: Layer, params: Any, state: Any, x: Any, weights: Any) -> Any:
    """Output, state and gradients of a batch that is spread over a mapped axis."""
    ctx = Context(train=True, axis="devices")

    def one(x: jax.Array, weights: jax.Array) -> Any:
        y, new = net.apply(params, state, x, ctx)
        return y, new, *_gradients(net, params, state, x, weights, ctx)

    parts = [each.reshape(devices, -1, *each.shape[1:]) for each in (x, weights)]
    y, new, of_params, of_x = jax.vmap(one, axis_name="devices")(*parts)
    for leaf in jax.tree.leaves(new):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    new = jax.tree.map(lambda leaf: leaf[0], new)
    of_params = jax.tree.map(lambda leaf: leaf.sum(0), of_params)
    return y.reshape(x.shape), new, of_params, of_x.reshape(x.shape)


def _chunks_of_pytorch(
    x: np.ndarray, weights: np.ndarray, size: int, params: Any, mean: Any, var: Any, momentum: float
) -> Any:
    """BatchNorm2d on each chunk, from the same statistics: outputs and gradients, mean and var."""
    outputs, of_x, modules = [], [], []
    for first in range(0, len(x), size):
        module = torch.nn.BatchNorm2d(x.shape[-1], momentum=momentum)
        _copy(module, weight=params["scale"], bias=params["bias"])
        _copy(module, running_mean=mean, running_var=var)
        chunk = channels_first(x[first : first + size]).requires_grad_()
        y = module(chunk)
        y.backward(channels_first(weights[first : first + size]))
        outputs.append(channels_last(y))
        of_x.append(channels_last(chunk.grad))
        modules.append(module)
    expected = {
        "y": np.concatenate(outputs),
        "of_x": np.concatenate(of_x),
        "of_scale": sum(module.weight.grad.numpy() for module in modules),
        "of_bias": sum(module.bias.grad.numpy() for module in modules),
    }
    means = np.mean([module.running_mean.numpy() for module in modules], 0)
    return expected, means, np.mean([module.running_var.numpy() for module in modules], 0)


def _training(seed: int) -> Context:
    return Context(jax.random.key(seed), train=True)


def _random_init(net: Layer, x: np.ndarray) -> Any:
    """Parameters of init's shapes that are all random, scales and biases too, as NumPy arrays."""
    params, state = net.init(jax.random.key(0), x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(np.float32), params
    )
    return params, state


def _evaluate(net: Layer, params: Any, state: Any, x: Any, ctx: Context = Context()) -> jax.Array:
    return net.apply(params, state, x, ctx)[0]


def _copy(module: torch.nn.Module, **values: Any) -> None:
    """Puts NumPy arrays or tensors into the parameters of a module; None where it has none."""
    for name, value in values.items():
        parameter = getattr(module, name, None)
        assert (parameter is None) == (value is None)
        if parameter is not None:
            assert parameter.shape == value.shape
            with torch.no_grad():
                parameter.copy_(torch.as_tensor(value))


def assert_close(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=2e-5)
