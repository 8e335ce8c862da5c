"""Optimizers against torch.optim, and what holds for every one of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from optimization import TREE, assert_same, constant, ours, theirs

from convjax import tree
from convjax.config import ConfigError
from convjax.training import schedule
from convjax.training.groups import check_patterns
from convjax.training.optimizer import decayed, hyper_of, make, names


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


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"(?s)config.optimizer.decay.*\*/kernle.*conv1/kernel"):
        check_patterns(TREE, ("*/kernle",), "config.optimizer.decay")
    for patterns in (), ("*",), ("*/kernel", "norm*"):
        check_patterns(TREE, patterns, "config.optimizer.decay")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("adamw", {"b1": 1.5}, r"args\.b1 is 1\.5: give 0 or more and less than 1"),
        ("sgd", {"momentum": "0.9"}, r"args\.momentum is '0\.9': give 0 or more and less than 1"),
        ("sgd", {"momentum": float("nan")}, r"args\.momentum is nan: give 0 or more"),
        ("sgd", {"nesterov": True}, r"nesterov without a momentum: give one, such as 0\.9"),
    ],
)
def test_a_momentum_that_cannot_be_is_refused(name, args, message):
    with pytest.raises(ConfigError, match=message):
        make(name, constant, args=args)
    make("lars", constant, args={"nesterov": True})  # Its momentum is 0.9 unless it is told.


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_leaf_that_does_not_decay_moves_as_though_there_were_no_decay(name):
    some, none = (ours(make(name, constant), hyper_of(0.01, decay)) for decay in (0.5, 0.0))
    for path, leaf in tree.leaves(some).items():
        same = np.array_equal(leaf, tree.leaves(none)[path])
        assert same == (not path.endswith("kernel")), path


def test_misspelt_names_are_told_the_nearest():
    with pytest.raises(ConfigError, match="'adamww': did you mean 'adamw'"):
        make("adamww", constant)
    with pytest.raises(ConfigError, match=r"'momentun', which sgd.*did you mean 'momentum'"):
        make("sgd", constant, args={"momentun": 0.9})
