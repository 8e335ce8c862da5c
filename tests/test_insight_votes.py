"""Votes, matches and painted images: exact sums, places found by hand, ascent that ascends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convjax import (
    capture,
    conv,
    dense,
    flatten,
    global_avg_pool,
    max_pool,
    models,
    relu,
    serial,
    squeeze_excite,
    tanh,
    weight_standardized,
)
from convjax.insight.explanation.matches import most_exciting, seen_from, strongest
from convjax.insight.explanation.visualise import total_variation, visualise
from convjax.insight.explanation.votes import by_place, last_dense, votes
from convjax.insight.inspection.receptive import receptive_fields
from convjax.insight.passes import passes

SEEN = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))


@functools.cache
def init(net):
    """Parameters and state of the right shapes, drawn by NumPy, which compiles nothing."""
    draw = np.random.default_rng(0)

    def drawn(leaf):
        scale = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(draw.normal(size=leaf.shape, scale=scale).astype(np.float32))

    params, state = jax.eval_shape(net.init, jax.random.key(0), SEEN)
    return jax.tree.map(drawn, params), jax.tree.map(lambda leaf: jnp.ones(leaf.shape), state)


def scaled(x):
    return x / 9


HEADS = {
    "flatten": serial(conv(4, 3), relu, max_pool(2), flatten, dense(3)),
    "pooled": serial(conv(4, 3), relu, squeeze_excite(0.5), global_avg_pool, dense(3)),
    "hidden": serial(conv(4, 3), relu, flatten, dense(6), tanh, dense(3)),
    "scaled": serial(conv(4, 3), relu, max_pool(4), flatten, dense(3, bias=False), scaled=scaled),
    "standardised": serial(conv(4, 3), relu, max_pool(4), flatten, weight_standardized(dense(3))),
}


@pytest.mark.parametrize("name", ["pooled", "hidden", "scaled", "standardised"])
def test_contributions_and_bias_sum_to_the_logits(name):
    net = HEADS[name]
    params, state = init(net)
    found = votes(net, params, state, SEEN)
    logits = np.asarray(net.apply(params, state, SEEN)[0])
    for label in range(3):
        terms = found.of(label).astype(np.float64)
        assert terms.shape == (3, found.weights.shape[0])
        np.testing.assert_allclose(terms.sum(-1) + found.bias[label], logits[:, label], atol=2e-5)


def test_a_contribution_is_what_the_logit_loses_without_its_feature():
    net = HEADS["hidden"]
    params, state = init(net)
    (_, seen), _ = capture(net, "tanh1").apply(params, state, SEEN)
    features = torch.from_numpy(np.array(seen["tanh1"]))
    layer = torch.nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(params["dense2"]["kernel"]).T))
        layer.bias.copy_(torch.from_numpy(np.array(params["dense2"]["bias"])))
        whole = layer(features)
        found = votes(net, params, state, SEEN)
        for feature in range(6):
            without = features.clone()
            without[:, feature] = 0
            lost = (whole - layer(without)).numpy()
            for label in range(3):
                np.testing.assert_allclose(found.of(label)[:, feature], lost[:, label], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "path"), [("flatten", "max_pool1"), ("pooled", "squeeze_excite1")]
)
def test_places_of_the_last_maps_sum_to_the_logit_where_only_sums_follow(name, path):
    net = HEADS[name]
    params, state = init(net)
    one_hot = jnp.zeros((3, 3)).at[:, 1].set(1)

    @jax.jit
    def run(params, state):
        there, back = passes(net, params, state, SEEN, one_hot, [path])
        return there[""], by_place(there[path], back[path])

    logits, places = map(np.asarray, run(params, state))
    places = places.astype(np.float64)
    bias = float(params["dense1"]["bias"][1])
    np.testing.assert_allclose(places.sum((1, 2)) + bias, logits[:, 1], atol=2e-5)


def test_a_network_that_does_not_end_in_a_dense_layer_has_no_votes():
    for net in (
        serial(conv(4, 3), relu, conv(3, 1), global_avg_pool),
        serial(flatten, dense(3), dense(3), lambda x: x[:, :2]),
    ):
        with pytest.raises(ValueError, match="does not end in a dense layer"):
            votes(net, *init(net), SEEN)
    net = serial(flatten, dense(3), tanh)
    with pytest.raises(ValueError, match="the logits are not the votes of dense1"):
        votes(net, *init(net), SEEN)


@pytest.mark.parametrize(
    ("name", "path"), [("lenet5", "dense3"), ("vgg11", "head/dense3"), ("airbench94", "head")]
)
def test_the_layer_that_votes_is_found(name, path):
    net = models.create(name, classes=10)
    spec = jax.ShapeDtypeStruct((1, 28, 28, 1) if name == "lenet5" else (1, 32, 32, 3), jnp.float32)
    assert last_dense(net, spec).path == path


# -- Matches ---------------------------------------------------------------------------------------


def test_the_strongest_match_lies_where_the_feature_was_put():
    # A cross at rows 2 to 4 and columns 3 to 5, and a feature that is the cross.
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.float32)
    image = np.zeros((1, 8, 8, 1), np.float32)
    image[0, 2:5, 3:6, 0] = cross
    net = serial(conv(2, 3))
    params = {
        "conv1": {"kernel": np.zeros((3, 3, 1, 2), np.float32), "bias": np.zeros(2, np.float32)}
    }
    params["conv1"]["kernel"][:, :, 0, 1] = cross
    params["conv1"]["kernel"][1, 1, 0, 0] = 0.5
    maps = np.asarray(net.apply(jax.tree.map(jnp.asarray, params), {}, jnp.asarray(image))[0])[0]
    first, second = strongest(maps, 5)
    assert (first.feature, first.place, first.value) == (1, (3, 4), 5.0)
    assert (second.feature, second.value) == (0, 0.5)
    field = receptive_fields(net, image)["conv1"]
    assert seen_from(field.at(*first.place), (8, 8)) == (slice(2, 5), slice(3, 6))
    assert seen_from(field.at(0, 7), (8, 8)) == (slice(0, 2), slice(6, 8))


def test_the_most_exciting_images_are_found_across_batches():
    net = HEADS["hidden"]
    params, state = init(net)
    images = np.random.default_rng(3).normal(size=(12, 8, 8, 1)).astype(np.float32)
    batches = [jnp.asarray(images[start : start + 4]) for start in (0, 4, 8)]
    found = most_exciting(net, params, state, batches, ["relu1", "conv1"])["relu1"]
    (_, seen), _ = capture(net, "relu1").apply(params, state, jnp.asarray(images))
    maps = np.asarray(seen["relu1"])
    for feature in range(4):
        image, row, column = np.unravel_index(maps[..., feature].argmax(), maps.shape[:3])
        assert found.images[feature] == image
        assert tuple(found.places[feature]) == (row, column)
        np.testing.assert_allclose(found.values[feature], maps[..., feature].max(), rtol=1e-5)
    with pytest.raises(ValueError, match="given no images"):
        most_exciting(net, params, state, [], ["relu1"])


# -- Painted images --------------------------------------------------------------------------------


def test_painted_images_raise_what_is_wanted_of_them():
    net = HEADS["hidden"]
    params, state = init(net)
    wanted = {"": np.zeros((3, 3)), "conv1": np.zeros((3, 4))}
    wanted[""][0, 1] = wanted[""][1, 2] = 1
    wanted["conv1"][2, 3] = 1

    def levels(images):
        (logits, seen), _ = capture(net, "conv1").apply(params, state, images)
        conv1 = np.asarray(seen["conv1"]).mean((1, 2))
        return np.array([logits[0, 1], logits[1, 2], conv1[2, 3]])

    painted = visualise(net, params, state, wanted, shape=(8, 8, 1), steps=40)
    assert (painted.shape, painted.dtype) == ((3, 8, 8, 1), jnp.float32)
    assert float(painted.min()) >= 0
    assert float(painted.max()) <= 1
    grey = levels(jnp.full((3, 8, 8, 1), 0.5))
    assert (levels(painted) > grey + 0.02).all()


def test_a_painted_image_is_smoother_where_variation_costs_more():
    net = HEADS["hidden"]
    params, state = init(net)
    rough, smooth = (
        visualise(net, params, state, {"": [[1, 0, 0]]}, shape=(8, 8, 1), steps=40, variation=cost)
        for cost in (0.0, 30.0)
    )
    assert float(total_variation(smooth)[0]) < 0.5 * float(total_variation(rough)[0])


def test_rows_of_unequal_number_are_refused():
    net = HEADS["hidden"]
    with pytest.raises(ValueError, match="the rows differ"):
        visualise(net, *init(net), {"": np.eye(3), "conv1": np.eye(4)}, shape=(8, 8, 1))
