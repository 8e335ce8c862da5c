"""Every layer under jit, vmap, grad, jvp, remat, bfloat16 and on several devices.

The checks of one entry share a few compiled programs, and so the whole takes a minute or two.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import Entry, entries
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import convjax
from convjax import Context, Layer, remat, tree

CATALOGUE = {entry.name: entry for entry in entries()}
KEY = jax.random.key(7)
TRAIN = Context(KEY, train=True)

# Public names that are neither a layer, nor make one, nor are a function of an array.
NO_LAYERS = {
    *("data", "initializers", "models", "ops", "tree"),  # modules
    *("Context", "Layer", "Net"),  # types
    *("name_parts", "walk"),  # list the parts of a network
}


class Case(NamedTuple):
    """A layer with an input, and parameters and state as they are after some training."""

    layer: Layer
    spec: Any
    x: Any
    params: Any
    state: Any


@pytest.fixture(scope="module", autouse=True)
def unoptimised_programs():
    """Every program here runs once or twice: to optimise it costs ten times what it saves."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=CATALOGUE, scope="module")
def entry(request: pytest.FixtureRequest) -> Entry:
    return CATALOGUE[request.param]


@pytest.fixture(scope="module")
def case(entry: Entry) -> Case:
    layer, spec = entry.layer, entry.spec
    params, state = layer.init(jax.random.key(0), spec)
    # Scales of one and biases of zero would hide where they enter; variances stay positive.
    params = jax.tree.map(lambda leaf, noise: leaf + 0.3 * noise, _arrays(params), _normal(params))
    state = jax.tree.map(
        lambda leaf, noise: leaf + 0.3 * np.abs(noise), _arrays(state), _normal(state)
    )
    return Case(layer, spec, *jax.device_put((_normal(spec), params, state)))


@pytest.fixture(scope="module")
def trained(case: Case) -> Any:
    """What a compiled call in training mode returns."""
    return _compiled(case.layer.apply)(case.params, case.state, case.x, TRAIN)


# -- One device ------------------------------------------------------------------------------------


def test_init_is_a_function_of_the_key(case: Case):
    first = case.layer.init(jax.random.key(3), case.spec)
    again = case.layer.init(jax.random.key(3), case.spec)
    assert tree.digest(first) == tree.digest(again)


def test_compiled_init_equals_eager_init(case: Case):
    eager = case.layer.init(jax.random.key(3), case.spec)
    compiled = _compiled(lambda key: case.layer.init(key, case.spec))(jax.random.key(3))
    assert_close(compiled, eager, 1e-6)


def test_init_needs_shapes_only(case: Case):
    drawn = case.layer.init(jax.random.key(3), case.spec)
    from_array = case.layer.init(jax.random.key(3), case.x)
    abstract = jax.eval_shape(lambda key: case.layer.init(key, case.spec), jax.random.key(3))
    assert tree.digest(from_array) == tree.digest(drawn)
    assert _shapes(abstract) == _shapes(drawn)


def test_state_keeps_its_structure(case: Case, trained: Any):
    evaluated = jax.eval_shape(case.layer.apply, case.params, case.state, case.x, Context())
    assert _shapes(trained[1]) == _shapes(case.state)
    assert _shapes(evaluated[1]) == _shapes(case.state)


def test_jit_equals_eager(case: Case, trained: Any):
    eager = case.layer.apply(case.params, case.state, case.x, TRAIN)
    assert_close(trained, eager, 1e-5)


def test_vmap_over_images_equals_the_batch(case: Case):
    def one(image: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[None], image)
        y, _ = case.layer.apply(case.params, case.state, batch, Context())
        return jax.tree.map(lambda leaf: leaf.squeeze(0), y)

    @_compiled
    def both(x: Any) -> Any:
        return jax.vmap(one)(x), case.layer.apply(case.params, case.state, x, Context())

    each, (batch, state) = both(case.x)
    assert_close(each, batch, 1e-5)
    assert tree.digest(state) == tree.digest(case.state)  # which only training changes


def test_vmap_over_parameters_trains_each_member_as_alone(case: Case):
    other = case.layer.init(jax.random.key(1), case.spec)
    members = jax.tree.map(lambda *each: np.stack(each), (case.params, case.state), other)
    keys = jax.random.split(KEY, 2)

    def step(member: Any, key: jax.Array, x: Any) -> Any:
        return case.layer.apply(*member, x, Context(key, train=True))

    ensemble = _compiled(jax.vmap(step, (0, 0, None)))(members, keys, case.x)
    each_alone = [
        _compiled(case.layer.apply)(*member, case.x, Context(key, train=True))
        for member, key in zip([(case.params, case.state), other], keys, strict=True)
    ]
    assert_close(ensemble, jax.tree.map(lambda *each: np.stack(each), *each_alone), 1e-5)


def test_gradients_are_right(case: Case):
    """Backward, forward and numerical derivatives agree, in float64; remat changes nothing."""
    with jax.enable_x64(True):
        at = _wide((case.params, case.x))
        along, state = _wide(_normal(at, seed=1)), _wide(case.state)
        plain = functools.partial(_trained_at, case.layer, state)
        rematerialised = functools.partial(_trained_at, remat(case.layer), state)
        weights = _wide(_normal(jax.eval_shape(plain, at)[0], seed=2))

        @_compiled
        def derivatives(at: Any) -> Any:
            y, forward, new = jax.jvp(plain, (at,), (along,), has_aux=True)
            (gradient,) = jax.vjp(plain, at, has_aux=True)[1](weights)
            y_again, pullback, new_again = jax.vjp(rematerialised, at, has_aux=True)
            (gradient_again,) = pullback(weights)
            once, again = (y, new, gradient), (y_again, new_again, gradient_again)
            return once, again, _dot(gradient, along), _dot(forward, weights)

        once, again, backward, forward = derivatives(at)
        weighed = _compiled(lambda at: _dot(plain(at)[0], weights))
        high = jax.tree.map(lambda p, d: p + 1e-6 * d, *_arrays((at, along)))
        low = jax.tree.map(lambda p, d: p - 1e-6 * d, *_arrays((at, along)))
        numeric = (weighed(high) - weighed(low)) / 2e-6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(once))
    assert abs(float(forward)) > 1e-3  # so that the derivatives agree on something
    np.testing.assert_allclose(backward, forward, rtol=1e-9)
    np.testing.assert_allclose(forward, numeric, rtol=1e-6)
    assert_close(again, once, 1e-12)


def test_bfloat16_in_gives_bfloat16_out_and_parameters_stay_float32(case: Case, trained: Any):
    x = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, jnp.bfloat16)), case.x)
    params, state = jax.eval_shape(lambda key: case.layer.init(key, x), jax.random.key(0))
    assert _shapes((params, state)) == _shapes((case.params, case.state))

    def loss(params: Any) -> Any:
        y, _ = case.layer.apply(params, case.state, x, TRAIN)
        return sum(leaf.sum().astype(jnp.float32) for leaf in jax.tree.leaves(y))

    gradient = jax.eval_shape(jax.grad(loss), case.params)
    y, state = _compiled(case.layer.apply)(case.params, case.state, x, TRAIN)
    assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype(jnp.bfloat16)}
    assert _shapes(gradient) == _shapes(case.params)
    assert _shapes(state) == _shapes(case.state)
    # Eight bits a number, and a handful of layers.
    assert_close((y, state), trained, 0.05)


# -- Several devices -------------------------------------------------------------------------------


def test_eight_devices_compute_what_one_does(case: Case, trained: Any):
    """Outputs, statistics and masks of a sharded batch: under jit, and under shard_map."""
    mesh = _mesh()
    mapped = _on_each_device(mesh, functools.partial(_forward, case.layer, "devices"))

    @_compiled
    def both(*given: Any) -> Any:
        return _forward(case.layer, None, *given), mapped(*given)

    given = _placed(mesh, case)
    sharded, shard_mapped = both(*given)
    assert_close(sharded, trained, 1e-5)
    assert_close(shard_mapped, trained, 1e-5)


@pytest.mark.parametrize("entry", ["serial", "batch_norm/2d", "stack"], indirect=True)
def test_eight_devices_learn_what_one_does(case: Case):
    """The gradient goes through the statistics of the whole batch, wherever it lies."""
    mesh = _mesh()

    def gradient(axis: str | None, params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            y, _ = _forward(case.layer, axis, params, state, x)
            return _dot(y, jnp.sin(y))

        gradient = jax.grad(loss)(params)
        return (jax.lax.psum(gradient, axis) if axis else gradient), ()

    mapped = _on_each_device(mesh, functools.partial(gradient, "devices"), P())
    one = _compiled(functools.partial(gradient, None))
    expected = one(case.params, case.state, case.x)
    given = _placed(mesh, case)
    assert_close(one(*given), expected, 1e-4)
    assert_close(_compiled(mapped)(*given), expected, 1e-4)


def _forward(layer: Layer, axis: str | None, params: Any, state: Any, x: Any) -> Any:
    return layer.apply(params, state, x, dataclasses.replace(TRAIN, axis=axis))


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))


def _on_each_device(mesh: jax.sharding.Mesh, fn: Any, out: P = P("devices")) -> Any:
    """A function of (params, state, x) with a part of x on each device; it returns (y, state)."""
    specs = (P(), P(), P("devices"))
    return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=(out, P()), check_vma=False)


def _placed(mesh: jax.sharding.Mesh, case: Case) -> Any:
    """Parameters and state on every device, and an eighth of the batch on each."""
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("devices"))
    return jax.device_put((case.params, case.state, case.x), (whole, whole, split))


# -- The catalogue itself --------------------------------------------------------------------------


def test_catalogue_is_complete():
    stub = Path(convjax.__file__).with_suffix(".pyi").read_text()
    public = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(stub))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    makers = {
        name
        for module in (convjax.layers, convjax.combine)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__.startswith(module.__name__)
        if not name.startswith("_")
    }
    catalogued = {name.split("/")[0] for name in CATALOGUE}
    assert (public | makers) - NO_LAYERS - catalogued == set()


def test_names_in_the_catalogue_are_public():
    assert {name.split("/")[0] for name in CATALOGUE} <= set(dir(convjax))


def test_every_entry_has_a_name_of_its_own():
    assert len(CATALOGUE) == len(entries())


# -- What they share -------------------------------------------------------------------------------


def _compiled(fn: Any) -> Any:
    """`jax.jit` for a program that runs once or twice."""
    return jax.jit(fn, compiler_options=_quick_compilation())


@functools.cache
def _quick_compilation() -> dict[str, Any]:
    """XLA's simpler code generator, which takes a quarter of the time; nothing where it is gone."""
    options = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def _trained_at(layer: Layer, state: Any, at: Any) -> Any:
    params, x = at
    return layer.apply(params, state, x, TRAIN)


def _dot(a: Any, b: Any) -> jax.Array:
    """The inner product of two trees of arrays."""
    return sum(
        (jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)),
        jnp.zeros(()),
    )


def _normal(like: Any, seed: int = 0) -> Any:
    """NumPy arrays of the shapes and dtypes of a tree, each number normally distributed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), like)


def _arrays(of: Any) -> Any:
    return jax.tree.map(np.asarray, of)


def _wide(of: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), of)


def _shapes(trees: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {path: (leaf.shape, leaf.dtype.name) for path, leaf in tree.leaves(trees).items()}


def assert_close(ours: Any, expected: Any, tolerance: float) -> None:
    """The same paths, and numbers that differ by no more than a share of the largest."""
    ours, expected = tree.leaves(ours), tree.leaves(expected)
    assert ours.keys() == expected.keys()
    for path, value in expected.items():
        mine, value = np.asarray(ours[path], np.float64), np.asarray(value, np.float64)
        allowed = tolerance * max(1.0, np.abs(value).max())
        np.testing.assert_allclose(mine, value, rtol=0, atol=allowed, err_msg=path)
