"""A GAN step (Goodfellow et al. 2014): two networks, two optimizers, and no gradient that leaks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convjax import (
    Context,
    batch_norm,
    conv,
    conv_transpose,
    dense,
    flatten,
    identity,
    leaky_relu,
    relu,
    serial,
    tanh,
    tree,
)

KEY = jax.random.key(0)
NOISE = jax.random.normal(KEY, (8, 4))
REAL = 0.5 + 0.1 * jax.random.normal(KEY, (8, 4, 4, 1))


def to_image(x):
    return x.reshape(-1, 2, 2, 4)


generator = serial(dense(16), to_image, batch_norm(), relu, conv_transpose(1, 4, stride=2), tanh)
discriminator = serial(conv(8, 3, stride=2), leaky_relu, flatten, dense(1))
optimizer = optax.sgd(0.05, momentum=0.5)


class Player(NamedTuple):
    params: Any
    state: Any
    opt: Any


def start(net, x) -> Player:
    params, state = net.init(KEY, x)
    return Player(params, state, optimizer.init(params))


def judge(params, images):
    """How real the images look, as a logit; the discriminator has no state."""
    return discriminator.apply(params, {}, images, Context(train=True))[0]


def moved(player: Player, loss) -> tuple[Player, Any]:
    """One step of one player; loss: `params -> (value, state)`."""
    (value, state), grads = jax.value_and_grad(loss, has_aux=True)(player.params)
    updates, opt = optimizer.update(grads, player.opt)
    return Player(optax.apply_updates(player.params, updates), state, opt), value


def generate(params, state):
    return generator.apply(params, state, NOISE, Context(train=True))


@jax.jit
def judge_better(gen: Player, dis: Player):
    fake, _ = generate(gen.params, gen.state)

    def loss(params):
        right = jax.nn.softplus(-judge(params, REAL)).mean()
        return right + jax.nn.softplus(judge(params, fake)).mean(), {}

    return moved(dis, loss)


@jax.jit
def generate_better(gen: Player, dis: Player):
    def loss(params):
        fake, state = generate(params, gen.state)
        return jax.nn.softplus(-judge(dis.params, fake)).mean(), state

    return moved(gen, loss)


def test_each_step_lowers_its_own_loss_and_moves_its_own_weights_alone():
    gen, dis = start(generator, NOISE), start(discriminator, REAL)
    first_dis_loss = None
    for _ in range(5):
        dis, dis_loss = judge_better(gen, dis)
        first_dis_loss = dis_loss if first_dis_loss is None else first_dis_loss
    assert judge_better(gen, dis)[1] < first_dis_loss

    digest, first_gen_loss = tree.digest(dis.params), generate_better(gen, dis)[1]
    for _ in range(5):
        gen, gen_loss = generate_better(gen, dis)
    assert gen_loss < first_gen_loss
    assert tree.digest(dis.params) == digest
    assert tree.leaves(gen.state).keys() == {"norm1/mean", "norm1/var"}


def test_no_gradient_of_the_judge_reaches_the_generator_unless_it_is_asked_for():
    gen, dis = start(generator, NOISE), start(discriminator, REAL)

    def loss(gen_params, dis_params, block):
        fake, _ = generate(gen_params, gen.state)
        return jax.nn.softplus(judge(dis_params, block(fake))).mean()

    slope = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    blocked, judged = slope(gen.params, dis.params, jax.lax.stop_gradient)
    through, same = slope(gen.params, dis.params, identity)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(blocked))
    assert jnp.any(through["dense1"]["kernel"] != 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), judged, same)
