"""A layer of one's own, in ten lines: with parameters, with state, around another layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import Context, Layer, capture, conv, dense, parametric, relu, serial, stack, tree
from convjax.initializers import lecun_normal, ones

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 4, 4, 3))


def layer_scale(value: float) -> Layer:
    """Multiplies each channel by a learned number that starts small (Touvron et al. 2021)."""
    return parametric(
        "layer_scale",
        lambda params, x: x * params["scale"].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)),
        scale=lambda key, x: jnp.full(x.shape[-1:], value),
    )


def centred(momentum: float) -> Layer:
    """Subtracts a running mean of its input, which training updates: a layer with state."""

    def init(key, spec):
        return {}, {"mean": jnp.zeros(spec.shape[-1:])}

    def apply(params, state, x, ctx=Context()):
        if ctx.train:
            now = x.mean(tuple(range(x.ndim - 1)))
            state = {"mean": momentum * state["mean"] + (1 - momentum) * now}
        return x - jnp.broadcast_to(state["mean"], x.shape), state

    return Layer(init, apply, "centred")


def low_rank(layer: Layer, rank: int) -> Layer:
    """A dense layer and a learned update of low rank that starts at zero (LoRA, Hu et al. 2021)."""

    def init(key, spec):
        params, state = layer.init(key, spec)
        channels, width = params["kernel"].shape
        down = lecun_normal(jax.random.fold_in(key, 1), (channels, rank))
        return {**params, "down": down, "up": jnp.zeros((rank, width))}, state

    def apply(params, state, x, ctx=Context()):
        params = dict(params)
        down, up = params.pop("down"), params.pop("up")
        y, state = layer.apply(params, state, x, ctx)
        return y + x @ down @ up, state

    return Layer(init, apply, layer.kind)


def test_a_layer_with_parameters_is_used_like_any_other():
    net = serial(conv(3, 1), layer_scale(1e-2), stack(2, serial(layer_scale(0.5), relu)))
    params, state = net.init(KEY, IMAGES)
    assert tree.leaves(params)["stack1/body/layer_scale1/scale"].shape == (2, 3)
    (y, seen), _ = jax.jit(capture(net, "conv1").apply)(params, state, IMAGES)
    np.testing.assert_allclose(y, np.maximum(seen["conv1"] * 1e-2 * 0.25, 0), rtol=1e-5, atol=1e-9)
    gradient = jax.jit(jax.grad(lambda p: net.apply(p, state, IMAGES)[0].sum()))(params)
    np.testing.assert_allclose(
        gradient["layer_scale1"]["scale"],
        np.maximum(seen["conv1"], 0).sum((0, 1, 2)) * 0.25,
        rtol=1e-4,
    )


def test_a_layer_with_state_carries_it_through_training_alone():
    net = serial(stack(2, centred(0.5)), relu)
    params, state = net.init(KEY, IMAGES)
    assert (params, list(tree.leaves(state))) == ({}, ["stack1/body/mean"])
    mean = np.asarray(IMAGES).mean((0, 1, 2))
    _, trained = net.apply(params, state, IMAGES, Context(train=True))
    np.testing.assert_allclose(
        trained["stack1"]["body"]["mean"],
        np.stack([mean / 2, (mean - mean / 2) / 2]),  # The second copy sees the rest of the mean.
        rtol=1e-4,
        atol=1e-7,
    )
    _, evaluated = net.apply(params, trained, IMAGES, Context())
    assert tree.digest(evaluated) == tree.digest(trained)


def test_a_layer_around_another_keeps_its_path_and_starts_as_it_was():
    plain, net = serial(dense(5)), serial(low_rank(dense(5), rank=2))
    x = jax.random.normal(KEY, (2, 7))
    params, state = net.init(KEY, x)
    before, _ = plain.init(KEY, x)
    assert {path: leaf.shape for path, leaf in tree.leaves(params).items()} == {
        "dense1/bias": (5,),
        "dense1/kernel": (7, 5),
        "dense1/down": (7, 2),
        "dense1/up": (2, 5),
    }
    np.testing.assert_allclose(
        net.apply(params, state, x)[0], plain.apply(before, {}, x)[0], rtol=1e-6
    )


def test_a_mistake_in_an_own_layer_is_told_with_its_place():
    def broken(params, x):
        return x + params["shift"]  # Made for [channels], meant for [batch, channels].

    shift = parametric("shift", broken, shift=lambda key, x: ones(key, x.shape[:1]))
    with pytest.raises(ValueError, match="rank_promotion") as caught:
        serial(stage1=serial(shift)).init(KEY, IMAGES)
    assert "in stage1/shift1 (shift), called with float32[2,4,4,3]" in caught.value.__notes__
