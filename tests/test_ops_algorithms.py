"""Every algorithm of a convolution against XLA, against PyTorch, and under JAX's transformations.

The error of a result is that of its worst number, relative to its largest. It is at most 1e-12 in
float64 (Winograd's 2e-12), and in float32 1e-5, or 1e-4 of Winograd's F(4x4, 3x3).
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads
from oracle import channels_first, channels_last, conv_of_rank, conv_weight, normal, x64

from convjax import ops
from convjax.ops import depthwise, winograd
from convjax.ops.correlation import FUNCTIONS, applies
from convjax.ops.geometry import Geometry

pytestmark = pytest.mark.usefixtures(x64.__name__)

# Nothing here is run often enough to be worth optimising.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def assert_near(actual, expected, tolerance, message=""):
    """Equal but for a share of the largest number."""
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64),
        expected,
        rtol=0,
        atol=tolerance * np.abs(expected).max(initial=0),
        err_msg=message,
    )


def tolerance(name, dtype):
    """What the head of this file states."""
    if dtype == np.float64:
        return 2e-12 if name == "winograd" else 1e-12
    return 1e-4 if name == "winograd" else 1e-5


def xla(x, kernel, geometry):
    """The convolution of JAX, by its own names of the dimensions."""
    spatial = "HWD"[: x.ndim - 2]
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.groups,
    )


def by_xla(x, kernel, g, geometry):
    """The result and both gradients, by operation."""
    y, pull = jax.vjp(lambda x, kernel: xla(x, kernel, geometry), x, kernel)
    return dict(zip(FUNCTIONS, (y, *pull(g)), strict=True))


def by_algorithm(x, kernel, g, geometry, only=None):
    """The same by every algorithm that applies, `{(operation, name): result}`."""
    arguments = {"conv": (x, kernel), "conv_input": (g, kernel), "conv_weight": (x, g)}
    return {
        (operation, name): function(*arguments[operation], geometry)
        for operation, functions in FUNCTIONS.items()
        for name, function in functions.items()
        if only in (None, name) and applies(operation, name, geometry, x.shape[-1])
    }


def arrays(geometry, batch, channels, features, dtype: Any = np.float64):
    """x, kernel and the gradient of the result."""
    shapes = (
        (batch, *geometry.size, channels),
        (*geometry.window, channels // geometry.groups, features),
        (batch, *geometry.out, features),
    )
    return [normal(*shape, seed=seed).astype(dtype) for seed, shape in enumerate(shapes)]


@st.composite
def convolutions(draw):
    """A geometry, the channels and the features; many of them such that Winograd's applies."""
    rank = draw(st.integers(1, 3))
    tiled = rank == 2 and draw(st.booleans())

    def each(low, high):
        return tuple(draw(st.tuples(*[st.integers(low, high)] * rank)))

    groups, channels, features = draw(
        st.sampled_from([(1, 1, 2), (1, 3, 2), (2, 4, 6), (3, 3, 3), (2, 2, 4)])
    )
    if tiled:
        groups = 1
    geometry = Geometry(
        each(1, 9 - 2 * rank),
        draw(st.sampled_from([(3, 3), (5, 5)])) if tiled else each(1, 3),
        (1, 1) if tiled else each(1, 3),
        (1, 1) if tiled else each(1, 2),
        tuple(zip(each(0, 2), each(0, 2), strict=True)),
        groups,
    )
    assume(min(geometry.out) > 0)
    return geometry, channels, features


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(convolutions(), st.integers(1, 3))
def test_every_algorithm_equals_xla_in_value_and_both_gradients(convolution, batch):
    geometry, channels, features = convolution

    @quick
    def both(wide, narrow):
        return (
            by_xla(*wide, geometry=geometry),
            by_algorithm(*wide, geometry=geometry),
            by_algorithm(*narrow, geometry=geometry),
        )

    wide = arrays(geometry, batch, channels, features)
    narrow = [a.astype(np.float32) for a in wide]
    expected, *results = both(wide, narrow)
    for (operation, name), found in (item for result in results for item in result.items()):
        assert_near(
            found, expected[operation], tolerance(name, found.dtype), f"{operation} by {name}"
        )


def square(size, window, stride=1, groups=1, pad=1):
    """A geometry of two dimensions that are alike, but for the size."""
    return Geometry(size, (window,) * 2, (stride,) * 2, (1, 1), ((pad, pad),) * 2, groups)


cases = {
    "lax": square((6, 7), 3, 2),
    "dot": square((6, 7), 1, 2, pad=0),
    "taps": square((6, 7), 3, 2),
    "im2col": square((6, 7), 4, 2, groups=2),
    "pairs": square((6, 7), 3, 2),
    "winograd": square((6, 9), 3),
    "depthwise": square((6, 7), 3, 2, groups=4),
    "flipped": square((6, 7), 4, groups=2),
    "phases": square((6, 7), 3, 2),
    "col2im": square((6, 7), 4, 3, groups=2),
    "canonical": square((6, 7), 3, 2),
}


def by_pytorch(x, kernel, g, geometry):
    """The result and both gradients in float64, by operation."""
    image, weight = channels_first(x).requires_grad_(), conv_weight(kernel).requires_grad_()
    low = [low for low, _ in geometry.pads]
    y = conv_of_rank[x.ndim - 2](
        image, weight, stride=geometry.stride, padding=low, groups=geometry.groups
    )
    y.backward(channels_first(g))
    assert image.grad is not None
    assert weight.grad is not None
    kernel = np.transpose(weight.grad.numpy(), (*range(2, x.ndim), 1, 0))
    return {
        "conv": channels_last(y),
        "conv_input": channels_last(image.grad),
        "conv_weight": kernel,
    }


def test_every_algorithm_has_a_case():
    assert set(cases) == {name for functions in FUNCTIONS.values() for name in functions}


@pytest.mark.parametrize("name", cases)
def test_every_algorithm_equals_pytorch(name):
    geometry = cases[name]
    x, kernel, g = arrays(geometry, 3, 4, 8)
    expected = by_pytorch(x, kernel, g, geometry)
    results = quick(lambda *all: by_algorithm(*all, geometry=geometry, only=name))(x, kernel, g)
    assert set(results) == {(each, name) for each in FUNCTIONS if name in FUNCTIONS[each]}
    for (operation, _), found in results.items():
        assert_near(found, expected[operation], tolerance(name, found.dtype), operation)


@pytest.mark.parametrize("window", [3, 5])
def test_winograd_over_many_channels_keeps_four_digits(window):
    geometry = square((13, 14), window)
    given = [a.astype(np.float32) for a in arrays(geometry, 4, 96, 96)]
    expected = by_pytorch(*(a.astype(np.float64) for a in given), geometry=geometry)
    results = quick(lambda *all: by_algorithm(*all, geometry=geometry, only="winograd"))(*given)
    for (operation, name), found in results.items():
        assert found.dtype == np.float32
        assert_near(found, expected[operation], tolerance(name, found.dtype), operation)


def asked_for(name):
    """What `ops.algorithm` takes for everything that the algorithm can compute."""
    return {operation: name for operation in FUNCTIONS if name in FUNCTIONS[operation]}


def convolution(geometry):
    """`ops.conv` of that geometry."""
    return lambda x, kernel: ops.conv(
        x, kernel, stride=geometry.stride, padding=geometry.pads, groups=geometry.groups
    )


@pytest.mark.parametrize("name", cases)
def test_half_precision_loses_no_more_than_its_own_rounding(name):
    geometry = cases[name]
    half = [jnp.asarray(a, jnp.bfloat16) for a in arrays(geometry, 3, 4, 8)]
    expected = by_pytorch(*(np.asarray(a, np.float64) for a in half), geometry=geometry)

    @quick
    def results(x, kernel, g):
        y, pull = jax.vjp(convolution(geometry), x, kernel)
        return y, *pull(g)

    with ops.algorithm(**asked_for(name)):
        found = results(*half)
    for (operation, exact), ours in zip(expected.items(), found, strict=True):
        assert ours.dtype == jnp.bfloat16
        # Half of the last of eight bits, and what single precision loses before.
        np.testing.assert_allclose(
            np.asarray(ours, np.float64),
            exact,
            rtol=2.0**-8,
            atol=tolerance("winograd", np.float32) * np.abs(exact).max(),
            err_msg=operation,
        )


class Transforms(NamedTuple):
    """What maps, repeats and rematerialises."""

    vmap: Callable[..., Any]
    scan: Callable[..., Any]
    checkpoint: Callable[..., Any]


def one_by_one(function, in_axes: Any = 0):
    """`jax.vmap` as a loop."""

    def call(*arguments):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        both = list(zip(arguments, axes, strict=True))
        number = next(len(a) for a, axis in both if axis == 0)
        results = [
            function(*(a if axis is None else a[member] for a, axis in both))
            for member in range(number)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return call


def unrolled(function, carry, xs):
    """`lax.scan` as a loop."""
    results = []
    for x in xs:
        carry, result = function(carry, x)
        results.append(result)
    return carry, jnp.stack(results)


ours = Transforms(jax.vmap, lax.scan, jax.checkpoint)
plain = Transforms(one_by_one, unrolled, lambda function: function)


def transformed(f, xs, kernels, how: Transforms):
    """What each transformation makes of `f(x, kernel)`, for 2x2 images and 2x2 kernels."""
    (x, tx), (kernel, tk) = xs[0], kernels[0]

    def loss(x, kernel):
        return jnp.sin(f(x, kernel)).sum()

    gradient = jax.grad(loss, (0, 1))

    def along(x, kernel):
        a, b = gradient(x, kernel)
        return jnp.vdot(a, tx) + jnp.vdot(b, tk)

    def descend(kernel, x):
        value, slope = jax.value_and_grad(loss, 1)(x, kernel)
        return kernel - 0.1 * slope, value

    def many(xs, kernels):
        return how.vmap(loss)(xs, kernels).sum()

    return {
        "grad": gradient(x, kernel),
        "jvp": jax.jvp(f, (x, kernel), (tx, tk))[1],
        "jvp of grad": jax.jvp(gradient, (x, kernel), (tx, tk))[1],
        "jvp of jvp": jax.jvp(
            lambda *at: jax.jvp(loss, at, (tx, tk))[1],
            (x, kernel),
            (kernel.sum() * tx, x.sum() * tk),
        )[1],
        "grad of grad": jax.grad(along, (0, 1))(x, kernel),
        "vmap over images": how.vmap(f, in_axes=(0, None))(xs[0], kernel),
        "vmap over kernels": how.vmap(f, in_axes=(None, 0))(x, kernels[0]),
        "vmap over both": how.vmap(f)(xs[0], kernels[0]),
        "vmap over both twice": how.vmap(how.vmap(f))(xs, kernels),
        "vmap over images in vmap over kernels": how.vmap(
            how.vmap(f, in_axes=(0, None)), in_axes=(None, 0)
        )(xs[0], kernels[0]),
        "vmap of grad over images": how.vmap(gradient, in_axes=(0, None))(xs[0], kernel),
        "vmap of grad over kernels": how.vmap(gradient, in_axes=(None, 0))(x, kernels[0]),
        "vmap of jvp of grad": how.vmap(
            lambda x, kernel: jax.jvp(gradient, (x, kernel), (tx, tk))[1]
        )(xs[0], kernels[0]),
        "grad of vmap": jax.grad(many, (0, 1))(xs[0], kernels[0]),
        "scan": how.scan(descend, kernel, xs[0]),
        "grad of scan": jax.grad(lambda kernel: how.scan(descend, kernel, xs[0])[1].sum())(kernel),
        "grad of remat": jax.grad(how.checkpoint(loss), (0, 1))(x, kernel),
    }


def images_and_kernels(geometry):
    """2x2 of each."""
    x, kernel, _ = arrays(geometry, 4, 2, 2)
    xs = np.stack([x, x[::-1]]).reshape(2, 2, 2, *x.shape[1:])
    kernels = np.stack([kernel, kernel[::-1], 2 * kernel, kernel - 1])
    return xs, kernels.reshape(2, 2, *kernel.shape)


@pytest.mark.parametrize(
    ("geometry", "choices"),
    [
        (square((4, 5), 3), {"conv": "winograd"}),
        (square((4, 5), 3, 2), {}),
        (square((4, 5), 3, 2), {"conv_input": "phases", "conv_weight": "im2col"}),
        (square((4, 5), 3, 2, groups=2), {"conv": "depthwise"}),
        (square((4, 5), 2, groups=2), {"conv": "im2col", "conv_input": "col2im"}),
    ],
    ids=["winograd", "table", "phases", "depthwise", "im2col"],
)
def test_transformations_of_an_algorithm_are_those_of_xla_one_by_one(geometry, choices):
    f, (xs, kernels) = convolution(geometry), images_and_kernels(geometry)
    with ops.algorithm(**choices):
        found = quick(lambda *all: transformed(f, *all, how=ours))(xs, kernels)
    with ops.algorithm("lax"):
        expected = quick(lambda *all: transformed(f, *all, how=plain))(xs, kernels)
    for name, results in expected.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(results), strict=True):
            assert_near(a, b, 1e-11, name)


def test_derivatives_are_those_of_finite_differences():
    geometry = square((3, 4), 3, 2)
    x, kernel, _ = arrays(geometry, 1, 2, 2)
    f = convolution(geometry)
    check_grads(jax.jit(lambda x, kernel: f(x, kernel) ** 2), (x, kernel), 2, ["fwd", "rev"])


def gradients(f, x, kernel):
    """Both gradients of a number made of `f(x, kernel)`."""
    return jax.grad(lambda x, kernel: jnp.sin(f(x, kernel)).sum(), (0, 1))(x, kernel)


def test_a_backward_pass_computes_the_weight_gradient_of_a_layer_before_it_goes_on():
    # Else XLA keeps the images and gradients of all layers for the weight gradients at the end.
    f = convolution(square((8, 8), 3))
    x, kernel, _ = arrays(square((8, 8), 3), 2, 4, 4, np.float32)
    jaxpr = jax.make_jaxpr(lambda x, kernel: gradients(f, x, kernel))(x, kernel).jaxpr
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    (waiting,) = (each for each in jaxpr.eqns if each.primitive.name == "convjax_conv_input")
    behind = list(waiting.invars)
    seen = set()
    while behind:
        equation = made_by.get(behind.pop())
        if equation is not None and id(equation) not in seen:
            seen.add(id(equation))
            behind.extend(each for each in equation.invars if not hasattr(each, "val"))
            if equation.primitive.name == "convjax_conv_weight":
                return
    pytest.fail(f"the input gradient waits for no weight gradient: {jaxpr}")


@pytest.mark.parametrize(
    ("policy", "times"), [(None, 2), (ops.convolutions_saveable, 1)], ids=["nothing", "saveable"]
)
def test_convolutions_are_computed_again_in_the_backward_pass_unless_the_policy_saves_them(
    policy, times
):
    geometry = square((8, 8), 3)
    x, kernel, _ = arrays(geometry, 2, 4, 4, np.float32)
    f = convolution(geometry)

    def loss(x):
        return jnp.sin(jnp.sin(f(jnp.sin(f(x, kernel)), kernel))).sum()

    text = str(jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy)))(x))
    assert len(re.findall(r"convjax_conv\b", text)) == 2 * times


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint])
def test_an_output_that_nobody_uses_has_a_gradient_of_zero(transform, wanted):
    geometry = square((8, 8), 3)
    x, kernel, _ = arrays(geometry, 2, 4, 4, np.float32)
    unused = transform(lambda x, kernel: (convolution(geometry)(x, kernel), 0 * x.sum()))
    for slopes in jax.grad(lambda x, kernel: unused(x, kernel)[1], wanted)(x, kernel):
        assert not slopes.any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_gradient_that_is_not_finite_changes_no_input_gradient(value):
    geometry = square((8, 8), 3)
    x, kernel, g = arrays(geometry, 2, 4, 4, np.float32)
    expected = by_pytorch(*(a.astype(np.float64) for a in (x, kernel, g)), geometry=geometry)
    x[:] = value
    _, transposed = jax.vjp(convolution(geometry), x, kernel)
    found, weight = jax.jit(transposed)(jnp.asarray(g))
    assert not np.isfinite(weight).any()
    assert_near(found, expected["conv_input"], tolerance("winograd", found.dtype))


@pytest.mark.parametrize(
    "geometry",
    [
        *(square((8, 8), 3), square((8, 8), 7, 3, pad=3)),
        *(square((8, 8), 3, groups=64), square((8, 8), 3, 2, groups=4)),
    ],
    ids=["winograd", "large", "depthwise", "grouped"],
)
def test_vmap_over_kernels_makes_no_grouped_convolution(geometry):
    # XLA makes one of a batched kernel, and is 10 to 100 times slower with it on the CPU.
    f = convolution(geometry)
    x, kernel, _ = arrays(geometry, 16, 64, 64, np.float32)
    kernels = np.stack([kernel] * 3)

    def lowered(function, *arguments):
        text = jax.jit(function).lower(*arguments).as_text()
        return set(re.findall(r"(?:feature|batch)_group_count = (\d+)", text))

    for each in (f, functools.partial(gradients, f)):
        assert lowered(jax.vmap(each, (None, 0)), x, kernels) <= {"1"}
        assert lowered(jax.vmap(each), np.stack([x] * 3), kernels) <= {"1"}
    with ops.algorithm("lax"):
        assert lowered(jax.vmap(f), np.stack([x] * 3), kernels) - {"1"}


@pytest.mark.parametrize(
    ("window", "batch", "size", "images"),
    [
        *[(3, 5, (5, 9), 2), (3, 6, (4, 3), 3), (3, 7, (1, 6), 1), (3, 5, (4, 8), 5)],
        *[(3, 7, (4, 4), 4), (5, 7, (6, 5), 3), (5, 4, (5, 3), 2)],
    ],
)
def test_winograd_in_turns_equals_xla(monkeypatch, window, batch, size, images):
    # Sizes that are no multiple of the tile, and batches that are no multiple of the turn: where no
    # divisor of them is near, images of zeros fill the last turn up.
    geometry = square(size, window, pad=window // 2)
    tiles = -(-size[0] // winograd.TILE) * -(-size[1] // winograd.TILE)
    monkeypatch.setattr(winograd, "TURN_BYTES", 0)
    monkeypatch.setattr(winograd, "TURN_TILES", images * tiles)
    check_turns("winograd", geometry, batch, channels=3, features=2, turns=batch > images)


@pytest.mark.parametrize(
    ("window", "stride", "products"),
    [(3, 1, 1), (3, 1, 4), (3, 2, 32), (7, 1, 4), (7, 2, 6), (7, 2, 32)],
)
def test_depthwise_in_turns_equals_xla(monkeypatch, window, stride, products):
    # Up to nine taps are added up together; the rows of more, one after the other.
    monkeypatch.setattr(depthwise, "PRODUCTS", products)
    geometry = square((7, 6), window, stride, groups=2, pad=window // 2)
    check_turns("depthwise", geometry, 3, channels=2, features=4, turns=True)


@pytest.mark.parametrize("window", [(11,), (2, 2, 3), (3, 1, 2)], ids=str)
def test_depthwise_in_turns_equals_xla_in_other_ranks(monkeypatch, window):
    monkeypatch.setattr(depthwise, "PRODUCTS", 2)
    rank = len(window)
    alone = (1,) * rank
    geometry = Geometry((6, 4, 5)[:rank], window, (2, 1, 1)[:rank], alone, ((5, 5),) * rank, 2)
    check_turns("depthwise", geometry, 3, channels=2, features=2, turns=True)


def check_turns(name, geometry, batch, channels, features, turns):
    """Each algorithm of that name equals XLA's, and some one takes turns where it is to."""
    given = arrays(geometry, batch, channels, features)
    expected = quick(lambda *all: by_xla(*all, geometry=geometry))(*given)
    lowered = quick(lambda *all: by_algorithm(*all, geometry=geometry, only=name)).lower(*given)
    assert ("stablehlo.while" in lowered.as_text()) is turns
    for (operation, _), found in lowered.compile()(*given).items():
        assert_near(found, expected[operation], tolerance(name, np.float64), operation)


@pytest.mark.parametrize("groups", [1, 4])
def test_no_images_give_no_images_and_a_gradient_of_zeros(groups):
    geometry = square((8, 8), 3, groups=groups)
    x, kernel, _ = arrays(geometry, 0, 4, 4)

    @quick
    def results(x, kernel):
        y, pull = jax.vjp(convolution(geometry), x, kernel)
        return y, *pull(y)

    y, gx, gk = results(x, kernel)
    assert (y.shape, gx.shape) == ((0, 8, 8, 4), (0, 8, 8, 4))
    np.testing.assert_array_equal(gk, np.zeros_like(kernel))


def test_vmap_over_no_members_gives_none():
    kernels, xs = np.zeros((0, 3, 3, 4, 2)), np.zeros((0, 2, 8, 8, 4))
    assert jax.vmap(ops.conv, (None, 0))(np.zeros((2, 8, 8, 4)), kernels).shape == (0, 2, 8, 8, 2)
    assert jax.vmap(ops.conv, (0, None))(xs, np.zeros((3, 3, 4, 2))).shape == (0, 2, 8, 8, 2)
    assert jax.vmap(ops.conv)(xs, kernels).shape == (0, 2, 8, 8, 2)
