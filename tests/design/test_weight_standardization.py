"""Weight standardisation (Qiao et al. 2019) of every convolution of a network, in one line."""

import jax
import numpy as np

from convjax import (
    Layer,
    avg_pool,
    conv,
    dense,
    flatten,
    group_norm,
    models,
    relu,
    replace,
    rewrite,
    serial,
    tree,
    weight_standardized,
)

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 8, 8, 3))


def standardize(net: Layer) -> Layer:
    return rewrite(
        net, lambda path, part: weight_standardized(part) if part.kind == "conv" else part
    )


def rescaled(params):
    """The same parameters, every kernel of a convolution three times as large and one up."""
    rules = [("*/conv?/kernel", lambda kernel: 3 * kernel + 1), ("*", lambda leaf: leaf)]
    return jax.tree.map(lambda change, leaf: change(leaf), tree.match(params, rules), params)


def test_it_computes_with_kernels_of_mean_zero_and_variance_one():
    net = standardize(serial(conv(5, 8, padding="VALID", bias=False), flatten))
    params, state = net.init(KEY, IMAGES)
    kernel = np.asarray(params["conv1"]["kernel"], np.float64).reshape(-1, 5)
    unit = (kernel - kernel.mean(0)) / kernel.std(0)
    expected = np.asarray(IMAGES, np.float64).reshape(2, -1) @ unit
    np.testing.assert_allclose(net.apply(params, state, IMAGES)[0], expected, rtol=1e-3, atol=1e-3)


def test_a_model_from_the_shelf_no_longer_sees_the_scale_of_its_kernels():
    plain = models.create("small", classes=4, width=8, norm=lambda: group_norm(4))
    net = standardize(plain)
    params, state = net.init(KEY, IMAGES)
    assert tree.digest(params) == tree.digest(plain.init(KEY, IMAGES)[0])

    def change(net):
        apply = jax.jit(net.apply)
        before, _ = apply(params, state, IMAGES)
        after, _ = apply(rescaled(params), state, IMAGES)
        return np.abs(np.asarray(after) - np.asarray(before)).max()

    assert change(net) < 1e-3
    assert change(plain) > 0.05


def test_surgeries_follow_one_another():
    net = standardize(serial(conv(4, 3), relu, avg_pool(2), flatten, dense(2)))
    both = replace(net, "relu1", serial(group_norm(2), relu))
    params, state = both.init(KEY, IMAGES)
    assert set(tree.leaves(params)) == {
        *("conv1/kernel", "conv1/bias", "dense1/kernel", "dense1/bias"),
        *("relu1/norm1/scale", "relu1/norm1/bias"),
    }
    apply = jax.jit(both.apply)
    before, after = apply(params, state, IMAGES)[0], apply(rescaled(params), state, IMAGES)[0]
    np.testing.assert_allclose(after, before, atol=1e-3)
