"""Combinators: what each computes, in which order, with which parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import (
    Context,
    batch_norm,
    branch,
    capture,
    compose,
    conv,
    dense,
    dropout,
    identity,
    loop,
    parallel,
    parametric,
    relu,
    remat,
    repeat,
    residual,
    serial,
    shaped,
    stack,
    tanh,
    tree,
)

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 3))


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), a, b)


def double(x):
    return 2 * x


def increment(x):
    return x + 1


def scale():
    return parametric("scale", lambda params, x: x * params["factor"], factor=draw)


def draw(key, x):
    return jax.random.uniform(key, (), x.dtype, 0.5, 2.0)


def value_and_gradient(built, ctx):
    """The gradient of a weighted sum of the output; the output and the new state."""
    net, params, state = built

    def loss(params):
        y, new = net.apply(params, state, X, ctx)
        return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum(), (y, new)

    return jax.jit(jax.grad(loss, has_aux=True))(params)


# -- serial, branch, parallel, residual ------------------------------------------------------------


def test_serial_applies_its_parts_in_order():
    assert serial(double, increment).apply({}, {}, X[0, 0])[0] == 2 * X[0, 0] + 1
    assert serial(increment, double).apply({}, {}, X[0, 0])[0] == 2 * (X[0, 0] + 1)


def test_serial_of_nothing_is_the_identity():
    np.testing.assert_array_equal(serial().apply({}, {}, X)[0], X)


def test_a_keyword_that_a_number_has_taken_is_an_error():
    with pytest.raises(ValueError, match="two parts are called 'dense1'"):
        serial(dense(3), dense1=dense(4))


def test_functions_are_numbered_after_the_layers_of_their_kind():
    def dense_(x):
        return x

    dense_.__name__ = "dense"
    assert list(serial(dense_, dense(3), dense_, dense(4)).parts) == [
        *("dense3", "dense1", "dense4", "dense2")
    ]


def test_branch_joins_on_the_channel_axis_or_by_a_function():
    np.testing.assert_array_equal(
        branch(double, increment).apply({}, {}, X)[0], np.concatenate([2 * X, X + 1], axis=-1)
    )
    np.testing.assert_array_equal(
        branch(double, increment, join=sum).apply({}, {}, X)[0], 2 * X + (X + 1)
    )
    apart, _ = branch(double, named=increment, join=tuple).apply({}, {}, X)
    np.testing.assert_array_equal(apart[0], 2 * X)
    np.testing.assert_array_equal(apart[1], X + 1)


def test_parallel_gives_each_part_its_own_input():
    net = parallel(dense(4), dense(5))
    spec = (jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((2, 7), jnp.float32))
    params, state = net.init(KEY, spec)
    assert params["dense1"]["kernel"].shape == (3, 4)
    assert params["dense2"]["kernel"].shape == (7, 5)
    (y, z), _ = parallel(double, increment).apply({}, {}, (X, X))
    np.testing.assert_array_equal(y, 2 * X)
    np.testing.assert_array_equal(z, X + 1)
    with pytest.raises(ValueError, match="parallel has 2 layers and was given 3 inputs"):
        net.apply(params, state, (X, X, X))


def test_residual_adds_the_shortcut_and_then_applies_the_last():
    y, _ = residual(double, double).apply({}, {}, X)
    np.testing.assert_allclose(y, 5 * X, rtol=1e-6)
    y, _ = residual(double, shortcut=increment, then=relu).apply({}, {}, X)
    np.testing.assert_allclose(y, np.maximum(3 * X + 1, 0), rtol=1e-6)


def test_residual_of_two_shapes_is_an_error_and_never_a_broadcast():
    net = serial(residual(dense(1)))
    with pytest.raises(ValueError, match=r"residual adds \(2, 1\) to \(2, 3\): give shortcut="):
        net.init(KEY, X)


# -- repeat, loop, stack ---------------------------------------------------------------------------


def test_repeat_draws_new_parameters_for_each_copy_and_loop_shares_them():
    repeated, _ = repeat(3, dense(3)).init(KEY, X)
    looped, _ = loop(3, dense(3)).init(KEY, X)
    assert list(repeated) == ["dense1", "dense2", "dense3"]
    assert list(looped) == ["body"]
    kernel = np.asarray(looped["body"]["kernel"], np.float64)
    y, _ = loop(3, dense(3)).apply(looped, {}, X)
    np.testing.assert_allclose(y, np.asarray(X, np.float64) @ kernel @ kernel @ kernel, rtol=1e-4)


@pytest.mark.parametrize("nest", [repeat, loop, stack])
def test_no_copies_are_the_identity_and_half_a_copy_an_error(nest):
    params, state = nest(0, dense(7)).init(KEY, X)
    assert (params, state) == ({}, {})
    np.testing.assert_array_equal(nest(0, dense(7)).apply(params, state, X)[0], X)
    for count in (-1, 1.5):
        with pytest.raises(ValueError, match="a whole number of times"):
            nest(count, relu)


def block():
    return serial(residual(dense(3), batch_norm(), tanh), scale())


def copy_of(stacked, number):
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def stacked_and_repeated(count=3):
    """A stack with its parameters, and the repeat of the same layer with the same parameters."""
    stacked = stack(count, block())
    params, state = stacked.init(KEY, X)
    # Every copy of the batch statistics starts elsewhere, so that a mix-up would be seen.
    state = jax.tree.map(lambda leaf: leaf + jnp.arange(count, dtype=leaf.dtype)[:, None], state)

    def copies(given):
        return {f"serial{n + 1}": copy_of(given["body"], n) for n in range(count)}

    return (stacked, params, state), (repeat(count, block()), copies(params), copies(state))


@pytest.mark.parametrize("train", [True, False])
def test_stack_equals_repeat_in_values_gradients_and_batch_statistics(train):
    ctx = Context(train=train)
    stacked, repeated = stacked_and_repeated()
    gradient, (y, state) = value_and_gradient(stacked, ctx)
    expected_gradient, (expected_y, expected_state) = value_and_gradient(repeated, ctx)
    assert_close(y, expected_y)
    for got, expected in ((gradient, expected_gradient), (state, expected_state)):
        for number, copy in enumerate(expected.values()):
            assert_close(copy_of(got["body"], number), copy)


def test_stack_compiles_its_layer_once_whatever_the_number_of_copies():
    def operations(count):
        net = stack(count, serial(dense(3), tanh))
        params, state = net.init(KEY, X)
        return str(jax.make_jaxpr(net.apply)(params, state, X)).count("= tanh")

    assert operations(2) == operations(20) == 1


def test_copies_in_a_stack_drop_different_numbers():
    net = capture(stack(4, dropout(0.5)), "body")
    (_, seen), _ = net.apply({}, {}, jnp.ones((2, 64)), Context(KEY, train=True))
    kept = np.asarray(seen["body"]) != 0
    assert kept.shape == (4, 2, 64)
    alone = [kept[0]] + [kept[n][kept[n - 1]] for n in range(1, 4)]
    # What the copy before has kept, a copy keeps in half of the cases: 4 standard deviations.
    assert all(abs(each.mean() - 0.5) < 4 * 0.5 / np.sqrt(each.size) for each in alone)


def test_stacks_nest():
    net = stack(2, serial(stack(3, serial(dense(3), tanh)), scale()))
    params, state = net.init(KEY, X)
    assert params["body"]["stack1"]["body"]["dense1"]["kernel"].shape == (2, 3, 3, 3)
    assert params["body"]["scale1"]["factor"].shape == (2,)
    expected = np.asarray(X, np.float64)
    kernels = np.asarray(params["body"]["stack1"]["body"]["dense1"]["kernel"], np.float64)
    for outer in range(2):
        for inner in range(3):
            expected = np.tanh(expected @ kernels[outer, inner])
        expected = expected * np.asarray(params["body"]["scale1"]["factor"], np.float64)[outer]
    np.testing.assert_allclose(net.apply(params, state, X)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_stack_whose_layer_changes_the_shape_is_an_error_at_init():
    with pytest.raises(ValueError, match=r"float32\[2,3\] became float32\[2,5\]: use repeat"):
        serial(stack(2, dense(5))).init(KEY, X)
    with pytest.raises(ValueError, match=r"float32\[2,3\] became float16\[2,3\]"):
        stack(2, lambda x: x.astype(jnp.float16)).apply({}, {}, X)


# -- remat -----------------------------------------------------------------------------------------

NETS = {
    "a leaf": lambda wrap: wrap(dense(3)),
    "a nest": lambda wrap: wrap(serial(dense(3), batch_norm(), tanh)),
    "in a stack": lambda wrap: stack(2, wrap(serial(dense(3), batch_norm(), dropout(0.3), tanh))),
    "around a stack": lambda wrap: wrap(stack(2, serial(dense(3), batch_norm(), tanh))),
    "in itself": lambda wrap: wrap(residual(wrap(serial(dense(3), wrap(batch_norm()), tanh)))),
    "around shaped": lambda wrap: wrap(shaped(lambda x: serial(dense(x.shape[-1]), tanh))),
}


@pytest.mark.parametrize("kind", NETS)
def test_remat_keeps_parameters_values_gradients_state_and_randomness(kind):
    plain, saved = NETS[kind](identity), NETS[kind](remat)
    given = plain.init(KEY, X)
    assert list(saved.parts) == list(plain.parts)
    assert saved.kind == plain.kind
    jax.tree.map(np.testing.assert_array_equal, saved.init(KEY, X), given)
    ctx = Context(KEY, train=True)
    assert_close(value_and_gradient((saved, *given), ctx), value_and_gradient((plain, *given), ctx))


@pytest.mark.parametrize("kind", ["a nest", "in a stack"])
def test_remat_computes_the_activations_again_in_the_backward_pass(kind):
    def tanhs(net):
        params, state = net.init(KEY, X)

        def loss(params):
            return net.apply(params, state, X)[0].sum()

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("= tanh")

    assert tanhs(NETS[kind](identity)) == 1
    assert tanhs(NETS[kind](remat)) == 2


# -- shaped, compose -------------------------------------------------------------------------------


def test_shaped_reads_the_input_and_owns_the_paths_of_what_it_makes():
    project = shaped(lambda x: identity if x.shape[-1] == 4 else conv(4, 1, bias=False))
    net = serial(project, project, nested=shaped(lambda x: serial(conv(x.shape[-1] * 2, 1))))
    params, state = net.init(KEY, jax.ShapeDtypeStruct((1, 5, 5, 3), jnp.float32))
    assert {path: leaf.shape for path, leaf in tree.leaves(params).items()} == {
        "shaped1/kernel": (1, 1, 3, 4),
        "nested/conv1/bias": (8,),
        "nested/conv1/kernel": (1, 1, 4, 8),
    }
    assert net.apply(params, state, jnp.ones((1, 5, 5, 3)))[0].shape == (1, 5, 5, 8)


def test_shaped_alone_is_a_layer_and_carries_the_state_of_what_it_makes():
    net = shaped(lambda x: serial(batch_norm(momentum=0.0), dense(x.shape[-1])))
    params, state = net.init(KEY, X)
    _, after = net.apply(params, state, X, Context(train=True))
    np.testing.assert_allclose(after["norm1"]["mean"], np.mean(np.asarray(X), axis=0), rtol=1e-5)


def test_a_wire_calls_parts_by_attribute_by_name_and_in_turn():
    def wire(net, x):
        return net.first(x) + net["second"](x) + sum(part(x) for part in net)

    net = compose(wire, first=double, second=increment)
    np.testing.assert_allclose(net.apply({}, {}, X)[0], 2 * (2 * X + X + 1), rtol=1e-6)


def test_a_shared_batch_norm_sees_its_calls_one_after_the_other():
    net = compose(lambda net, x: net.norm(net.norm(x) + 3), norm=batch_norm(momentum=0.5))
    params, state = net.init(KEY, X)
    _, after = net.apply(params, state, X, Context(train=True))
    first = 0.5 * np.mean(np.asarray(X), axis=0)  # of a running mean that begins at 0
    np.testing.assert_allclose(after["norm"]["mean"], 0.5 * first + 0.5 * 3, rtol=1e-4)


def test_a_layer_shows_what_it_is_made_of():
    net = serial(conv(8, 3), residual(relu), head=dense(3))
    assert repr(net) == (
        "serial(conv1=conv, residual1=residual(relu1=relu, shortcut=identity, then=identity), "
        "head=dense)"
    )
