"""A U-Net (Ronneberger et al. 2015): every level skips across the coarser ones below it.

A level is ten lines that hold the next level as a part, so that the network is drawn as it is said.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convjax import (
    Context,
    Layer,
    batch_norm,
    capture,
    compose,
    concatenate,
    conv,
    conv_transpose,
    max_pool,
    relu,
    serial,
    tree,
)

KEY = jax.random.key(0)


def features(width: int) -> Layer:
    return serial(conv(width, 3, bias=False), batch_norm(), relu)


def level(width: int, below: Layer) -> Layer:
    def wire(net, x):
        skip = net.encode(x)
        coarse = net.up(net.below(net.pool(skip)))
        return net.decode(concatenate([skip, coarse]))

    return compose(
        wire,
        encode=features(width),
        pool=max_pool(2),
        below=below,
        up=conv_transpose(width, 2, stride=2),
        decode=features(width),
    ).named("level")


def unet(classes: int, width: int = 4, depth: int = 2) -> Layer:
    net = features(width * 2**depth)
    for number in reversed(range(depth)):
        net = level(width * 2**number, net)
    return serial(net, head=conv(classes, 1))


def test_every_pixel_gets_its_logits_and_levels_halve_the_image():
    net, x = unet(classes=3), jax.ShapeDtypeStruct((2, 8, 12, 1), jnp.float32)
    inside = capture(net, ["*/encode", "*/decode"])
    (logits, seen), _ = jax.eval_shape(inside.apply, *net.init(KEY, x), x)
    assert logits.shape == (2, 8, 12, 3)
    assert {path: leaf.shape[1:] for path, leaf in seen.items()} == {
        "level1/encode": (8, 12, 4),
        "level1/below/encode": (4, 6, 8),
        "level1/below/decode": (4, 6, 8),
        "level1/decode": (8, 12, 4),
    }


def test_a_decoder_sees_the_skip_and_the_coarser_level_side_by_side():
    params, _ = unet(classes=3).init(KEY, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    shapes = {path: leaf.shape for path, leaf in tree.leaves(params).items()}
    assert shapes["level1/below/below/conv1/kernel"] == (3, 3, 8, 16)
    assert shapes["level1/below/up/kernel"] == (2, 2, 16, 8)
    assert shapes["level1/below/decode/conv1/kernel"] == (3, 3, 8 + 8, 8)
    assert shapes["level1/decode/conv1/kernel"] == (3, 3, 4 + 4, 4)


def test_training_steps_lower_the_loss_of_a_segmentation():
    net, optimizer = unet(classes=2), optax.sgd(0.3, momentum=0.9)
    images = jax.random.normal(KEY, (2, 8, 8, 1))
    labels = (images[..., 0] > 0).astype(jnp.int32)
    params, state = net.init(KEY, images)

    @jax.jit
    def step(params, old, opt):
        def loss_of(params):
            logits, new = net.apply(params, old, images, Context(train=True))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new

        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt)
        return optax.apply_updates(params, updates), state, opt, loss

    opt, losses = optimizer.init(params), []
    for _ in range(8):
        params, state, opt, loss = step(params, state, opt)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
