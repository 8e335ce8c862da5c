"""The layer that is to blame for numbers that are not finite, planted one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import ops
from convjax.combine import loop, remat, residual, serial, shaped, stack
from convjax.insight import nans
from convjax.insight.nans import blame
from convjax.layers import batch_norm, conv, dense, dropout
from convjax.training import optimizer as optimizers
from convjax.training import schedule
from convjax.training.loss import cross_entropy
from convjax.training.optimizer import hyper_of
from convjax.training.state import init_state
from convjax.training.step import Batch, make_step
from convjax.training.transforms import sharpness_aware


@pytest.fixture(autouse=True)
def compile_in_half_the_time(monkeypatch):
    options = {"xla_backend_optimization_level": "0"}
    monkeypatch.setattr(nans, "compiler_options", lambda platform: options)


SPEC = jax.ShapeDtypeStruct((4, 4, 4, 2), jnp.float32)
SGD = optimizers.make("sgd", schedule.make("constant", steps=10), args={"momentum": 0.9})


def hyper(rate=0.1):
    return hyper_of(rate, args={"momentum": 0.9}, sam_rho=0.05)


def batch():
    draw = np.random.default_rng(0)
    images = draw.standard_normal(SPEC.shape, np.float32)
    return Batch(images, draw.integers(0, 3, 4).astype(np.int32))


def blamed(net, plant=lambda state: state, images=batch(), rate=0.1, scaled=False, **how):
    def program(net, loss):
        return make_step(net, SGD, loss, **how)

    state = init_state(net, SGD, jax.random.key(0), SPEC, hyper(rate), scaled=scaled)
    state = plant(state._replace(step=jnp.int32(7)))
    return blame(program, net, cross_entropy, state, images, hyper(rate))


def put(tree, path, value):
    """The tree with one number of a leaf replaced."""
    name, _, rest = path.partition("/")
    new = put(tree[name], rest, value) if rest else tree[name].ravel().at[1].set(value)
    return {**tree, name: new if rest else new.reshape(tree[name].shape)}


NET = serial(
    stem=serial(conv(4, 3, bias=False), batch_norm(), ops.relu),
    block=residual(conv(4, 3), ops.relu, dropout(0.2), conv(4, 3)),
    pool=ops.global_avg_pool,
    head=dense(3),
)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "stem/conv1/kernel",
            np.nan,
            "stem/conv1 (conv) is the first whose output is not finite (output: 64 NaN of 256); "
            "its input is from ",
        ),
        ("block/conv2/bias", np.inf, "block/conv2 (conv) is the first whose output is not finite"),
    ],
)
def test_a_parameter_that_is_not_finite_is_found_in_its_layer(path, value, said):
    found = blamed(NET, lambda state: state._replace(params=put(state.params, path, value)))
    assert found.startswith(f"step 7: {said}")
    word = "1 NaN" if np.isnan(value) else "1 infinite"
    assert f"; its {path.rpartition('/')[2]} is {word} of " in found


def test_a_batch_statistic_that_is_not_finite_is_found_in_its_norm():
    found = blamed(
        NET, lambda state: state._replace(state=put(state.state, "stem/norm1/var", np.nan))
    )
    assert "stem/norm1 (norm) is the first whose output is not finite (var: 1 NaN of 4)" in found
    assert found.endswith("; its var is 1 NaN of 4")


def test_an_image_that_is_not_finite_is_told_of_the_images():
    images = batch().images.copy()
    images[1, 2, 3, 0] = np.nan
    found = blamed(NET, images=batch()._replace(images=images))
    assert found == "step 7: the images that the network is given are 1 NaN of 128"


def test_a_label_out_of_range_is_told_of_the_loss():
    found = blamed(NET, images=batch()._replace(labels=np.array([0, 1, 2, 3], np.int32)))
    assert found.startswith("step 7: the loss is the first that is not finite (output: 1 NaN of 1)")
    assert found.endswith(", labels from 0 to 3")


def logarithm(x):
    return jnp.log(x)  # NaN where x is negative


def inverse(x):
    return 1 / ops.relu(x)


def root(x):
    return x + jnp.sqrt(0 * jnp.square(x))  # finite, but for the slope of a root at 0


@pytest.mark.parametrize(
    ("function", "backward", "around", "path"),
    [
        (logarithm, False, lambda part: serial(inner=part), "inner"),
        (inverse, False, lambda part: residual(conv(4, 3), inner=part), "inner"),
        (logarithm, False, lambda part: stack(2, serial(conv(4, 3), inner=part)), "body/inner"),
        (root, True, lambda part: serial(inner=part), "inner"),
        (root, True, lambda part: loop(2, serial(conv(4, 3), inner=part)), "body/inner"),
        (root, True, lambda part: remat(serial(conv(4, 3), inner=part)), "inner"),
        (root, True, lambda part: shaped(lambda x: serial(conv(4, 3), inner=part)), "inner"),
    ],
)
def test_a_function_is_found_wherever_it_lies(function, backward, around, path):
    head = serial(ops.flatten, dense(3))
    found = blamed(serial(first=conv(4, 3), block=around(function), last=conv(4, 3), head=head))
    who = f"step 7: block/{path} ({function.__name__}) is the first "
    if backward:
        expected = who + "in the backward pass whose gradients are not finite (of its input: "
    else:
        expected = who + "whose output is not finite (output: "
    assert found.startswith(expected)
    assert ("; the gradient of its output is from " in found) == backward


def test_a_layer_is_found_in_a_batch_of_parts_with_sharpness_aware_gradients():
    net = serial(conv(4, 3), batch_norm(), inner=root, head=serial(ops.flatten, dense(3)))
    found = blamed(net, parts=2, sharpen=sharpness_aware)
    assert found.startswith("step 7: inner (root) is the first in the backward pass")


def test_a_sum_that_overflows_is_told_of_the_layer_whose_parts_are_finite():
    """Each of the two convolutions gives 2e38, which float32 holds; their sum it does not."""
    net = serial(
        block=residual(conv(4, 1), shortcut=conv(4, 1)), head=serial(ops.flatten, dense(3))
    )

    def plant(state):
        biases = {
            name: {**part, "bias": jnp.full(4, 2e38)}
            for name, part in state.params["block"].items()
        }
        return state._replace(params={**state.params, "block": biases})

    assert blamed(net, plant).startswith("step 7: block (residual) is the first whose output")


def test_an_update_that_overflows_is_told_of_the_optimizer():
    found = blamed(serial(ops.flatten, dense(3)), rate=3e38)
    assert found.startswith("step 7: all gradients are finite, and the parameter dense1/")


def test_a_gradient_that_overflows_in_half_precision_is_told_of_its_layer():
    """65,536 times that of one image's logits is just below what float16 holds; images are not."""

    def half(images):
        return images.astype(jnp.float16)

    one = Batch(*(each[:1] for each in batch()[:2]))
    found = blamed(serial(ops.flatten, dense(3)), images=one, scaled=True, prepare=half)
    assert found.startswith("step 7: dense1 (dense) is the first in the backward pass whose")
    assert "of its kernel: 2 infinite of 96" in found


def test_a_step_whose_numbers_are_finite_blames_nobody():
    found = blamed(serial(ops.flatten, dense(3)))
    assert found == "step 7: every number is finite when the step is taken once more"
