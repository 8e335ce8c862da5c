"""Studies of a trained network, against NumPy, SciPy, dense Hessians, and pencil and paper."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import torch
from jax.flatten_util import ravel_pytree

from convjax import (
    batch_norm,
    compose,
    conv,
    dense,
    depthwise_conv,
    flatten,
    global_avg_pool,
    max_pool,
    models,
    relu,
    residual,
    serial,
    shaped,
    stack,
)
from convjax.combine import loop
from convjax.config import Experiment, UserError
from convjax.insight.studies import (
    dead,
    effective_field,
    filters,
    hessian,
    landscape,
    noise_scale,
    told,
)
from convjax.insight.studies.batches import batches_of, counted, mean_loss, sampled
from convjax.layer import Context
from convjax.runlog import RunLog
from convjax.trained import Trained
from convjax.training.feed import Images, Split
from convjax.training.step import normalise
from experiments import study as experiments_study

IMAGES = np.random.default_rng(0).normal(size=(24, 6, 6, 2)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 24)


def made(net, shape=IMAGES.shape[1:], seed=0):
    spec = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return net, *net.init(jax.random.key(seed), spec)


def dense_hessian(net, params, state):
    """All of the Hessian of the mean cross-entropy over all images at once."""
    flat, unravel = ravel_pytree(params)

    def loss(flat):
        logits = net.apply(unravel(flat), state, jnp.asarray(IMAGES), Context())[0]
        return -jax.nn.log_softmax(logits)[jnp.arange(len(LABELS)), jnp.asarray(LABELS)].mean()

    return np.asarray(jax.jit(jax.hessian(loss))(flat), np.float64)


# -- The Hessian -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A network with a convolution, a norm, a pool and a dense layer; its Hessian, and its batches.

    The last batch is not full.
    """
    parts = (conv(3, 3), batch_norm(), relu, max_pool(2), flatten, dense(3))
    net, params, state = made(serial(*parts))
    # The statistics of a trained network are not those of the beginning.
    state = jax.tree.map(lambda leaf: leaf + 0.5, state)
    return net, params, state, dense_hessian(net, params, state), batches_of(IMAGES, LABELS, 7)


def test_top_eigenvalues_are_those_of_the_dense_hessian_of_all_batches(small):
    net, params, state, matrix, batches = small
    found = hessian.top_eigenvalues(net, params, state, batches, top=4, tolerance=1e-4)
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(found.values, values[::-1][:4], rtol=2e-3)
    assert found.least == pytest.approx(values[0], abs=2e-3 * values[-1])
    assert found.size == len(matrix)
    assert found.products < found.size / 2


def test_product_with_the_hessian_is_that_of_the_dense_one(small):
    net, params, state, matrix, batches = small
    product, flat = hessian.hessian_product(net, params, state, batches)
    vector = np.random.default_rng(2).normal(size=flat.size).astype(np.float32)
    np.testing.assert_allclose(product(jnp.asarray(vector)), matrix @ vector, rtol=1e-3, atol=1e-4)


def test_trace_is_that_of_the_dense_hessian_within_its_error(small):
    net, params, state, matrix, batches = small
    found = hessian.hessian_trace(net, params, state, batches, vectors=30)
    assert abs(found.value - np.trace(matrix)) < 3.5 * found.error
    assert found.error < 0.2 * np.trace(matrix)


def test_lanczos_finds_the_eigenvalues_of_a_quadratic_with_their_bounds():
    rng = np.random.default_rng(0)
    turned, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    values = np.concatenate([np.linspace(-1, 1, 57), [5.0, 8.0, 20.0]])
    matrix = jnp.asarray((turned * values) @ turned.T, jnp.float32)
    found = hessian.lanczos(lambda v: jnp.matmul(matrix, v, precision="highest"), 60, top=3)
    assert (np.abs(found.values - [20, 8, 5]) <= found.bounds + 1e-4).all()
    assert abs(found.least + 1) <= found.least_bound + 1e-4
    assert found.weights.sum() == pytest.approx(1)


def test_lanczos_goes_on_where_its_vectors_span_all_that_they_can_reach():
    values = jnp.asarray([3.0, 1.0, 3.0, 3.0, 1.0, 0.0])
    found = hessian.lanczos(lambda v: values * v, 6, top=6)
    np.testing.assert_allclose(found.values, [3, 3, 3, 1, 1, 0], atol=1e-5)
    assert found.bounds.max() < 1e-5


def test_density_of_eigenvalues_integrates_to_one_and_has_their_mean():
    values = np.linspace(0, 10, 50)
    found = hessian.lanczos(lambda v: jnp.asarray(values, jnp.float32) * v, 50, top=1, most=50)
    places = np.linspace(-5, 15, 4001)
    shown = hessian.density(found, places, 0.3)
    assert np.trapezoid(shown, places) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(shown * places, places) == pytest.approx(5, abs=1.5)


def test_lanczos_refuses_more_eigenvalues_than_there_are():
    with pytest.raises(ValueError, match="top is 7: give 1 to 6"):
        hessian.lanczos(lambda v: v, 6, top=7)


# -- The landscape ---------------------------------------------------------------------------------


def squares(logits, labels, mask, smoothing):
    """A loss that is quadratic in the last layer: half the squared distance to 1."""
    each = 0.5 * jnp.square(logits - 1).sum(-1)
    return jnp.where(mask, each, 0).sum(), mask.sum()


def test_landscape_of_a_quadratic_loss_is_the_parabola_of_pencil_and_paper():
    net, params, state = made(serial(flatten, dense(3)))
    batches = batches_of(IMAGES, LABELS, 10)
    one, other = landscape.directions(net, params, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32))
    found = landscape.landscape(
        *(net, params, state, batches, (one, other)), loss=squares, steps=5, radius=2.0
    )
    rows = IMAGES.reshape(24, -1).astype(np.float64)
    kernel, k1, k2 = (np.asarray(each["dense1"]["kernel"]) for each in (params, one, other))
    expected = [
        [0.5 * ((rows @ (kernel + a * k1 + b * k2) - 1) ** 2).sum(1).mean() for b in found.shares]
        for a in found.shares
    ]
    assert found.shares.tolist() == [-2, -1, 0, 1, 2]
    np.testing.assert_allclose(found.loss, expected, rtol=1e-4)


def test_middle_of_a_landscape_is_the_loss_itself_with_the_statistics_of_evaluation(small):
    net, params, state, _, batches = small
    along = landscape.directions(net, params, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32))
    line = landscape.landscape(net, params, state, batches, along[:1], steps=3)
    plane = landscape.landscape(net, params, state, batches, along, steps=3, at_once=4)
    logits = np.asarray(net.apply(params, state, jnp.asarray(IMAGES), Context())[0], np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -logs[np.arange(24), LABELS].mean()
    assert line.centre == pytest.approx(expected, rel=1e-5)
    assert plane.centre == pytest.approx(expected, rel=1e-5)
    assert mean_loss(net, state, batches)(params) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(plane.loss[:, 1], line.loss, rtol=1e-5)


def test_each_filter_of_a_direction_is_as_long_as_the_filter_that_it_moves():
    parts = {"stem": conv(4, 3), "body": stack(3, conv(4, 3)), "depth": depthwise_conv(3)}
    net, params, _ = made(serial(**parts))
    spec = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    (found,) = landscape.directions(net, params, spec, count=1, seed=3)
    for name in ("stem", "depth"):
        own, drawn = (np.asarray(each[name]["kernel"]) for each in (params, found))
        np.testing.assert_allclose((drawn**2).sum((0, 1, 2)), (own**2).sum((0, 1, 2)), rtol=1e-5)
    own, drawn = (np.asarray(each["body"]["body"]["kernel"]) for each in (params, found))
    assert own.shape == (3, 3, 3, 4, 4)
    np.testing.assert_allclose((drawn**2).sum((1, 2, 3)), (own**2).sum((1, 2, 3)), rtol=1e-5)
    assert not np.asarray(found["body"]["body"]["bias"]).any()


def test_directions_repeat_by_seed_and_differ_from_each_other():
    net, params, _ = made(serial(flatten, dense(3)))
    spec = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    kernels = [
        np.asarray(each["dense1"]["kernel"])
        for seed in (0, 0, 1)
        for each in landscape.directions(net, params, spec, seed=seed)
    ]
    assert (kernels[0] == kernels[2]).all()
    assert not np.allclose(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[4])


# -- Filters ---------------------------------------------------------------------------------------


def test_similarity_is_that_of_numpy():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6))
    kernel[..., 5] = -2 * kernel[..., 1]
    kernel[..., 4] = 0
    found = filters.similarity(kernel)
    vectors = kernel.reshape(36, 6)
    for i in range(6):
        for j in range(6):
            lengths = np.linalg.norm(vectors[:, i]) * np.linalg.norm(vectors[:, j])
            expected = vectors[:, i] @ vectors[:, j] / lengths if lengths else 0
            assert found.cosine[i, j] == pytest.approx(expected, abs=1e-12)
    assert found.copies.tolist() == [[1, 5]]
    assert found.zeros.tolist() == [4]
    assert found.nearest[[1, 4, 5]] == pytest.approx([1, 0, 1])


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank_of_equal_singular_values_is_their_number(rank):
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))
    other, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))
    found = filters.similarity(3 * turned[:, :rank] @ other[:, :rank].T)
    assert found.rank == pytest.approx(rank)
    assert found.full == 7


def test_every_layer_with_filters_is_there_and_each_copy_of_a_stack():
    block = serial(conv(4, 3), relu)
    net = serial(conv(4, 3), stack(2, block), global_avg_pool, shaped(lambda x: dense(3)))
    net, params, _ = made(net)
    found = filters.filters(net, params, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32))
    assert [*found] == ["conv1", "stack1/body/conv1[0]", "stack1/body/conv1[1]", "shaped1"]
    kernel = np.asarray(params["stack1"]["body"]["conv1"]["kernel"], np.float64)[1]
    unit = kernel.reshape(-1, 4) / np.linalg.norm(kernel.reshape(-1, 4), axis=0)
    np.testing.assert_allclose(found["stack1/body/conv1[1]"].cosine, unit.T @ unit, atol=1e-12)


# -- Dead units ------------------------------------------------------------------------------------


def test_dead_units_are_those_that_the_network_was_made_with():
    net, params, state = made(serial(conv(5, 1), relu, flatten, dense(3)))
    kernel, bias = np.zeros((1, 1, 2, 5), np.float32), np.array([-1, 1, 0, 0, 0], np.float32)
    kernel[0, 0, 0, 2:] = [1, 1, -1]
    images = np.abs(IMAGES)
    images[:, 0, :, 0] = 0  # In the first row channel 2 is never above 0, nor 3.
    images[:, 3, 3, 0] = 0
    images[17, 3, 3, 0] = 9  # Once is enough: in a batch that is not the first.
    params = {**params, "conv1": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    (found,) = dead.census(net, params, state, batches_of(images, LABELS, 7))
    assert found.path == "relu1"
    # Channel 0 is below 0 everywhere, 4 is the negative of what is never negative.
    assert found.dead_channels.tolist() == [0, 4]
    assert (found.units, found.dead_units) == (180, 36 + 6 + 6 + 36)
    assert found.highest[3, 3].tolist() == [0, 1, 9, 9, 0]
    above = 24 * 36 + 2 * (images[..., 0] > 0).sum()
    assert found.active == pytest.approx(above / (24 * 180))
    assert found.images == 24


def test_images_that_only_fill_up_a_batch_wake_nothing():
    net, params, state = made(serial(relu, flatten, dense(3)))
    images = -np.ones((3, 6, 6, 2), np.float32)
    (batch,) = batches_of(images, LABELS[:3])
    padded = batch._replace(
        images=jnp.concatenate([batch.images, jnp.ones((1, 6, 6, 2))]),
        labels=jnp.zeros(4, jnp.int32),
        mask=jnp.asarray([True, True, True, False]),
    )
    (found,) = dead.census(net, params, state, [padded])
    assert found.dead_units == found.units == 72
    assert (found.active, found.images) == (0.0, 3)


def test_every_relu_is_counted_in_stacks_loops_residuals_and_shaped_parts():
    block = residual(conv(2, 3), relu, conv(2, 3), then=relu)
    net = serial(
        shaped(lambda x: relu),
        loop(2, serial(conv(2, 3), relu)),
        stack(2, block),
        flatten,
        dense(3),
    )
    net, params, state = made(net)
    found = dead.census(net, params, state, batches_of(IMAGES, LABELS, 24))
    assert [each.path for each in found] == [
        "shaped1",
        *("loop1/body/relu1[0]", "loop1/body/relu1[1]"),
        *("stack1/body/relu1[0]", "stack1/body/relu1[1]"),
        *("stack1/body/then[0]", "stack1/body/then[1]"),
    ]
    x, kernel = np.maximum(IMAGES, 0), params["loop1"]["body"]["conv1"]
    np.testing.assert_array_equal(found[0].highest, x.max(0))
    one = conv(2, 3).apply(kernel, {}, jnp.asarray(x))[0]
    np.testing.assert_allclose(found[1].highest, np.maximum(one, 0).max(0), rtol=1e-4, atol=1e-5)
    two = conv(2, 3).apply(kernel, {}, jnp.maximum(one, 0))[0]
    np.testing.assert_allclose(found[2].highest, np.maximum(two, 0).max(0), rtol=1e-4, atol=1e-5)


def test_relus_that_a_wire_calls_are_counted_under_the_path_of_its_layer():
    def in_wire(net, x):
        return jnp.maximum(net.conv2(relu(net.conv1(x))) + x, 0)

    block = compose(in_wire, conv1=conv(2, 3), conv2=conv(2, 3))
    net, params, state = made(serial(relu, block=block, then=stack(2, block), last=flatten))
    found = dead.census(net, params, state, batches_of(IMAGES, LABELS, 7))
    assert [(each.path, each.kind) for each in found] == [
        ("relu1", "relu"),
        *(("block[0]", "relu in in_wire"), ("block[1]", "relu in in_wire")),
        *(
            (f"then/body[{call}][{copy}]", "relu in in_wire")
            for call, copy in ((0, 0), (0, 1), (1, 0), (1, 1))
        ),
    ]
    x = torch.from_numpy(np.maximum(IMAGES, 0)).permute(0, 3, 1, 2)

    def by_torch(own, x):
        def conv(name, x):
            kernel, bias = (torch.from_numpy(np.array(own[name][k])) for k in ("kernel", "bias"))
            return torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)

        inner = torch.relu(conv("conv1", x))
        return inner, torch.relu(conv("conv2", inner) + x)

    inner, x = by_torch(params["block"], x)
    expected = [inner, x]
    for copy in range(2):
        own = jax.tree.map(lambda leaf, copy=copy: leaf[copy], params["then"]["body"])
        inner, x = by_torch(own, x)
        expected += [inner, x]
    in_order = [expected[place] for place in (0, 1, 2, 4, 3, 5)]
    for each, maps in zip(found[1:], in_order):
        highest = maps.permute(0, 2, 3, 1).numpy().max(0)
        np.testing.assert_allclose(each.highest, highest, rtol=1e-3, atol=1e-5)
        assert each.dead_units == (highest <= 0).sum()


def test_a_network_without_activations_is_refused_with_what_it_has():
    net, params, state = made(serial(flatten, dense(3)))
    with pytest.raises(UserError, match="are of the kinds dense, flatten"):
        dead.census(net, params, state, batches_of(IMAGES, LABELS))


def test_relus_in_branches_alone_are_refused_for_what_they_give_is_lost():
    def branched(x):
        return jax.lax.cond(x.sum() > 0, relu, jnp.negative, x)

    net, params, state = made(serial(branched, flatten, dense(3)))
    with pytest.raises(UserError, match="in branches of lax"):
        dead.census(net, params, state, batches_of(IMAGES, LABELS))


# -- The effective receptive field -----------------------------------------------------------------


def test_effective_field_of_positive_linear_convolutions_is_their_kernels_convolved():
    net, params, state = made(serial(*(conv(1, 3, bias=False) for _ in range(3))), (15, 15, 1))
    params = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.1, params)
    images = np.random.default_rng(0).normal(size=(5, 15, 15, 1)).astype(np.float32)
    found = effective_field.effective_fields(net, params, state, images, ["conv3"], size=2)["conv3"]
    one, two, three = (np.asarray(params[f"conv{n}"]["kernel"])[..., 0, 0] for n in (1, 2, 3))
    # A correlation goes back by the kernel as it stands.
    back = scipy.signal.convolve(scipy.signal.convolve(one, two), three)
    expected = np.zeros((15, 15))
    expected[4:11, 4:11] = back
    np.testing.assert_allclose(found.map, expected, rtol=1e-5, atol=1e-6)
    mass, pixels = back.sum(1) / back.sum(), np.arange(4, 11)
    mean = (mass * pixels).sum()
    assert found.centre[0] == pytest.approx(mean, rel=1e-5)
    assert found.deviation[0] == pytest.approx(
        np.sqrt((mass * (pixels - mean) ** 2).sum()), rel=1e-5
    )
    assert found.size.tolist() == [7, 7]
    assert found.share == pytest.approx((back > (1 - 0.9545) * back.max()).mean())


def test_effective_field_grows_like_the_square_root_of_the_depth():
    net, params, state = made(serial(*(conv(1, 3, bias=False) for _ in range(9))), (21, 21, 1))
    params = jax.tree.map(jnp.ones_like, params)
    paths = ["conv1", "conv4", "conv9"]
    found = effective_field.effective_fields(net, params, state, np.ones((1, 21, 21, 1)), paths)
    # Each window of ones adds the variance of three equally likely steps, 2/3.
    for depth, path in zip((1, 4, 9), paths):
        assert found[path].deviation == pytest.approx([np.sqrt(depth * 2 / 3)] * 2, rel=1e-4)
        assert found[path].size.tolist() == [2 * depth + 1] * 2
    assert found["conv1"].share == 1 > found["conv4"].share > found["conv9"].share


def test_layers_without_places_have_no_effective_field():
    net, params, state = made(serial(conv(3, 3), global_avg_pool, dense(3)))
    spec = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    assert effective_field.spatial(net, spec) == ["conv1"]
    with pytest.raises(ValueError, match=r"dense1: no part .* these are conv1"):
        effective_field.effective_fields(net, params, state, IMAGES, ["dense1"])


# -- The noise scale -------------------------------------------------------------------------------


def test_noise_scale_of_gradients_with_a_known_covariance_is_found():
    rng = np.random.default_rng(0)
    mean, deviations = np.full(20, 0.3), np.linspace(0.5, 2, 20)
    each = mean + deviations * rng.normal(size=(400, 64, 20))
    small = each.reshape(400, 8, 8, 20).mean(2)
    found = noise_scale.noise_scale(
        (small**2).sum(-1).mean(1), (each.mean(1) ** 2).sum(-1), small_size=8, large_size=64
    )
    trace, square = (deviations**2).sum(), (mean**2).sum()
    assert abs(found.trace - trace) < 3 * found.trace_error < 0.1 * trace
    assert abs(found.square - square) < 3 * found.square_error < 0.2 * square
    assert abs(found.scale - trace / square) < 3 * found.error < 0.3 * trace / square


def test_error_of_the_noise_scale_is_the_spread_of_many_estimates():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        each = 0.5 + rng.normal(size=(30, 16, 10))
        small, large = (each.reshape(30, 4, 4, 10).mean(2) ** 2), each.mean(1) ** 2
        found.append(noise_scale.noise_scale(small.sum(-1).mean(1), large.sum(-1), 4, 16))
    spread = np.std([each.scale for each in found])
    assert np.median([each.error for each in found]) == pytest.approx(spread, rel=0.2)


def test_noise_scale_of_a_network_has_the_covariance_of_its_images_gradients():
    net, params, state = made(serial(conv(2, 3), relu, flatten, dense(3)))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(256, 6, 6, 2)).astype(np.float32)
    labels = rng.integers(0, 3, 256)

    def loss(params, image, label):
        logits = net.apply(params, state, image[None], Context())[0][0]
        return -jax.nn.log_softmax(logits)[label]

    each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, jnp.asarray(images), jnp.asarray(labels))
    rows = np.concatenate([np.asarray(leaf).reshape(256, -1) for leaf in jax.tree.leaves(each)], 1)
    found = noise_scale.gradient_noise_scale(
        net, params, state, batches_of(images, labels, 4), group=8
    )
    assert abs(found.trace - rows.var(0, ddof=1).sum()) < 3.5 * found.trace_error
    groups = (rows.reshape(8, 32, -1).mean(1) ** 2).sum(1)
    few = (rows.reshape(64, 4, -1).mean(1) ** 2).sum(1).reshape(8, 8).mean(1)
    assert found.square == pytest.approx(((32 * groups - 4 * few) / 28).mean(), rel=1e-3)
    assert (found.small, found.large, found.groups) == (4, 32, 8)


def test_too_few_batches_for_two_groups_are_refused():
    net, params, state = made(serial(flatten, dense(3)))
    with pytest.raises(ValueError, match="3 full batches are 0 groups of 8"):
        noise_scale.gradient_noise_scale(net, params, state, batches_of(IMAGES, LABELS, 8))


# -- Every network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "convnext_tiny"])
def test_studies_that_compute_shapes_alone_take_networks_of_the_zoo(name):
    net = models.create(name, classes=4)
    spec = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), spec)
    assert effective_field.spatial(net, spec)
    drawn = jax.eval_shape(
        lambda params: landscape.directions(net, params, spec, count=1)[0], params
    )
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)


def test_a_part_that_a_wire_calls_twice_is_told_apart():
    def twice(net, x):
        return net.act(net.act(x) - 1)

    net, params, state = made(serial(compose(twice, act=relu), flatten, dense(3)))
    found = dead.census(net, params, state, batches_of(IMAGES, LABELS))
    assert [each.path for each in found] == ["twice1/act[0]", "twice1/act[1]"]
    np.testing.assert_allclose(found[1].highest, np.maximum(IMAGES - 1, 0).max(0), rtol=1e-6)


# -- What experiments.study tells ------------------------------------------------------------------


@pytest.fixture
def model(small, tmp_path):
    """A run of the small network, whose images are bytes in memory."""
    net, params, state, *_ = small
    pixels = (40 * IMAGES + 128).clip(0, 255).astype(np.uint8)
    split = Split(Images(pixels, LABELS.astype(np.int32)), ("a", "$b$", "c"))
    prepare = normalise(np.full(2, 0.5), np.full(2, 0.2))
    config = Experiment(name="a_$run$", batch_size=8)
    about = (RunLog(tmp_path), config, "newest", net, params, state, prepare, (6, 6, 2))
    return Trained(*about, split.classes, {"train[:50%]": split})


def test_every_study_of_a_run_leaves_its_numbers_and_a_picture(model):
    wanted = told.Wanted("train[:50%]", images=24)
    seen = {each.name: each for each in told.study(model, told.names_of("all"), wanted)}
    assert [*seen] == ["hessian", "landscape", "dead", "filters", "field", "noise"]
    for name, each in seen.items():
        stem = model.log.folder / "studies" / f"{name}-train_:50%_"
        written = json.loads(stem.with_name(f"{stem.name}.json").read_text())
        assert (written["study"], written["split"]) == (name, "train[:50%]")
        assert stem.with_name(f"{stem.name}.png").read_bytes().startswith(b"\x89PNG")
        assert each.text.splitlines()[0].isprintable()
    assert not (model.log.folder / "config.json").exists()
    logits = np.asarray(model.logits(model.split("train[:50%]").sample(24)), np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    centre = -logs[np.arange(24), LABELS].mean()
    assert seen["landscape"].values["centre"] == pytest.approx(centre, rel=1e-5)
    highest = np.load(model.log.folder / "studies" / "dead-train_:50%_.npz")["relu1"]
    assert (highest <= 0).sum() == seen["dead"].values["layers"][0]["dead_units"]


def test_the_same_seed_draws_the_same_images_of_a_split(model):
    first, again, other = (
        sampled(model, "train[:50%]", 10, seed=seed, size=4) for seed in (0, 0, 1)
    )
    assert counted(first) == 10
    assert all((a.images == b.images).all() for a, b in zip(first, again))
    assert not all((a.images == b.images).all() for a, b in zip(first, other))
    pixels, labels = model.split("train[:50%]").source
    for image, label in zip(first[0].images, first[0].labels):
        assert any((image == own).all() and label == mark for own, mark in zip(pixels, labels))


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="'hesian' is no study; did you mean 'hessian'"):
        told.names_of("dead,hesian")
    assert told.names_of("noise, dead,noise") == ["noise", "dead"]


def test_a_launcher_refuses_counts_below_what_they_can_be(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="--images is 0: give 1 or more"):
        experiments_study.main(["study", f"--workdir={tmp_path}", "--images=0"])
    assert len(Path(str(experiments_study.__file__)).read_text("utf-8").splitlines()) < 80
