"""What a config says about loss and optimizer, in the step itself and in what a person is shown."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from convjax import ops
from convjax.assemble import assemble, describe
from convjax.combine import serial
from convjax.config import ConfigError, Data, Experiment, Loss, Model, Optimizer
from convjax.layers import dense
from convjax.training import parallel, recipe, schedule
from convjax.training.loss import LOSSES, focal
from convjax.training.optimizer import hyper_of
from convjax.training.state import TrainState, init_state
from convjax.training.step import Batch, make_step

NET = serial(ops.flatten, dense(3))
SPEC = jax.ShapeDtypeStruct((16, 2, 2, 1), jnp.float32)
CONSTANT = schedule.make("constant", steps=5)
draw = np.random.default_rng(0)
BATCH = Batch(
    draw.normal(size=(16, 2, 2, 1)).astype(np.float32), draw.integers(0, 3, 16).astype(np.int32)
)


def made(loss, **settings):
    config = Experiment(loss=loss, optimizer=Optimizer("sgd", 0.5, **settings))
    params, _ = jax.eval_shape(NET.init, jax.random.key(0), SPEC)
    return recipe.make(config, CONSTANT, NET, params, 3)


@pytest.mark.parametrize("name", ["jit", "sharded", "shard_map", "pmap"])
def test_a_step_with_class_weights_is_that_of_torch_on_any_number_of_devices(name):
    weights = (1.0, 0.2, 3.0)
    optimizer, hyper = made(Loss(label_smoothing=0.1, class_weights=weights))
    mapper = parallel.make(name)
    state = init_state(NET, optimizer, jax.random.key(0), SPEC, hyper)
    kernel, bias = (np.asarray(state.params["dense1"][each]) for each in ("kernel", "bias"))
    theirs = [
        torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (kernel, bias)
    ]
    masked = np.arange(16) < 11
    shown = torch.tensor(BATCH.images[masked].reshape(11, -1), dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(
        shown @ theirs[0] + theirs[1],
        torch.tensor(BATCH.labels[masked]).long(),
        torch.tensor(weights, dtype=torch.float64),
        label_smoothing=0.1,
    )
    loss.backward()
    step = mapper.compile(make_step(NET, optimizer, LOSSES["cross_entropy"], axis=mapper.axis))
    batch = mapper.shard(BATCH._replace(mask=masked))
    state, metrics = step(mapper.replicate(state), batch, mapper.replicate(hyper))
    np.testing.assert_allclose(metrics.loss / 11, loss.item(), rtol=1e-5)
    assert int(metrics.count) == 11
    for each, leaf in zip(("kernel", "bias"), theirs):
        assert leaf.grad is not None
        expected = leaf.detach() - 0.5 * leaf.grad
        np.testing.assert_allclose(state.params["dense1"][each], expected, rtol=1e-4, atol=1e-6)


def test_other_numbers_of_a_loss_compile_nothing_and_members_may_have_their_own():
    traces = []

    def counted(*args, **numbers):
        traces.append(1)
        return focal(*args, **numbers)

    losses = [
        Loss("focal", 0.0, (1.0, 1.0, 1.0), {"gamma": 0}),
        Loss("focal", 0.2, (1.0, 2.0, 3.0), {"gamma": 3.0}),
    ]
    both = [made(loss) for loss in losses]
    optimizer, hypers = both[0][0], [hyper for _, hyper in both]
    step = make_step(NET, optimizer, counted)
    state = init_state(NET, optimizer, jax.random.key(0), SPEC, hypers[0])
    alone = jax.jit(step)
    lone = [alone(state, BATCH, hyper) for hyper in hypers]
    assert len(traces) == 1
    hyper = jax.tree.map(lambda *each: jnp.stack(each), *hypers)
    together = jax.jit(jax.vmap(step, in_axes=(None, None, 0)))(state, BATCH, hyper)
    for member, (after, metrics) in enumerate(lone):
        np.testing.assert_allclose(together[1].loss[member], metrics.loss, rtol=1e-5)
        found = together[0].params["dense1"]["kernel"][member]
        np.testing.assert_allclose(found, after.params["dense1"]["kernel"], rtol=1e-5)
    assert not np.allclose(lone[0][1].loss, lone[1][1].loss)


def test_the_numbers_of_a_config_reach_the_step():
    rules = ("dense1/bias: learning_rate=2, weight_decay=0",)
    config = Loss("sigmoid_focal", 0.1, (1.0, 2.0, 3.0), {"alpha": 0.5})
    _, hyper = made(
        config,
        weight_decay=0.01,
        args={"momentum": 0.9},
        rules=rules,
        layer_decay=0.8,
        sam_rho=0.05,
    )
    expected = hyper_of(
        0.5,
        0.01,
        0.1,
        {"momentum": 0.9},
        loss={"alpha": 0.5, "class_weights": [1, 2, 3]},
        layer_decay=0.8,
        sam_rho=0.05,
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(hyper))
    assert [float(*factor) for factor in hyper.rules] == [2, 0]
    for found, wanted in zip(
        *(jax.tree.leaves(each._replace(rules=())) for each in (hyper, expected)), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_a_config_sharpens_the_gradient_only_if_it_has_a_radius():
    assert recipe.sharpened(Optimizer()) is None
    sharpened = recipe.sharpened(Optimizer(sam_rho=0.05, rules=("dense1/bias: freeze",)))
    assert sharpened is not None

    def gradient(params):
        return jax.tree.map(jnp.square, params), "aux"

    params = {"dense1": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([5.0])}}
    grads, aux = sharpened(gradient, jnp.float32(0.5))(params)
    # Uphill is (9, 16), of norm sqrt(337); the bias stays.
    expected = (np.array([3, 4]) + 0.5 * np.array([9, 16]) / np.sqrt(337)) ** 2
    np.testing.assert_allclose(grads["dense1"]["kernel"], expected, rtol=1e-6)
    assert (grads["dense1"]["bias"], aux) == (25, "aux")


@pytest.mark.parametrize("steps", [2, 3])
def test_a_run_that_looks_ahead_is_evaluated_at_its_slow_weights(steps):
    """Of gradients of 1 at a rate of 0.5: the fast weights fall by 0.5 a step, and every second
    step all go back to 0.8 of the way, which is 0.8 from where the slow ones were."""
    config = Experiment(optimizer=Optimizer("sgd", 0.5, lookahead_steps=2, lookahead_share=0.8))
    params: Any = {"dense1": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
    optimizer, hyper = recipe.make(config, CONSTANT, NET, params, 3)
    opt = optimizer(hyper, jnp.int32(0)).init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for step in range(steps):
        updates, opt = optimizer(hyper, jnp.int32(step)).update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    state = TrainState(jnp.int32(steps), params, {}, opt, jax.random.key(0))
    fast, slow = {2: (-0.8, -0.8), 3: (-1.3, -0.8)}[steps]
    for leaf in jax.tree.leaves(params):
        np.testing.assert_allclose(leaf, np.full(leaf.shape, fast), rtol=1e-6)
    for leaf in jax.tree.leaves(recipe.evaluated(config.optimizer, state)):
        np.testing.assert_allclose(leaf, np.full(leaf.shape, slow), rtol=1e-6)


def test_a_run_that_looks_not_ahead_is_evaluated_at_its_parameters():
    state = TrainState(jnp.int32(0), {"kernel": jnp.ones(2)}, {}, (), jax.random.key(0))
    assert recipe.evaluated(Optimizer("sgd"), state) is state.params


def experiment(**settings):
    return assemble(
        Experiment(
            epochs=1,
            batch_size=500,
            data=Data("fashion_mini"),
            model=Model("small", {"width": 2}),
            optimizer=Optimizer(**settings),
        )
    )


def test_a_description_accounts_for_every_parameter():
    rules = ("stem/*: freeze", "head/*: learning_rate=10")
    text = describe(experiment(learning_rate=0.1, weight_decay=0.5, rules=rules))
    shown = text[text.index("trained by") :].split("\n\n")[0].splitlines()
    # By hand: a stem of 3 x 3 x 1 x 2, kernels of 72, 144, 288 and 576, a head of 72 x 10, norms.
    assert [line.split("  ")[0] for line in shown[1:]] == [
        "stem/*: freeze",
        *["head/*: learning_rate=10"] * 2,
        *["no rule"] * 2,
        "all",
    ]
    assert [line.split()[-4:] for line in shown[1:]] == [
        ["freeze", "3", "22", "frozen"],
        ["1", "720", "1", "0.5"],
        ["1", "10", "1", "0"],
        ["4", "1,080", "0.1", "0.5"],
        ["8", "48", "0.1", "0"],
        ["all", "17", "1,880"],
    ]


def test_a_warm_up_as_long_as_the_run_is_refused_with_both_lengths():
    with pytest.raises(ConfigError, match=r"warmup_steps is 99, which is 99 steps: .* a run of \d"):
        experiment(warmup_steps=99)
    assert experiment(warmup_steps=2).schedule(0) == 0.5
