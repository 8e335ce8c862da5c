"""An activation by its path, and Grad-CAM (Selvaraju et al. 2017) in ten lines on top of it."""

import jax
import jax.numpy as jnp
import numpy as np

from convjax import after, capture, conv, dense, global_avg_pool, relu, serial

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 6, 6, 3))

net = serial(
    *(stage1 := serial(conv(4, 3), relu), stage2 := serial(conv(5, 3), relu)),
    pool=global_avg_pool,
    head=dense(3),
)


def grad_cam(net, params, state, images, path, label):
    """Where an image speaks for a class: activations weighted by the mean slope of its score."""
    (_, seen), _ = capture(net, path).apply(params, state, images)

    def scores(shift):
        moved = after(net, path, lambda y: y + shift)
        return moved.apply(params, state, images)[0][:, label]

    _, pull = jax.vjp(scores, jnp.zeros_like(seen[path]))
    (slope_BHWC,) = pull(jnp.ones(len(images)))
    weights_BC = slope_BHWC.mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", seen[path], weights_BC))


def test_an_activation_is_captured_by_its_path():
    params, state = net.init(KEY, IMAGES)
    (logits, seen), _ = capture(net, "serial?").apply(params, state, IMAGES)
    first, _ = stage1.apply(params["serial1"], {}, IMAGES)
    second, _ = stage2.apply(params["serial2"], {}, first)
    assert list(seen) == ["serial1", "serial2"]
    np.testing.assert_allclose(seen["serial1"], first, rtol=1e-6)
    np.testing.assert_allclose(seen["serial2"], second, rtol=1e-6)
    np.testing.assert_array_equal(logits, net.apply(params, state, IMAGES)[0])


def test_grad_cam_before_a_global_pool_is_the_class_activation_map():
    # With mean pooling and one dense layer, the slope of a score is the layer's weight over H * W
    # (Selvaraju et al., section 3.1: Grad-CAM generalises CAM).
    params, state = net.init(KEY, IMAGES)
    (_, seen), _ = capture(net, "serial2").apply(params, state, IMAGES)
    kernel = np.asarray(params["head"]["kernel"])
    for label in range(3):
        heat = grad_cam(net, params, state, IMAGES, "serial2", label)
        expected = np.maximum(np.asarray(seen["serial2"]) @ kernel[:, label] / 36, 0)
        np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)
