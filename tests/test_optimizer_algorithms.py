"""Optimizers against the formulas of their papers, written in float64, and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from optimization import PARAMS, assert_same, constant, gradients, ours, theirs

from convjax import tree
from convjax.config import ConfigError
from convjax.training import schedule
from convjax.training.algorithms import ALGORITHMS, find, names
from convjax.training.optimizer import hyper_of, make

norm = np.linalg.norm
falling = schedule.make("linear", steps=5)  # 1, 0.8, 0.6, 0.4, 0.2
RATES = [1.0, 0.8, 0.6, 0.4, 0.2]


def by_formula(step_of, rate, steps=5):
    """The parameters after steps that a formula makes, leaf by leaf, in float64.

    step_of: `(number, rate, gradient, parameter, memory) -> change`; memory is a dict of its own.
    """
    params = {path: np.array(leaf, np.float64) for path, leaf in tree.leaves(PARAMS).items()}
    memory = {path: {"path": path, "decays": path.endswith("kernel")} for path in params}
    for number in range(steps):
        for path, grad in tree.leaves(gradients(number)).items():
            share = rate * RATES[number]
            params[path] += step_of(number + 1, share, grad, params[path], memory[path])
    return params


def adam_direction(n, g, memory, b1, b2, eps):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    return memory["m"] / (1 - b1**n) / (np.sqrt(memory["v"] / (1 - b2**n)) + eps)


def test_lamb_takes_the_steps_of_its_paper():
    def step(n, rate, g, w, memory):
        r = adam_direction(n, g, memory, 0.9, 0.999, 1e-6)
        if memory["decays"]:
            r = r + 0.1 * w
            r = r * norm(w) / norm(r)
        return -rate * r

    assert_same(ours(make("lamb", falling), hyper_of(0.02, 0.1)), by_formula(step, 0.02))


def test_lars_takes_the_steps_of_simclr():
    """`LARSOptimizer` of SimCLR's code, with what does not decay left out of the adaptation."""

    def step(n, rate, g, w, memory):
        g = g + 0.1 * w if memory["decays"] else g
        local = 0.02 * norm(w) / norm(g) if memory["decays"] else 1.0
        memory["v"] = 0.8 * memory.get("v", 0) + rate * local * g
        return -memory["v"]

    args = {"trust_coefficient": 0.02, "momentum": 0.8}
    found = ours(make("lars", falling, args=args), hyper_of(0.5, 0.1, args=args))
    assert_same(found, by_formula(step, 0.5))


def test_lion_takes_the_steps_of_its_paper():
    """Chen et al., Symbolic discovery of optimization algorithms, 2023, algorithm 2."""

    def step(n, rate, g, w, memory):
        sign = np.sign(0.9 * memory.get("m", 0) + 0.1 * g)
        memory["m"] = 0.99 * memory.get("m", 0) + 0.01 * g
        return -rate * (sign + (0.1 * w if memory["decays"] else 0))

    assert_same(ours(make("lion", falling), hyper_of(0.01, 0.1)), by_formula(step, 0.01))


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_tf_takes_the_steps_of_tensorflow(centered):
    """The update of `tf.compat.v1.train.RMSPropOptimizer` as its documentation writes it."""

    def step(n, rate, g, w, memory):
        g = g + 0.1 * w if memory["decays"] else g
        memory["ms"] = 0.9 * memory.get("ms", 1) + 0.1 * g**2
        memory["mg"] = 0.9 * memory.get("mg", 0) + 0.1 * g
        root = np.sqrt(memory["ms"] - (memory["mg"] ** 2 if centered else 0) + 1e-3)
        memory["mom"] = 0.8 * memory.get("mom", 0) + rate * g / root
        return -memory["mom"]

    args = {"momentum": 0.8, "eps": 1e-3, "centered": centered}
    found = ours(make("rmsprop_tf", falling, args=args), hyper_of(0.05, 0.1, args=args))
    assert_same(found, by_formula(step, 0.05))


def test_rmsprop_of_optax_takes_the_steps_of_torch_if_its_epsilon_stands_outside():
    args = {"decay": 0.9, "momentum": 0.8, "eps": 1e-3, "eps_in_sqrt": False}
    found = ours(make("rmsprop", constant, args=args), hyper_of(0.05, 0.1, args=args))
    expected = theirs(
        lambda each: torch.optim.RMSprop(each, lr=0.05, alpha=0.9, eps=1e-3, momentum=0.8), 0.1
    )
    assert_same(found, expected)


def muon_of_its_authors(grad, steps=5):
    """`zeropower_via_newtonschulz5` and its scale, of a kernel as a matrix [out, in], as there."""
    x = grad.reshape(-1, grad.shape[-1]).T
    rows, columns = x.shape
    x = x.T if rows > columns else x
    x = x / (norm(x) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if rows > columns else x
    return (max(1, rows / columns) ** 0.5 * x).T.reshape(grad.shape)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_takes_the_steps_of_its_authors(nesterov):
    """With the corrections of Dozat's Nadam, 2016, in place of plain Nesterov momentum."""

    def step(n, rate, g, w, memory):
        if not memory["decays"]:
            return -rate * 0.1 * adam_direction(n, g, memory, 0.9, 0.95, 1e-10)
        memory["m"] = 0.95 * memory.get("m", 0) + 0.05 * g
        ahead = 0.05 * g / (1 - 0.95**n) + 0.95 * memory["m"] / (1 - 0.95 ** (n + 1))
        return -rate * (muon_of_its_authors(ahead if nesterov else memory["m"]) + 0.1 * w)

    args = {"adam_share": 0.1, "nesterov": nesterov}
    found = ours(make("muon", falling, args=args), hyper_of(0.02, 0.1, args=args))
    assert_same(found, by_formula(step, 0.02), rtol=2e-4)


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 1, 4, 16), (5, 8, 4), (24, 6), (3, 3, 1, 32)])
def test_the_step_of_muon_is_nearly_orthogonal_over_windows_and_inputs(shape):
    grad = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    optimizer, params = make("muon", constant)(hyper_of(1.0), jnp.int32(0)), {"kernel": grad}
    change, _ = jax.jit(optimizer.update)({"kernel": grad}, optimizer.init(params), params)
    matrix = -np.asarray(change["kernel"]).reshape(-1, shape[-1])
    singular = np.linalg.svd(matrix)[1] / max(1, shape[-1] / matrix.shape[0]) ** 0.5
    assert ((singular > 0.6) & (singular < 1.3)).all(), singular
    np.testing.assert_allclose(change["kernel"], -muon_of_its_authors(grad), atol=1e-4)


def test_muon_leaves_the_kernels_that_it_is_told_to_adam():
    args = {"adam_paths": ("conv1/*",), "adam_share": 0.5}
    found = ours(make("muon", constant, args=args), hyper_of(0.02, 0.0, args=args))
    adam = {"b1": 0.9, "b2": 0.95, "eps": 1e-10}
    expected = ours(make("adam", constant, args=adam), hyper_of(0.01, 0.0, args=adam))
    assert_same(found, tree.leaves(expected))


def test_a_name_is_one_of_ours_or_of_optax_or_a_function_of_any_module():
    assert find("lars") is ALGORITHMS["lars"]
    assert find("adabelief") is find("optax:adabelief") is optax.adabelief
    assert find("optax:lars") is optax.lars
    assert find("optax.contrib:muon") is optax.contrib.muon
    assert set(ALGORITHMS) <= set(names())
    with pytest.raises(ConfigError, match=r"'moun': did you mean 'muon'"):
        find("moun")
    with pytest.raises(ConfigError, match=r"name 'optax:larz': .* did you mean 'lars'"):
        find("optax:larz")
    with pytest.raises(ConfigError, match=r"there is no module 'nowhere'"):
        find("nowhere:sgd")
    with pytest.raises(ConfigError, match=r"'math:gcd', which takes no learning_rate: give a fun"):
        find("math:gcd")


@pytest.mark.parametrize("name", ["lars", "sgd", "optax:sgd"])
def test_a_keyword_that_an_optimizer_does_not_take_is_refused(name):
    with pytest.raises(ConfigError, match=rf"'momentun', which {name} does not .* 'momentum'"):
        make(name, constant, args={"momentun": 0.1})
