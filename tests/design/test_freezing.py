"""Freezing by path: rules say which weights an optimizer moves, and which statistics stay."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convjax import (
    Context,
    Layer,
    batch_norm,
    conv,
    dense,
    global_avg_pool,
    relu,
    rewrite,
    serial,
    tree,
)

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (4, 6, 6, 2))
LABELS = jnp.array([0, 1, 2, 1])


def stage(width: int) -> Layer:
    return serial(conv(width, 3), batch_norm(), relu)


net = serial(stage1=stage(3), stage2=stage(4), pool=global_avg_pool, head=dense(3))


def evaluating(layer: Layer) -> Layer:
    """The same layer, which also in training does what it does in evaluation."""

    def apply(params, state, x, ctx=Context()):
        return layer.apply(params, state, x, replace(ctx, train=False))

    return layer.around(apply)


def train(net: Layer, optimizer, params, state, steps: int):
    @jax.jit
    def step(params, state, opt):
        def loss(params):
            logits, new = net.apply(params, state, IMAGES, Context(train=True))
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), new

        grads, state = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), state, opt

    opt = optimizer.init(params)
    for _ in range(steps):
        params, state, opt = step(params, state, opt)
    return params, state


def moved(before, after) -> set[str]:
    """The paths of the leaves of which a bit has changed."""
    old, new = tree.leaves(before), tree.leaves(after)
    return {
        path for path in old if np.asarray(old[path]).tobytes() != np.asarray(new[path]).tobytes()
    }


def test_frozen_weights_keep_every_bit_and_all_others_move():
    params, state = net.init(KEY, IMAGES)
    rules = [("stage1/*", "frozen"), ("*/norm1/scale", "frozen"), ("*", "trained")]
    optimizer = optax.multi_transform(
        {"trained": optax.sgd(0.1, momentum=0.9), "frozen": optax.set_to_zero()},
        tree.match(params, rules),
    )
    after, _ = train(net, optimizer, params, state, steps=3)
    assert moved(params, after) == {
        *("stage2/conv1/kernel", "stage2/conv1/bias", "stage2/norm1/bias"),
        *("head/kernel", "head/bias"),
    }


def test_frozen_statistics_keep_every_bit_too():
    frozen = rewrite(
        net,
        lambda path, part: (
            evaluating(part) if tree.matches(path, "stage1/*") and part.kind == "norm" else part
        ),
    )
    params, state = net.init(KEY, IMAGES)
    _, after = train(frozen, optax.sgd(0.0), params, state, steps=1)
    assert moved(state, after) == {"stage2/norm1/mean", "stage2/norm1/var"}
