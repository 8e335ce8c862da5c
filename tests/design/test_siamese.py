"""Siamese weights (Bromley et al. 1993): one encoder sees both images of a pair.

A part that is called twice shares its parameters, so that the wire says all of it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from convjax import compose, conv, dense, global_avg_pool, relu, serial, tree

KEY = jax.random.key(0)
LEFT, RIGHT = jax.random.normal(KEY, (2, 4, 6, 6, 1))

encoder = serial(conv(4, 3), relu, global_avg_pool, dense(3))


def siamese(net, pair):
    left, right = pair
    return jnp.sum((net.encoder(left) - net.encoder(right)) ** 2, axis=-1)


net = compose(siamese, encoder=encoder)


def test_both_branches_use_one_set_of_weights():
    params, _ = net.init(KEY, (LEFT, RIGHT))
    assert list(params) == ["encoder"]
    assert tree.count(params) == tree.count(encoder.init(KEY, LEFT)[0])


def test_an_image_has_distance_zero_from_itself_and_the_order_does_not_matter():
    params, state = net.init(KEY, (LEFT, RIGHT))
    np.testing.assert_array_equal(net.apply(params, state, (LEFT, LEFT))[0], np.zeros(4))
    there, _ = net.apply(params, state, (LEFT, RIGHT))
    back, _ = net.apply(params, state, (RIGHT, LEFT))
    np.testing.assert_allclose(there, back, rtol=1e-6)
    assert (np.asarray(there) > 0).all()


def test_the_gradient_is_the_sum_of_the_gradients_of_both_branches():
    params, state = net.init(KEY, (LEFT, RIGHT))

    def shared(params):
        return net.apply(params, state, (LEFT, RIGHT))[0].sum()

    def apart(left, right):
        a, _ = encoder.apply(left, {}, LEFT)
        b, _ = encoder.apply(right, {}, RIGHT)
        return jnp.sum((a - b) ** 2)

    left, right = jax.jit(jax.grad(apart, (0, 1)))(params["encoder"], params["encoder"])
    jax.tree.map(
        lambda both, a, b: np.testing.assert_allclose(both, a + b, rtol=1e-4, atol=1e-6),
        jax.jit(jax.grad(shared))(params)["encoder"],
        left,
        right,
    )
