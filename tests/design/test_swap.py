"""Transfer: a layer swapped in a built network, and pretrained weights merged around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import (
    Layer,
    batch_norm,
    conv,
    dense,
    global_avg_pool,
    relu,
    replace,
    serial,
    silu,
    tree,
)

KEY = jax.random.key(0)
IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


def stage(width: int) -> Layer:
    return serial(conv(width, 3, bias=False), batch_norm(), relu)


pretrained = serial(stage1=stage(4), stage2=stage(16), pool=global_avg_pool, head=dense(10))
net = replace(pretrained, "head", serial(dense(6), silu, dense(3)))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_swapped_head_is_new_and_everything_else_is_as_pretrained():
    ours, _ = net.init(jax.random.key(1), IMAGES)
    theirs, _ = pretrained.init(KEY, IMAGES)
    merged = tree.merge(ours, theirs, keep="head/*", drop="head/*")
    for part in ("stage1", "stage2"):
        equal(merged[part], theirs[part])
    equal(merged["head"], ours["head"])
    logits, _ = jax.eval_shape(net.apply, merged, net.init(KEY, IMAGES)[1], IMAGES)
    assert logits.shape == (1, 3)


def test_what_does_not_fit_is_listed_and_nothing_is_left_out_silently():
    ours, _ = net.init(KEY, IMAGES)
    theirs, _ = pretrained.init(KEY, IMAGES)
    with pytest.raises(ValueError, match="the two trees do not fit") as caught:
        tree.merge(ours, theirs)
    assert str(caught.value).splitlines()[1:] == [
        "  only in the tree: head/dense1/bias float32[6]",
        "  only in the tree: head/dense1/kernel float32[16,6]",
        "  only in the tree: head/dense2/bias float32[3]",
        "  only in the tree: head/dense2/kernel float32[6,3]",
        "  only in what was given: head/bias float32[10]",
        "  only in what was given: head/kernel float32[16,10]",
    ]


def test_a_first_layer_for_gray_images_starts_from_the_sum_over_colours():
    theirs, state = pretrained.init(KEY, IMAGES)
    kernel = theirs["stage1"]["conv1"]["kernel"]
    gray = replace(pretrained, "stage1/conv1", conv(4, 3, bias=False))
    spec = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    params = tree.merge(gray.init(KEY, spec)[0], theirs, keep="stage1/conv1/*")
    params["stage1"]["conv1"]["kernel"] = kernel.sum(axis=2, keepdims=True)
    x = jax.random.normal(KEY, spec.shape)
    expected, _ = jax.jit(pretrained.apply)(theirs, state, jnp.repeat(x, 3, axis=-1))
    got, _ = jax.jit(gray.apply)(params, state, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
