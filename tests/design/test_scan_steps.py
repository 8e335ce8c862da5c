"""Many training steps in one call: a step is a pure function, so that `lax.scan` may run it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convjax import Context, batch_norm, conv, dense, dropout, global_avg_pool, relu, serial

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (8, 6, 6, 2))
LABELS = (IMAGES.mean((1, 2, 3)) > 0).astype(jnp.int32)
STEPS = 12

net = serial(conv(6, 3), batch_norm(), relu, dropout(0.1), global_avg_pool, dense(2))
optimizer = optax.sgd(0.3, momentum=0.9)


def step(carry, number):
    params, state, opt = carry

    def loss_of(params):
        ctx = Context(jax.random.fold_in(KEY, number), train=True)
        logits, new = net.apply(params, state, IMAGES, ctx)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), new

    (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt = optimizer.update(grads, opt)
    return (optax.apply_updates(params, updates), state, opt), loss


def test_steps_in_a_scan_are_the_steps_of_a_loop_and_lower_the_loss():
    params, state = net.init(KEY, IMAGES)
    begin = (params, state, optimizer.init(params))
    scanned, losses = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(STEPS)))(begin)

    carry, expected, one = begin, [], jax.jit(step)
    for number in range(STEPS):
        carry, loss = one(carry, jnp.asarray(number))
        expected.append(loss)

    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), scanned, carry
    )
    assert losses[-1] < 0.8 * losses[0]
