"""Optimizers against torch.optim, and what holds for every one of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from convjax import tree
from convjax.config import ConfigError
from convjax.training import schedule
from convjax.training.optimizer import check_decay, decayed, hyper_of, make, names

constant = schedule.make("constant", steps=5)
PARAMS = {
    "conv1": {"kernel": np.random.default_rng(0).normal(size=(3, 3, 2, 4)), "bias": np.ones(4)},
    "norm1": {"scale": np.ones(4), "bias": np.zeros(4)},
}
TREE = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)


def gradients(step):
    draw = np.random.default_rng(100 + step)
    return jax.tree.map(lambda x: draw.normal(size=x.shape), PARAMS)


def ours(optimizer, hyper, steps=5):
    params, opt = TREE, optimizer(hyper, jnp.int32(0)).init(TREE)
    for step in range(steps):
        grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(step))
        updates, opt = optimizer(hyper, jnp.int32(step)).update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    return params


def theirs(make_optimizer, decay, clip=None, rates=None, steps=5):
    """The same steps by torch in float64; only kernels decay."""
    params = {
        name: torch.tensor(leaf, dtype=torch.float64, requires_grad=True)
        for name, leaf in tree.leaves(PARAMS).items()
    }
    kernels = [leaf for name, leaf in params.items() if name.endswith("kernel")]
    others = [leaf for name, leaf in params.items() if not name.endswith("kernel")]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = make_optimizer(groups)
    for step in range(steps):
        for name, grad in tree.leaves(gradients(step)).items():
            params[name].grad = torch.tensor(grad)
        if clip:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
        for group in optimizer.param_groups:
            group["lr"] = rates[step] if rates else group["lr"]
        optimizer.step()
    return {name: leaf.detach().numpy() for name, leaf in params.items()}


def assert_same(found, expected, rtol=2e-5):
    assert tree.leaves(found).keys() == expected.keys()
    for name, leaf in tree.leaves(found).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=rtol, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_and_decay_takes_the_steps_of_torch(nesterov):
    args = {"momentum": 0.9, "nesterov": nesterov}
    found = ours(make("sgd", constant, args=args), hyper_of(0.1, 0.05, args=args))
    expected = theirs(lambda each: torch.optim.SGD(each, lr=0.1, **args), 0.05)
    assert_same(found, expected)


def test_adamw_takes_the_steps_of_torch():
    found = ours(make("adamw", constant), hyper_of(0.01, 0.1))
    expected = theirs(lambda each: torch.optim.AdamW(each, lr=0.01, eps=1e-8), 0.1)
    assert_same(found, expected)


def test_adam_decays_by_adding_to_the_gradient_as_torch_does():
    args = {"b1": 0.8, "b2": 0.95}
    found = ours(make("adam", constant, args=args), hyper_of(0.01, 0.1, args=args))
    expected = theirs(lambda each: torch.optim.Adam(each, lr=0.01, betas=(0.8, 0.95)), 0.1)
    assert_same(found, expected)


def test_the_gradient_is_clipped_before_the_decay_is_added():
    found = ours(make("sgd", constant, clip_norm=0.5), hyper_of(0.1, 0.2))
    expected = theirs(lambda each: torch.optim.SGD(each, lr=0.1), 0.2, clip=0.5)
    assert_same(found, expected)


def test_the_learning_rate_follows_the_schedule():
    args = {"momentum": 0.9}
    factor = schedule.make("linear", steps=5)
    found = ours(make("sgd", factor, args=args), hyper_of(0.1, 0.05, args=args))
    rates = [0.1 * share for share in (1.0, 0.8, 0.6, 0.4, 0.2)]
    expected = theirs(lambda each: torch.optim.SGD(each, lr=0.1, momentum=0.9), 0.05, rates=rates)
    assert_same(found, expected)


@pytest.mark.parametrize("name", names())
def test_every_optimizer_keeps_the_structure_of_its_state_whatever_the_numbers(name):
    optimizer = make(name, constant)

    def two_steps(params, grads, hyper):
        opt = optimizer(hyper, jnp.int32(0)).init(params)
        for step in range(2):
            transform = optimizer(hyper, jnp.int32(step))
            updates, new = transform.update(grads, opt, params, value=jnp.float32(1))
            assert jax.tree.structure(new) == jax.tree.structure(opt)
            opt, params = new, optax.apply_updates(params, updates)
        return params

    shapes = jax.eval_shape(two_steps, TREE, TREE, hyper_of(0.1, 0.1))
    assert jax.tree.map(jnp.shape, TREE) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_the_usual_optimizers_are_there():
    usual = {"sgd", "adam", "adamw", "rmsprop", "lamb", "lars", "lion", "adagrad", "muon"}
    assert usual <= set(names())


def test_only_kernels_decay():
    assert tree.leaves(decayed(TREE, ("*/kernel",))) == {
        "conv1/bias": False,
        "conv1/kernel": True,
        "norm1/bias": False,
        "norm1/scale": False,
    }
    assert all(jax.tree.leaves(decayed(TREE, ("*",))))
    assert not any(jax.tree.leaves(decayed(TREE, ())))


def test_a_pattern_that_decays_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"(?s)config.optimizer.decay.*\*/kernle.*conv1/kernel"):
        check_decay(TREE, ("*/kernle",))
    for patterns in (), ("*",), ("*/kernel", "norm*"):
        check_decay(TREE, patterns)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_leaf_that_does_not_decay_moves_as_though_there_were_no_decay(name):
    some, none = (ours(make(name, constant), hyper_of(0.01, decay)) for decay in (0.5, 0.0))
    for path, leaf in tree.leaves(some).items():
        same = np.array_equal(leaf, tree.leaves(none)[path])
        assert same == (not path.endswith("kernel")), path


def test_misspelt_names_are_told_the_nearest():
    with pytest.raises(ConfigError, match="'adamww': did you mean 'adamw'"):
        make("adamww", constant)
    with pytest.raises(ConfigError, match=r"'momentun', which optax\.sgd.*did you mean 'momentum'"):
        make("sgd", constant, args={"momentun": 0.9})
