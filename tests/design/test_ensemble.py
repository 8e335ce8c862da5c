"""An ensemble: `jax.vmap` over init and apply makes many networks of one, trained together."""

import jax
import jax.numpy as jnp
import numpy as np

from convjax import Context, batch_norm, conv, dense, global_avg_pool, relu, serial

MEMBERS = 2
KEYS = jax.random.split(jax.random.key(0), MEMBERS)
IMAGES = jax.random.normal(jax.random.key(1), (4, 6, 6, 2))
LABELS = jnp.array([0, 1, 2, 1])

net = serial(conv(4, 3), batch_norm(), relu, global_avg_pool, dense(3))


def init(key):
    return net.init(key, IMAGES)


def step(params, state):
    """One step of gradient descent of one member."""

    def loss(params):
        logits, new = net.apply(params, state, IMAGES, Context(train=True))
        return -jax.nn.log_softmax(logits)[jnp.arange(4), LABELS].mean(), new

    grads, state = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state


def member(ensemble, number):
    return jax.tree.map(lambda leaf: leaf[number], ensemble)


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), a, b)


def test_each_member_is_drawn_and_trained_as_if_it_were_alone():
    params, state = jax.jit(jax.vmap(init))(KEYS)
    trained = jax.jit(jax.vmap(step))(params, state)
    alone = jax.jit(step)
    for number, key in enumerate(KEYS):
        assert_close(member((params, state), number), init(key))
        assert_close(member(trained, number), alone(*init(key)))


def test_members_differ_and_their_mean_prediction_is_one_call():
    params, state = jax.jit(jax.vmap(init))(KEYS)
    logits, _ = jax.jit(jax.vmap(net.apply, in_axes=(0, 0, None)))(params, state, IMAGES)
    assert logits.shape == (MEMBERS, 4, 3)
    assert np.asarray(logits).std(axis=0).min() > 1e-3
    probabilities = jax.nn.softmax(logits).mean(axis=0)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
