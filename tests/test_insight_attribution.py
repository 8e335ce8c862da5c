"""Attributions meet their axioms, and are those of PyTorch on the same weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convjax import (
    batch_norm,
    branch,
    capture,
    compose,
    conv,
    dense,
    flatten,
    gelu,
    global_avg_pool,
    group_norm,
    hard_swish,
    loop,
    max_pool,
    models,
    relu,
    remat,
    residual,
    serial,
    shaped,
    squeeze_excite,
    stack,
    tanh,
    walk,
)
from convjax.insight import relus
from convjax.insight.explanation.attribution import (
    cam,
    grad_cam,
    gradient,
    guided,
    guided_gradient,
    integrated_gradients,
    last_maps,
    scores,
    smooth_grad,
)
from convjax.insight.explanation.occlusion import occlusion
from convjax.insight.passes import IMAGES, called, passes, with_inputs

IMAGES_SEEN = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
CLASSES = jnp.array([2, 0])

net = serial(
    *(conv(6, 3), relu, max_pool(2), conv(8, 3, padding=1), relu),
    *(flatten, dense(12), relu, dense(3)),
)


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    """Parameters whose biases are not all zero, as after training."""
    return init(net, 2)


@functools.cache
def init(each, seed=0) -> tuple[Any, Any]:
    """Parameters and state of the right shapes, drawn by NumPy, which compiles nothing."""
    draw = np.random.default_rng(seed)

    def drawn(leaf):
        scale = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(draw.normal(size=leaf.shape, scale=scale).astype(np.float32))

    params, state = jax.eval_shape(each.init, jax.random.key(0), IMAGES_SEEN)
    return jax.tree.map(drawn, params), jax.tree.map(lambda leaf: jnp.ones(leaf.shape), state)


def left_half(x):
    return x[:, :, : x.shape[2] // 2]


# -- The oracle ------------------------------------------------------------------------------------


def in_torch(params, activation):
    """The same network in PyTorch, as a function of images in NHWC."""

    def kernel(name):
        return torch.from_numpy(np.array(params[name]["kernel"]))

    def bias(name):
        return torch.from_numpy(np.array(params[name]["bias"]))

    def run(images):
        x = images.permute(0, 3, 1, 2)
        x = activation(
            torch.nn.functional.conv2d(
                x, kernel("conv1").permute(3, 2, 0, 1), bias("conv1"), padding=1
            )
        )
        x = torch.nn.functional.max_pool2d(x, 2)
        x = activation(
            torch.nn.functional.conv2d(
                x, kernel("conv2").permute(3, 2, 0, 1), bias("conv2"), padding=1
            )
        )
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = activation(x @ kernel("dense1") + bias("dense1"))
        return x @ kernel("dense2") + bias("dense2")

    return run


def torch_gradient(params, activation):
    images = torch.from_numpy(np.array(IMAGES_SEEN)).requires_grad_()
    logits = in_torch(params, activation)(images)
    logits[torch.arange(2), torch.from_numpy(np.array(CLASSES)).long()].sum().backward()
    assert images.grad is not None
    return images.grad.numpy()


def test_the_gradient_is_that_of_pytorch(model: tuple[Any, Any]):
    expected = torch_gradient(model[0], torch.relu)
    np.testing.assert_allclose(
        gradient(net, *model, IMAGES_SEEN, CLASSES), expected, rtol=1e-4, atol=1e-6
    )


def test_guided_backpropagation_is_that_of_hooks_in_pytorch(model: tuple[Any, Any]):
    def hooked(x):
        relu = torch.nn.ReLU()
        relu.register_full_backward_hook(lambda module, grads, _: (grads[0].clamp(min=0),))
        return relu(x)

    # The hook clamps what a ReLU hands back, as in the code that circulates for the paper: there
    # ReLU's own slope has been applied already, which changes no sign.
    expected = torch_gradient(model[0], hooked)
    found = guided_gradient(net, *model, IMAGES_SEEN, CLASSES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    plain = gradient(net, *model, IMAGES_SEEN, CLASSES)
    assert float(jnp.abs(found - plain).max()) > 0.01


def in_wire(net, x):
    """A residual block that calls its ReLUs itself, each in another way."""
    y = net.conv2(relu(net.conv1(x)))
    return net.dense1(jnp.maximum(y + x, 0).reshape(x.shape[0], -1))


def test_guided_backpropagation_reaches_relus_that_a_wire_calls():
    block = compose(in_wire, conv1=conv(1, 3), conv2=conv(1, 3), dense1=dense(3))
    params, state = init(block, 4)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.relus = torch.nn.ModuleList([torch.nn.ReLU(), torch.nn.ReLU()])
            for each in self.relus:
                each.register_full_backward_hook(lambda module, grads, _: (grads[0].clamp(min=0),))

        def forward(self, images):
            x = images.permute(0, 3, 1, 2)
            y = self.relus[0](self.conv("conv1", x))
            y = self.relus[1](self.conv("conv2", y) + x).flatten(1)
            dense1 = {name: torch.from_numpy(np.array(v)) for name, v in params["dense1"].items()}
            return y @ dense1["kernel"] + dense1["bias"]

        def conv(self, name, x):
            kernel, bias = (torch.from_numpy(np.array(params[name][k])) for k in ("kernel", "bias"))
            return torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)

    images = torch.from_numpy(np.array(IMAGES_SEEN)).requires_grad_()
    logits = Block()(images)
    logits[torch.arange(2), torch.from_numpy(np.array(CLASSES)).long()].sum().backward()
    assert images.grad is not None
    found = guided_gradient(block, params, state, IMAGES_SEEN, CLASSES)
    np.testing.assert_allclose(found, images.grad.numpy(), rtol=1e-4, atol=1e-6)
    plain = gradient(block, params, state, IMAGES_SEEN, CLASSES)
    assert float(jnp.abs(found - plain).max()) > 0.01


def test_relus_are_found_in_scans_remats_and_inner_programs_but_not_in_other_activations():
    @jax.jit
    def inner(x):
        return jnp.clip(x, 0, 6) + hard_swish(x)  # of which the first is a ReLU

    each = serial(
        *(stack(3, serial(conv(1, 3), relu)), remat(serial(a=relu, b=conv(2, 3)))),
        *(group_norm(1), inner, flatten, dense(3)),  # A norm keeps its variance above 0.
    )
    found = relus.called(each, IMAGES_SEEN)
    assert found == [
        relus.Place("stack1/body/relu1", "relu"),
        relus.Place("serial1/a", "relu"),
        relus.Place("inner1", "inner"),
    ]
    params, state = init(each)
    changed = guided(each, IMAGES_SEEN)
    logits, _ = jax.jit(each.apply)(params, state, IMAGES_SEEN)
    np.testing.assert_allclose(
        jax.jit(changed.apply)(params, state, IMAGES_SEEN)[0], logits, rtol=1e-5, atol=1e-6
    )
    # Where each slope that comes back is below zero, nothing gets through the first ReLU.
    one = serial(stack(3, serial(conv(1, 3), relu)), flatten, dense(3))
    params, state = init(one)
    down = {**params, "dense1": {name: -jnp.abs(leaf) for name, leaf in params["dense1"].items()}}
    assert np.asarray(gradient(one, down, state, IMAGES_SEEN, CLASSES)).any()
    assert not np.asarray(guided_gradient(one, down, state, IMAGES_SEEN, CLASSES)).any()


def in_turns(x):
    """Two turns of a scan, each of them computed again for the gradient."""
    turn = jax.checkpoint(lambda x: relu(0.5 * x + 0.25))
    return jax.lax.scan(lambda x, _: (turn(x), None), x, length=2)[0]


WRITTEN = {
    "jit": jax.jit(relu),
    "zero first": lambda x: jnp.maximum(0.0, x),
    "array of zeros": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "vmap": jax.vmap(relu),
    "branch": lambda x: jax.lax.cond(x[0] < 0, relu, jnp.negative, x),
    "turns": in_turns,
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_relu_hands_back_only_positive_slopes_however_it_is_written(written: str, dtype: Any):
    x = jnp.array([-2, -1, 0.5, 1, 2], dtype)
    changed = guided(serial(WRITTEN[written]), x)
    y, pull = jax.vjp(lambda x: changed.apply({}, {}, x)[0], x)
    (found,) = pull(jnp.array([1, -1, 1, -1, 1], dtype))
    assert y.dtype == found.dtype == dtype
    np.testing.assert_array_equal(y, WRITTEN[written](x))
    # Each turn halves the slope.
    factor = 0.25 if written == "turns" else 1
    np.testing.assert_array_equal(found.astype(jnp.float32), [0, 0, factor, 0, factor])


@pytest.mark.parametrize("threshold", [1.0, np.eye(5, dtype=np.float32)[0]], ids=["one", "array"])
def test_a_maximum_with_other_thresholds_than_zero_is_no_relu(threshold: Any):
    net = serial(lambda x: jnp.maximum(x, threshold))
    with pytest.raises(ValueError, match="the network calls no ReLU"):
        guided(net, jnp.ones(5))


def test_several_classes_at_once_have_the_maps_that_they_have_alone(model: tuple[Any, Any]):
    both = jnp.stack([CLASSES, 1 - CLASSES // 2])
    for method in (gradient, integrated_gradients, guided_gradient, grad_cam, occlusion):
        found = method(net, *model, IMAGES_SEEN, both)
        for row, classes in enumerate(both):
            alone = method(net, *model, IMAGES_SEEN, classes)
            np.testing.assert_allclose(found[row], alone, rtol=1e-3, atol=1e-5)


def test_a_guided_network_computes_what_it_computed(model: tuple[Any, Any]):
    np.testing.assert_array_equal(
        guided(net, IMAGES_SEEN).apply(*model, IMAGES_SEEN)[0],
        net.apply(*model, IMAGES_SEEN)[0],
    )


def test_guided_backpropagation_of_a_network_without_relu_is_refused():
    smooth = serial(conv(2, 3), tanh, flatten, dense(2))
    with pytest.raises(ValueError, match="the network calls no ReLU"):
        guided_gradient(smooth, {}, {}, IMAGES_SEEN, CLASSES)


# -- The axioms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [None, 0.7], ids=["zero", "bright"])
def test_integrated_gradients_sum_to_the_difference_of_outputs(model: tuple[Any, Any], baseline):
    start = jnp.zeros_like(IMAGES_SEEN) if baseline is None else jnp.full((1, 1, 1, 1), baseline)
    if baseline is None:
        shares = integrated_gradients(net, *model, IMAGES_SEEN, CLASSES)
    else:
        shares = integrated_gradients(net, *model, IMAGES_SEEN, CLASSES, baseline=start, steps=512)
    logits = np.asarray(net.apply(*model, IMAGES_SEEN)[0])
    before = np.asarray(net.apply(*model, jnp.broadcast_to(start, IMAGES_SEEN.shape))[0])
    expected = (logits - before)[[0, 1], [2, 0]]
    np.testing.assert_allclose(np.asarray(shares).sum((1, 2, 3)), expected, rtol=0.01)


def test_integrated_gradients_of_a_polynomial_are_its_integral():
    # Of sum(x ** 3) from 0, dimension by dimension: x ** 3 itself.
    cubes = serial(lambda x: (x**3).sum((1, 2, 3))[:, None])
    found = integrated_gradients(cubes, {}, {}, IMAGES_SEEN, jnp.array([0, 0]), steps=200)
    np.testing.assert_allclose(found, np.asarray(IMAGES_SEEN) ** 3, rtol=1e-3, atol=1e-6)


def test_smooth_grad_without_noise_is_the_gradient_and_with_it_the_mean_over_noise(
    model: tuple[Any, Any],
):
    plain = gradient(net, *model, IMAGES_SEEN, CLASSES)
    still = smooth_grad(net, *model, IMAGES_SEEN, CLASSES, noise=0.0)
    np.testing.assert_allclose(still, plain, rtol=1e-4, atol=1e-6)
    # The mean slope of x ** 2 over normal noise around x is 2 x, whatever the noise.
    squares = serial(lambda x: (x**2).sum((1, 2, 3))[:, None])
    zero = jnp.array([0, 0])
    found = smooth_grad(squares, {}, {}, IMAGES_SEEN, zero, noise=0.1, samples=512)
    range_ = np.ptp(np.asarray(IMAGES_SEEN), axis=(1, 2, 3)).max()
    error = 6 * 2 * 0.1 * range_ / np.sqrt(512)
    np.testing.assert_allclose(found, 2 * np.asarray(IMAGES_SEEN), atol=error)
    assert float(jnp.abs(found - 2 * IMAGES_SEEN).max()) > error / 100


def test_grad_cam_of_a_network_that_looks_only_at_the_left_half_is_zero_on_the_right():
    # The second convolution sees one column more than is kept.
    looks_left = serial(
        *(conv(4, 3), relu, conv(4, 3), relu),
        *(
            lambda x: jnp.pad(left_half(x), ((0, 0), (0, 0), (0, 4), (0, 0))),
            conv(4, 1, bias=False),
        ),
        *(relu, global_avg_pool, dense(3)),
    )
    params, state = init(looks_left, 5)
    heats = [
        np.asarray(grad_cam(looks_left, params, state, IMAGES_SEEN, jnp.full(2, label)))
        for label in range(3)
    ]
    for heat in heats:
        assert heat.shape == (2, 8, 8)
        assert not heat[:, :, 4:].any()
    assert np.array(heats)[..., :4].any()


def test_grad_cam_is_the_sum_of_maps_weighted_by_their_mean_slopes(model: tuple[Any, Any]):
    (_, seen), _ = capture(net, "relu2").apply(*model, IMAGES_SEEN)
    maps = np.asarray(seen["relu2"])

    def score(maps_flat, image):
        hidden = np.maximum(maps_flat @ KERNEL[0] + BIAS[0], 0)
        return (hidden @ KERNEL[1] + BIAS[1])[[2, 0][image]]

    KERNEL = [np.asarray(model[0][name]["kernel"], np.float64) for name in ("dense1", "dense2")]
    BIAS = [np.asarray(model[0][name]["bias"], np.float64) for name in ("dense1", "dense2")]
    found = grad_cam(net, *model, IMAGES_SEEN, CLASSES)
    for image in range(2):
        flat = maps[image].astype(np.float64).ravel()
        steps = 1e-6 * np.eye(flat.size)
        slopes = [(score(flat + s, image) - score(flat - s, image)) / 2e-6 for s in steps]
        weights = np.reshape(slopes, maps.shape[1:]).mean((0, 1))
        expected = np.maximum((maps[image] * weights).sum(-1), 0)
        np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-5)


def test_occlusion_of_an_unused_region_changes_nothing():
    looks_left = serial(left_half, conv(4, 3), relu, flatten, dense(3))
    params, state = init(looks_left)
    drop = np.asarray(
        occlusion(looks_left, params, state, IMAGES_SEEN, CLASSES, window=2, stride=1)
    )
    assert not drop[:, :, 5:].any()  # Windows over column 4 reach no further than column 5.
    assert np.abs(drop[:, :, :4]).min() > 0


def test_occlusion_of_a_linear_score_is_the_mean_loss_over_the_windows_of_a_pixel():
    sums = serial(lambda x: x.sum((1, 2, 3))[:, None])
    image = np.zeros((1, 4, 5, 1), np.float32)
    image[0, 1, 2, 0] = 6
    found = occlusion(sums, {}, {}, jnp.asarray(image), jnp.array([0]), window=(2, 2), stride=1)
    # A window loses 6 if it covers the bright pixel: of the windows of a pixel, the share that do.
    expected = np.zeros((4, 5))
    for row, column in np.ndindex(4, 5):
        tops = [t for t in range(3) if t <= row <= t + 1]
        lefts = [left for left in range(4) if left <= column <= left + 1]
        hits = [
            (t, left) for t in tops for left in lefts if t <= 1 <= t + 1 and left <= 2 <= left + 1
        ]
        expected[row, column] = 6 * len(hits) / (len(tops) * len(lefts))
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_a_window_larger_than_the_image_is_refused(model: tuple[Any, Any]):
    with pytest.raises(ValueError, match=r"a window of \(9, 9\) does not fit"):
        occlusion(net, *model, IMAGES_SEEN, CLASSES, window=9)


def test_a_stride_that_leaves_out_pixels_is_refused(model: tuple[Any, Any]):
    with pytest.raises(ValueError, match=r"a stride of \(3, 3\) leaves out pixels"):
        occlusion(net, *model, IMAGES_SEEN, CLASSES, window=2, stride=3)


def test_no_image_of_a_batch_changes_the_maps_of_another(model: tuple[Any, Any]):
    both = occlusion(net, *model, IMAGES_SEEN, CLASSES)
    alone = occlusion(net, *model, IMAGES_SEEN[1:], CLASSES[1:])
    np.testing.assert_allclose(both[1:], alone, rtol=1e-3, atol=1e-5)


METHODS = {
    "gradient": gradient,
    "guided_gradient": guided_gradient,
    "integrated_gradients": integrated_gradients,
    "smooth_grad": smooth_grad,
    "grad_cam": grad_cam,
    "occlusion": occlusion,
}


@pytest.mark.parametrize("name", METHODS)
def test_randomised_weights_change_every_map(model: tuple[Any, Any], name):
    # Adebayo et al., Sanity checks for saliency maps, 2018: a map that stays tells of the image
    # alone. Here each layer in turn is drawn anew, from the last to the first, on its own.
    method = functools.partial(METHODS[name], net)
    params, state = model
    map_ = np.asarray(method(params, state, IMAGES_SEEN, CLASSES))
    fresh, _ = init(net, 9)
    for layer in reversed(fresh):
        other = method({**params, layer: fresh[layer]}, state, IMAGES_SEEN, CLASSES)
        alike = np.corrcoef(map_.ravel(), np.asarray(other).ravel())[0, 1]
        assert alike < 0.98, layer


def test_maps_are_the_same_inside_a_program_of_ones_own(model: tuple[Any, Any]):
    methods = (integrated_gradients, grad_cam, occlusion)

    @jax.jit
    def inside(params, state):
        return [method(net, params, state, IMAGES_SEEN, CLASSES) for method in methods]

    for method, found in zip(methods, inside(*model)):
        outside = method(net, *model, IMAGES_SEEN, CLASSES)
        np.testing.assert_allclose(found, outside, rtol=1e-4, atol=1e-5)


# -- Every network ---------------------------------------------------------------------------------


def inner(net, x):
    return net.pool(net.b(relu(net.a(x))) + net.b(x))


NETWORKS = {
    "branched": serial(
        branch(conv(2, 1), conv(2, 3)),
        residual(conv(4, 3), batch_norm(), relu, squeeze_excite(0.5)),
        *(global_avg_pool, dense(3)),
    ),
    "shared": serial(
        *(compose(inner, a=conv(1, 3), b=conv(1, 1), pool=max_pool(2)), relu, flatten, dense(3)),
    ),
    "repeated": serial(
        shaped(lambda x: conv(4 * x.shape[-1], 3)),
        *(loop(2, conv(4, 3)), stack(2, serial(conv(4, 3), relu)), flatten, dense(3)),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_has_its_maps(name):
    each = NETWORKS[name]
    params, state = init(each)

    @jax.jit
    def maps(images):
        given: Any = (each, params, state, images, CLASSES)
        return grad_cam(*given), gradient(*given)

    # In bfloat16 too, as a run with config.precision computes.
    heat, slopes = maps(IMAGES_SEEN.astype(jnp.bfloat16 if name == "branched" else jnp.float32))
    assert (heat.ndim, heat.shape[0], heat.dtype) == (3, 2, jnp.float32)
    assert (slopes.shape, slopes.dtype) == (IMAGES_SEEN.shape, jnp.float32)
    assert np.isfinite(heat).all()
    assert np.isfinite(slopes).all()
    assert np.asarray(slopes).any()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lenet5", "tanh2"),
        ("small", "stage2"),
        ("resnet20", "stage3"),
        ("vgg11_bn", "stage5/relu2"),
        ("all_cnn_c", "relu9"),
        ("convnext_tiny", "stage4"),
    ],
)
def test_grad_cam_looks_at_the_last_maps_before_places_are_given_up(name, path):
    network = models.create(name, classes=10)
    size = 28 if name == "lenet5" else 64
    found = last_maps(network, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert found == path
    assert found in dict(walk(network))


def test_a_network_without_maps_has_no_grad_cam():
    flat = serial(flatten, dense(3))
    params, state = init(flat)
    with pytest.raises(ValueError, match="no convolution that puts out maps"):
        grad_cam(flat, params, state, IMAGES_SEEN, CLASSES)
    with pytest.raises(ValueError, match="relu9: no part of the network"):
        grad_cam(net, *init(net), IMAGES_SEEN, CLASSES, path="relu9")
    with pytest.raises(ValueError, match="dense1 puts out"):
        grad_cam(net, *init(net), IMAGES_SEEN, CLASSES, path="dense1")


# -- What they are made of -------------------------------------------------------------------------


def test_calls_stand_in_the_order_of_their_ends_with_their_shapes():
    each = serial(
        *(conv(4, 3), residual(conv(4, 3), batch_norm(), relu), global_avg_pool, dense(3)),
    )
    found = [(call.path, call.given.shape, call.made.shape) for call in called(each, IMAGES_SEEN)]
    maps = (2, 8, 8, 4)
    assert found == [
        ("conv1", (2, 8, 8, 1), maps),
        *((f"residual1/{name}", maps, maps) for name in ("conv1", "norm1", "relu1")),
        *((f"residual1/{name}", maps, maps) for name in ("shortcut", "then")),
        ("residual1", maps, maps),
        ("global_avg_pool1", maps, (2, 4)),
        ("dense1", (2, 4), (2, 3)),
    ]


def test_what_is_called_several_times_is_left_out_but_not_what_it_is_in():
    calls = called(NETWORKS["repeated"], IMAGES_SEEN)
    assert calls[0].kind == "conv"  # It is what `shaped` has made.
    paths = [call.path for call in calls]
    assert paths == ["shaped1", "loop1", "stack1", "flatten1", "dense1"]


def test_the_gradient_of_an_activation_is_the_slope_of_the_score_by_it(model: tuple[Any, Any]):
    chosen = jax.nn.one_hot(CLASSES, 3)
    there, back = passes(net, *model, IMAGES_SEEN, chosen, ["dense1", "dense2"])
    hidden, kernel = np.asarray(there["dense1"]), np.asarray(model[0]["dense2"]["kernel"])
    np.testing.assert_array_equal(back["dense2"], chosen)
    expected = (hidden > 0) * kernel[:, [2, 0]].T
    np.testing.assert_allclose(back["dense1"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        back[IMAGES], torch_gradient(model[0], torch.relu), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(there[""], net.apply(*model, IMAGES_SEEN)[0], rtol=1e-5, atol=1e-6)


def test_what_goes_into_a_part_is_an_activation_too(model: tuple[Any, Any]):
    seeing, params, state = with_inputs(net, *model, ["dense2", "relu1", "max_pool1"])
    paths = ["dense2/input", "relu1/input", "max_pool1/input", "relu3", "conv1", "relu1"]
    (logits, seen), _ = capture(seeing, paths).apply(params, state, IMAGES_SEEN)
    np.testing.assert_array_equal(logits, net.apply(*model, IMAGES_SEEN)[0])
    np.testing.assert_array_equal(seen["dense2/input"], seen["relu3"])
    np.testing.assert_array_equal(seen["relu1/input"], seen["conv1"])
    np.testing.assert_array_equal(seen["max_pool1/input"], seen["relu1"])


def test_scores_of_a_number_that_is_no_class_are_nan(model: tuple[Any, Any]):
    found = scores(net, *model, IMAGES_SEEN, jnp.array([1, 3]))
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_gelu_maps_are_guided_where_that_is_asked_for():
    smooth = serial(conv(2, 3), gelu, flatten, dense(3))
    params, state = init(smooth)
    changed = guided(smooth, IMAGES_SEEN, kinds=["gelu"])
    slopes = gradient(changed, params, state, IMAGES_SEEN, CLASSES)

    @jax.jit
    def expected(images):
        def first(x):
            return conv(2, 3).apply(params["conv1"], {}, x)[0]

        maps, pull_first = jax.vjp(first, images)
        _, pull_second = jax.vjp(gelu, maps)
        back = params["dense1"]["kernel"][:, CLASSES].T.reshape(2, 8, 8, 2)
        return pull_first(pull_second(jnp.maximum(back, 0))[0])[0]

    np.testing.assert_allclose(slopes, expected(IMAGES_SEEN), rtol=1e-4, atol=1e-6)


def test_cam_weighs_each_map_by_the_mean_of_its_slopes_and_keeps_what_speaks_for():
    maps = jnp.array([[[[1.0, 2.0], [3.0, 0.5]]]])
    slopes = jnp.array([[[[1.0, -2.0], [0.0, 0.0]]]])
    # Weights 0.5 and -1: 0.5 - 2 is below zero, 1.5 - 0.5 = 1.
    np.testing.assert_allclose(cam(maps, slopes), [[[0.0, 1.0]]])
