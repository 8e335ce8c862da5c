"""Flax modules as layers: they compute what Flax computes, inside a network and in training."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from convjax import Context, dense, flatten, serial, tree
from convjax.exchange.linen import from_linen

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (4, 6, 6, 3))


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Conv(5, (3, 3))(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dropout(0.5, deterministic=not train)(x)


def block():
    return from_linen(Block(), lambda module, x, train: module(x, train))


def test_a_module_computes_what_flax_computes():
    net = serial(block(), flatten, dense(2))
    params, state = net.init(KEY, IMAGES)
    variables = {"params": params["block1"], **state["block1"]}
    theirs = Block().apply(variables, IMAGES, False)
    expected = np.asarray(theirs).reshape(4, -1) @ params["dense1"]["kernel"]
    found, _ = net.apply(params, state, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_module_is_trained_with_statistics_noise_and_gradients():
    net = serial(block(), flatten, dense(2))
    params, state = net.init(KEY, IMAGES)

    def loss(params, key):
        y, new = net.apply(params, state, IMAGES, Context(key, train=True))
        return jnp.square(y).sum(), new

    (first, new), grads = jax.value_and_grad(loss, has_aux=True)(params, KEY)
    other, _ = loss(params, jax.random.key(1))
    assert first != other  # another mask
    assert all(np.any(leaf != 0) for path, leaf in tree.leaves(grads).items() if "kernel" in path)
    # Flax's momentum is 0.99, and the running mean begins at zero.
    x = linen.Conv(5, (3, 3)).apply({"params": params["block1"]["Conv_0"]}, IMAGES)
    mean = new["block1"]["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * np.asarray(x).mean((0, 1, 2)), rtol=1e-4, atol=1e-7)


def test_a_module_without_state_has_none():
    layer = from_linen(linen.Dense(3))
    params, state = layer.init(KEY, jnp.zeros((2, 4)))
    assert (sorted(params), state) == (["bias", "kernel"], {})
    y, state = layer.apply(params, state, jnp.ones((2, 4)), Context(train=True))
    np.testing.assert_allclose(y, params["kernel"].sum(0, keepdims=True).repeat(2, 0), rtol=1e-6)
    assert state == {}
