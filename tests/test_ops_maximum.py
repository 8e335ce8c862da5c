"""The maximum over windows: to whom the gradient goes, and how it transforms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from oracle import channels_first, channels_last, compiled, normal, x64

from convjax import ops

wide = pytest.mark.usefixtures(x64.__name__)

halves: dict[str, Any] = {"window": 2}
overlapping: dict[str, Any] = {"window": 3, "stride": 2, "padding": 1}
apart: dict[str, Any] = {"window": 3, "stride": 3, "padding": 1}
both = pytest.mark.parametrize("options", [halves, overlapping, apart], ids=str)


def pooled(options):
    """`ops.max_pool` with those options."""
    return lambda x: ops.max_pool(x, **options)


def by_pytorch(x, options, weights=None):
    """The maxima, and the gradient of their sum times `weights`."""
    image = channels_first(x).requires_grad_()
    names = {"window": "kernel_size", "stride": "stride", "padding": "padding"}
    y = torch.nn.functional.max_pool2d(
        image, **{names[name]: value for name, value in options.items()}
    )
    y.backward(torch.ones_like(y) if weights is None else channels_first(weights))
    assert image.grad is not None
    return channels_last(y), channels_last(image.grad)


def tied(*shape, dtype=np.float32):
    """Few values, so that most windows have several that are the largest."""
    return np.random.default_rng(0).integers(0, 3, shape).astype(dtype)


@both
def test_the_gradient_goes_to_the_first_of_the_largest_as_in_pytorch(options):
    x = tied(3, 9, 8, 4)
    y, pull = jax.vjp(jax.jit(pooled(options)), x)
    weights = np.arange(y.size, dtype=np.float32).reshape(y.shape)
    expected, gradient = by_pytorch(x, options, weights)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pull(jnp.asarray(weights))[0], gradient)


def test_among_equals_the_first_is_the_upper_left():
    gradient = jax.grad(lambda x: ops.max_pool(x, 2).sum())(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))
    gradient = jax.grad(lambda x: ops.max_pool(x, **overlapping).sum())(jnp.ones((1, 4, 4, 1)))
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


@both
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8])
def test_integers_have_a_maximum(options, dtype):
    x = np.random.default_rng(0).integers(np.iinfo(dtype).min, 100, (2, 6, 7, 3)).astype(dtype)
    y = jax.jit(pooled(options))(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, by_pytorch(x.astype(np.float64), options)[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_a_maximum_and_a_gradient(dtype):
    x = tied(2, 6, 7, 3)
    expected, gradient = by_pytorch(x, overlapping)
    y, pull = jax.vjp(jax.jit(pooled(overlapping)), jnp.asarray(x, dtype))
    np.testing.assert_array_equal(y.astype(jnp.float32), expected)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0].astype(jnp.float32), gradient)


@pytest.mark.parametrize("places", [[(1, 2)], [(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 2), (3, 3)]])
@both
def test_what_is_no_number_is_the_maximum_and_has_the_gradient_as_in_pytorch(options, places):
    x = tied(1, 6, 7, 1)
    for row, column in places:
        x[0, row, column, 0] = np.nan
    expected, gradient = by_pytorch(x, options)
    y, pull = jax.vjp(jax.jit(pooled(options)), x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], gradient)


@both
def test_vmap_pools_every_member_by_itself(options):
    xs = tied(2, 3, 2, 7, 6, 4)
    pool, gradient = pooled(options), jax.grad(lambda x: (ops.max_pool(x, **options) ** 2).sum())
    for function in (pool, gradient):
        each = jax.jit(function)
        expected = np.stack([[each(x) for x in row] for row in xs])
        np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(function)))(xs), expected)
        moved = jax.jit(jax.vmap(function, in_axes=3, out_axes=3))
        np.testing.assert_array_equal(
            moved(np.moveaxis(xs[0], 0, 3)), np.moveaxis(expected[0], 0, 3)
        )


@wide
@both
def test_the_second_derivative_of_the_square_is_twice_what_picks_the_largest(options):
    # y = pool(x)^2, g = 2 place(pick(x)), H v = 2 place(pick(v)).
    x, v = normal(2, 5, 6, 3), normal(2, 5, 6, 3, seed=1)

    def square(x):
        return (ops.max_pool(x, **options) ** 2).sum()

    gradient = jax.grad(square)
    forward = jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,))[1])(x, v)
    backward = jax.jit(jax.grad(lambda x, v: jnp.vdot(gradient(x), v)))(x, v)
    # For numbers without ties: the largest are where the gradient of their sum is not zero.
    _, counts = by_pytorch(x, options)
    np.testing.assert_array_equal(gradient(x) != 0, counts != 0)
    expected = 2 * counts * v
    np.testing.assert_allclose(forward, expected, rtol=1e-12)
    np.testing.assert_allclose(backward, expected, rtol=1e-12)


@wide
@both
def test_the_gradient_within_a_scan_is_that_outside(options):
    xs = normal(3, 1, 5, 6, 2)

    def value(x):
        return jnp.sin(ops.max_pool(x, **options)).sum()

    @jax.jit
    def scanned(xs):
        def step(total, x):
            slope = jax.grad(value)(x)
            return total + (slope * slope).sum(), slope

        return lax.scan(step, jnp.zeros(()), xs)

    total, slopes = scanned(xs)
    each = [jax.grad(value)(x) for x in xs]
    np.testing.assert_allclose(slopes, np.stack(each), rtol=1e-12)
    np.testing.assert_allclose(total, sum(float((g * g).sum()) for g in each), rtol=1e-12)
    through = jax.jit(jax.grad(lambda xs: scanned(xs)[0]))(xs)
    square = jax.jit(jax.grad(lambda x: (jax.grad(value)(x) ** 2).sum()))
    np.testing.assert_allclose(through, np.stack([square(x) for x in xs]), rtol=1e-10)


@pytest.mark.parametrize("window", [3, 6])
def test_maxima_are_the_same_by_lax(window):
    # A window of 36 is read by XLA's own reduction in any case.
    x = tied(2, 9, 9, 3)

    def results():
        return jax.jit(
            jax.value_and_grad(lambda x: (ops.max_pool(x, window, stride=2) ** 2).sum())
        )(x)

    ours = results()
    with ops.algorithm(max_pool="lax"):
        plain = results()
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


@both
def test_no_images_have_no_maxima_and_no_gradient(options):
    x = np.zeros((0, 6, 7, 3), np.float32)
    y, pull = jax.vjp(jax.jit(pooled(options)), x)
    size = by_pytorch(np.zeros((1, 6, 7, 3)), options)[0].shape[1:]
    assert y.shape == (0, *size)
    assert pull(y)[0].shape == x.shape
    assert jax.vmap(pooled(options))(np.zeros((0, 2, 6, 7, 3), np.float32)).shape == (0, 2, *size)


def test_what_passes_no_gradient_on_gives_zeros():
    @jax.custom_vjp
    def stop(y):
        return y

    stop.defvjp(lambda y: (y, None), lambda _, g: (None,))
    gradient = jax.grad(lambda x: stop(ops.max_pool(x, 2)).sum())(jnp.ones((1, 4, 4, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((1, 4, 4, 2)))


pool = compiled(ops.max_pool)


def test_padding_never_wins():
    x = np.full((1, 3, 3, 1), -5, np.float32)
    np.testing.assert_array_equal(pool(x, **overlapping), np.full((1, 2, 2, 1), -5))
