"""Multiply-adds are those of torchvision's networks, and of PyTorch's own counter."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import convjax
from convjax import (
    conv,
    dense,
    depthwise_conv,
    flatten,
    max_pool,
    models,
    relu,
    serial,
    stack,
    tree,
)
from convjax.combine import loop, remat
from convjax.insight.inspection import cost
from convjax.insight.inspection.program import traced
from convjax.layer import Context

ZOO = Path(__file__).parents[2] / "shared" / "zoo" / "reference"
ZOO_NETWORKS = sorted(path.stem for path in ZOO.glob("*.json"))
NONE = pytest.param("", marks=pytest.mark.skip(reason="no ../shared/zoo beside the repo"))


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def counted(net, *shape):
    return sum(cost.of_parts(traced(net, spec(*shape))).values())


def torch_count(function, *shapes):
    """Multiply-adds by PyTorch's counter, which counts two operations for each."""
    counter = FlopCounterMode(display=False)
    with counter:
        function(*(torch.zeros(shape) for shape in shapes))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ZOO_NETWORKS or [NONE])
def test_networks_compute_and_learn_as_much_as_those_of_torchvision(name):
    if name not in models.names():
        pytest.skip(f"{name} is no model of convjax")
    reference = json.loads((ZOO / f"{name}.json").read_text())
    size = reference["size"]
    program = traced(models.create(name, classes=1000), spec(1, size, size, 3))
    assert sum(cost.of_parts(program).values()) == reference["multiply_adds"]
    assert tree.count(program.params) == reference["parameters"]


@pytest.mark.parametrize(
    ("net", "theirs"),
    [
        (conv(6, 3), lambda x: F.conv2d(x, torch.zeros(6, 4, 3, 3), padding=1)),
        (
            conv(6, (3, 2), stride=2, dilation=2, padding=3, groups=2),
            lambda x: F.conv2d(
                x, torch.zeros(6, 2, 3, 2), stride=2, dilation=2, padding=3, groups=2
            ),
        ),
        (
            depthwise_conv(3, multiplier=2),
            lambda x: F.conv2d(x, torch.zeros(8, 1, 3, 3), padding=1, groups=4),
        ),
        (
            convjax.conv_transpose(6, 3, stride=2, padding=0, groups=2),
            lambda x: F.conv_transpose2d(x, torch.zeros(4, 3, 3, 3), stride=2, groups=2),
        ),
        (dense(5), lambda x: x.reshape(2 * 9 * 7, 4) @ torch.zeros(4, 5)),
    ],
)
def test_layers_compute_as_much_as_pytorch_counts(net, theirs):
    assert counted(net, 2, 9, 7, 4) == torch_count(theirs, (2, 4, 9, 7))


def test_a_step_of_training_computes_as_much_as_pytorch_counts():
    net = serial(conv(6, 3, stride=2), relu, conv(8, 3), max_pool(2), flatten, dense(5))
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec(2, 8, 8, 3))

    def loss(params, x):
        return jnp.sum(net.apply(params, state, x, Context(train=True))[0] ** 2)

    step = jax.make_jaxpr(jax.grad(loss))(params, spec(2, 8, 8, 3))

    def theirs(x, first, second, third):
        weights = [w.requires_grad_() for w in (first, second, third)]
        y = F.conv2d(x, weights[0], stride=2, padding=1)
        y = F.conv2d(y.relu(), weights[1], padding=1)
        y = F.max_pool2d(y, 2).flatten(1) @ weights[2]
        (y**2).sum().backward()

    shapes = (2, 3, 8, 8), (6, 3, 3, 3), (8, 6, 3, 3), (32, 5)
    assert cost.multiply_adds(step) == torch_count(theirs, *shapes)


def test_attention_counts_both_of_its_products():
    def attention(x):
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", x, x))
        return jnp.einsum("bqk,bkc->bqc", weights, x)

    assert counted(convjax.layer.as_layer(attention), 2, 7, 4) == 2 * (2 * 7 * 7 * 4)


@pytest.mark.parametrize(
    ("around", "times"), [(lambda f: stack(3, f), 3), (lambda f: loop(4, f), 4), (remat, 1)]
)
def test_a_layer_counts_as_often_as_it_is_called(around, times):
    one = 9 * 7 * 4 * 4 * 3 * 3
    net = serial(around(serial(conv(4, 3))))
    assert counted(net, 1, 9, 7, 4) == times * one


def test_resampling_by_fixed_weights_counts_nothing():
    net = serial(convjax.resize((4, 4)), convjax.adaptive_avg_pool(3), conv(2, 1))
    assert counted(net, 1, 9, 7, 4) == 3 * 3 * 4 * 2


def test_layers_are_charged_for_what_they_compute_themselves():
    net = serial(stem=conv(2, 3), body=serial(convjax.squeeze_excite(0.5), conv(3, 1)))
    found = cost.of_parts(traced(net, spec(1, 5, 5, 4)))
    assert found == {
        "stem": 25 * 9 * 4 * 2,
        "body/squeeze_excite1/squeeze": 2,
        "body/squeeze_excite1/expand": 2,
        "body/conv1": 25 * 2 * 3,
    }
    assert np.sum([*found.values()]) == 1954
