"""Clipping by unit, look-ahead and sharpness-aware gradients against their papers in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimization import PARAMS, TREE, assert_same, constant, gradients, ours

from convjax import tree
from convjax.training.optimizer import hyper_of, make
from convjax.training.rules import parse
from convjax.training.transforms import (
    adaptive_clip,
    lookahead,
    sharpness_aware,
    slow_weights,
)

SHAPES = {"vector": (6,), "dense": (5, 4), "conv1": (3, 2, 4), "conv2": (3, 3, 2, 4)}
SHAPES |= {"conv3": (2, 3, 3, 2, 4), "one": (1, 1, 1, 4)}


def units(x):
    """The units of a parameter, each as a vector: one for each output; a vector is one unit."""
    vector = x.squeeze().ndim == 1
    return [x.ravel()] if vector else [x[..., out].ravel() for out in range(x.shape[-1])]


def test_adaptive_clipping_scales_each_unit_of_a_kernel_as_the_paper_says():
    draw = np.random.default_rng(0)
    params = {name: draw.normal(size=shape) for name, shape in SHAPES.items()}
    grads = {name: draw.normal(size=shape) * 0.2 for name, shape in SHAPES.items()}
    params["dense"][:, 1] = 0  # A unit of zeros counts as one of norm 1e-3.
    both = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (grads, params))
    clip = adaptive_clip(0.2, skips=["conv1*"])
    found: Any = clip.update(both[0], clip.init(both[1]), both[1])[0]
    clipped = 0
    for name, change in found.items():
        for part, g, w in zip(*map(units, (np.asarray(change), grads[name], params[name]))):
            most = 0.2 * max(np.linalg.norm(w), 1e-3)
            clips = np.linalg.norm(g) > most and name != "conv1"
            clipped += clips
            np.testing.assert_allclose(
                part, g * most / np.linalg.norm(g) if clips else g, rtol=1e-5
            )
    assert 5 < clipped < sum(len(units(leaf)) for leaf in params.values())


def test_units_are_clipped_before_the_whole_and_both_before_the_decay():
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(0))
    inner = optax.chain(adaptive_clip(0.1), optax.clip_by_global_norm(0.1))
    clipped, _ = inner.update(grads, inner.init(TREE), TREE)
    optimizer = make("sgd", constant, adaptive_clip=0.1, clip_norm=0.1)(
        hyper_of(1.0, 0.5), jnp.int32(0)
    )
    updates, _ = optimizer.update(grads, optimizer.init(TREE), TREE)
    expected = {
        path: -(leaf + (0.5 * tree.leaves(PARAMS)[path] if path.endswith("kernel") else 0))
        for path, leaf in tree.leaves(clipped).items()
    }
    assert_same(updates, expected)


def by_the_paper(every, share, steps, momentum=0.9):
    """Algorithm 1 of Zhang et al., its two loops unrolled; SGD with momentum inside."""
    slow = {path: np.array(leaf, np.float64) for path, leaf in tree.leaves(PARAMS).items()}
    fast, velocity = dict(slow), dict.fromkeys(slow, 0.0)
    for number in range(steps):
        for path, grad in tree.leaves(gradients(number)).items():
            velocity[path] = momentum * velocity[path] + grad
            fast[path] = fast[path] - 0.1 * velocity[path]
        if (number + 1) % every == 0:
            slow = {path: slow[path] + share * (fast[path] - slow[path]) for path in slow}
            fast = dict(slow)
    return fast, slow


@pytest.mark.parametrize("steps", [5, 6])
def test_lookahead_takes_the_steps_of_its_paper(steps):
    args = {"momentum": 0.9}
    optimizer = make("sgd", constant, lookahead_steps=3, lookahead_share=0.8, args=args)
    hyper = hyper_of(0.1, args=args)
    params: Any = TREE
    opt = optimizer(hyper, jnp.int32(0)).init(params)
    for number in range(steps):
        grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(number))
        updates, opt = optimizer(hyper, jnp.int32(number)).update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    fast, slow = by_the_paper(3, 0.8, steps)
    assert_same(params, fast)
    assert_same(slow_weights(opt, params), slow)


def test_the_slow_weights_have_memory_of_their_own():
    inner = lookahead(optax.sgd(0.1), every=3, share=0.5)
    slow = jax.jit(inner.init)(TREE).slow
    held = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(TREE)}
    assert not held & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(slow)}


def test_an_optimizer_that_looks_not_ahead_has_no_slow_weights_but_the_parameters():
    opt = make("sgd", constant)(hyper_of(0.1), jnp.int32(0)).init(TREE)
    assert slow_weights(opt, TREE) is TREE


def objective(w):
    """A loss with a known gradient, of parameters {"a": [2], "b": []}, and something beside it."""
    value = jnp.sum(jnp.array([3.0, 1.0]) * w["a"] ** 2) + w["a"][0] * w["b"] + w["b"] ** 4
    return value, {"loss": value}


def slope(a, b):
    return np.array([6 * a[0] + b, 2 * a[1], a[0] + 4 * b**3])


def test_the_sharpness_aware_gradient_is_that_uphill_as_in_the_paper():
    a, b = np.array([0.3, -0.2]), 0.7
    uphill = slope(a, b)
    climb = 0.05 * uphill / np.linalg.norm(uphill)
    expected = slope(a + climb[:2], b + climb[2])
    params = {"a": jnp.asarray(a, jnp.float32), "b": jnp.float32(b)}
    gradient = sharpness_aware(jax.grad(objective, has_aux=True), jnp.float32(0.05))
    grads, aux = jax.jit(gradient)(params)
    np.testing.assert_allclose([*grads["a"], grads["b"]], expected, rtol=1e-5)
    np.testing.assert_allclose(aux["loss"], objective(params)[0], rtol=1e-6)


def test_the_sharpness_aware_gradient_without_a_radius_or_a_slope_is_the_gradient():
    plain = jax.grad(objective, has_aux=True)
    params = {"a": jnp.array([0.3, -0.2]), "b": jnp.float32(0.7)}
    expected = jax.tree.leaves(plain(params)[0])
    for found, leaf in zip(jax.tree.leaves(sharpness_aware(plain, 0.0)(params)[0]), expected):
        np.testing.assert_array_equal(found, leaf)
    still = {"a": jnp.zeros(2), "b": jnp.float32(0)}
    assert not any(np.any(x) for x in jax.tree.leaves(sharpness_aware(plain, 0.05)(still)[0]))


def test_what_is_frozen_does_not_climb_and_counts_for_nothing():
    a, b = np.array([0.3, -0.2]), 0.7
    uphill = slope(a, b)[:2]
    expected = slope(a + 0.05 * uphill / np.linalg.norm(uphill), b)
    params = {"a": jnp.asarray(a, jnp.float32), "b": jnp.float32(b)}
    plain = jax.grad(objective, has_aux=True)
    grads, _ = sharpness_aware(plain, 0.05, [parse("b: freeze")])(params)
    np.testing.assert_allclose([*grads["a"], grads["b"]], expected, rtol=1e-5)


def test_another_radius_compiles_nothing_and_members_may_have_their_own():
    traces = []

    def gradient(params):
        traces.append(1)
        return jax.grad(objective, has_aux=True)(params)

    def two_pass(params, rho):
        return sharpness_aware(gradient, rho)(params)[0]

    params = {"a": jnp.array([0.3, -0.2]), "b": jnp.float32(0.7)}
    alone = jax.jit(two_pass)
    lone = [alone(params, jnp.float32(rho)) for rho in (0.05, 0.5)]
    assert len(traces) == 2
    together = jax.vmap(two_pass, in_axes=(None, 0))(params, jnp.array([0.05, 0.5]))
    for member in range(2):
        np.testing.assert_allclose(together["a"][member], lone[member]["a"], rtol=1e-6)
    assert not np.allclose(lone[0]["a"], lone[1]["a"])


def test_clipping_and_looking_ahead_leave_a_plain_optimizer_as_it_was():
    far = {"adaptive_clip": 1e9, "clip_norm": 1e9, "lookahead_steps": 100}
    plain, same = (
        ours(make("sgd", constant), hyper_of(0.1)),
        ours(make("sgd", constant, **far), hyper_of(0.1)),
    )
    assert_same(same, tree.leaves(plain))
