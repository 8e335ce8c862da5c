"""The language itself: names, keys, sharing, one abstract pass, errors that know their place."""

import copy
import functools
import operator
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convjax import (
    Context,
    Layer,
    batch_norm,
    branch,
    capture,
    compose,
    conv,
    dense,
    dropout,
    flatten,
    function,
    loop,
    max_pool,
    parametric,
    prelu,
    relu,
    remat,
    repeat,
    residual,
    serial,
    shaped,
    stack,
    tree,
)

KEY = jax.random.key(0)
IMAGES = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)


def noise() -> Layer:
    """A layer that answers with the key by which it would draw."""

    def apply(params, state, x, ctx=Context()):
        return jax.random.key_data(ctx.rng("noise")), state

    return Layer(lambda key, spec: ({}, {}), apply, "noise")


def fail(x):
    raise RuntimeError("the layer broke")


def bits(params) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.leaves(params).items()}


# -- Names and weights -----------------------------------------------------------------------------


def norm(x):
    """A function that is called like a kind of layer."""
    return x / 2


NEWCOMERS = {
    "dropout": lambda: dropout(0.5),
    "pool": lambda: max_pool(3, stride=1, padding="SAME"),
    "lambda": lambda: lambda x: 2 * x,
    "relu": lambda: relu,
    "a function called norm": lambda: norm,
}
LEAVES = {
    "conv": lambda: conv(3, 3),
    "norm": batch_norm,
    "prelu": prelu,
    "relu": lambda: relu,
    "dropout": lambda: dropout(0.1),
}
NESTS = {
    "serial": serial,
    "residual": residual,
    "branch": lambda *parts: branch(*parts, join=sum),
    "remat": lambda *parts: remat(serial(*parts)),
    "stack": lambda *parts: stack(2, serial(*parts)),
    "loop": lambda *parts: loop(2, serial(*parts)),
    "shaped": lambda *parts: shaped(lambda x: serial(*parts)),
}


def build(plan) -> Any:
    """A network from its description: the name of a leaf, or [nest, part, part, ...]."""
    if isinstance(plan, str):
        return {**LEAVES, **NEWCOMERS}[plan]()
    return NESTS[plan[0]](*map(build, plan[1:]))


def nests(plan) -> list:
    """Every nest of a description, outer ones first, each a list that may be changed in place."""
    return [] if isinstance(plan, str) else [plan, *(n for part in plan[1:] for n in nests(part))]


@st.composite
def insertions(draw, newcomer: str):
    """A random nested network, and the same with a newcomer at a random position."""

    def nest(parts):
        kinds = st.sampled_from(sorted(NESTS)).map(lambda kind: [kind])
        return st.builds(operator.add, kinds, st.lists(parts, min_size=1, max_size=3))

    names = st.sampled_from(sorted(LEAVES))
    plans = st.recursive(names, nest, max_leaves=6)
    before = ["serial", *draw(st.lists(plans, min_size=1, max_size=3))]
    after = copy.deepcopy(before)
    where = draw(st.sampled_from(range(len(nests(after)))))
    chosen = nests(after)[where]
    position = draw(st.integers(1, len(chosen)))  # 0 is the kind of the nest.
    chosen.insert(position, newcomer)
    return before, after


@pytest.mark.parametrize("newcomer", NEWCOMERS)
def test_inserting_a_part_without_parameters_anywhere_changes_no_path_and_no_bit(newcomer):
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(insertions(newcomer))
    def holds(plans):
        before, after = (build(plan).init(KEY, IMAGES) for plan in plans)
        assert bits(after) == bits(before)

    holds()


def test_names_are_keywords_or_kind_and_number():
    net = serial(conv(2, 3), relu, conv(2, 3), relu, batch_norm(), head=conv(1, 1))
    assert list(net.parts) == ["conv1", "relu1", "conv2", "relu2", "norm1", "head"]
    params, state = net.init(KEY, IMAGES)
    assert sorted(tree.leaves(params)) == [
        *("conv1/bias", "conv1/kernel", "conv2/bias", "conv2/kernel"),
        *("head/bias", "head/kernel", "norm1/bias", "norm1/scale"),
    ]
    assert sorted(tree.leaves(state)) == ["norm1/mean", "norm1/var"]


def test_a_part_without_parameters_has_no_key_in_params_or_state():
    params, state = serial(relu, serial(flatten, dropout(0.5))).init(KEY, IMAGES)
    assert (params, state) == ({}, {})


def test_a_wire_gives_its_name_to_the_layer_and_named_another():
    def block(net, x):
        return net.conv(x)

    assert compose(block, conv=conv(2, 3)).kind == "block"
    assert list(serial(serial(relu).named("stage"), serial(relu).named("stage")).parts) == [
        "stage1",
        "stage2",
    ]


@pytest.mark.parametrize("name", ["params", "state", "ctx", "scan", "pure", "_calls", "a/b", ""])
def test_a_part_cannot_take_a_name_that_would_hide_something(name):
    with pytest.raises(ValueError, match="choose another name"):
        compose(lambda net, x: x, **{name: relu})


def test_a_part_called_twice_shares_its_parameters():
    def twice(net, x):
        return net.conv(net.conv(x))

    net = compose(twice, conv=conv(3, 1, bias=False))
    x = jax.random.normal(KEY, IMAGES.shape)
    params, state = net.init(KEY, x)
    assert list(tree.leaves(params)) == ["conv/kernel"]
    kernel = np.asarray(params["conv"]["kernel"], np.float64)[0, 0]
    y, _ = net.apply(params, state, x)
    np.testing.assert_allclose(y, np.asarray(x, np.float64) @ kernel @ kernel, rtol=1e-4, atol=1e-5)


def test_a_part_never_called_has_no_parameters():
    net = compose(lambda net, x: net.used(x), used=conv(2, 1), unused=conv(2, 1))
    assert list(net.init(KEY, IMAGES)[0]) == ["used"]


def test_a_part_called_only_when_training_has_parameters():
    def wire(net, x):
        return (net.main(x), net.auxiliary(x)) if net.ctx.train else net.main(x)

    net = compose(wire, main=conv(2, 1), auxiliary=conv(5, 1))
    params, state = net.init(KEY, IMAGES)
    assert params["auxiliary"]["kernel"].shape == (1, 1, 3, 5)
    y, _ = net.apply(params, state, jnp.ones(IMAGES.shape), Context())
    assert y.shape == (2, 4, 4, 2)


# -- Keys ------------------------------------------------------------------------------------------


def test_a_weight_is_drawn_with_the_key_folded_by_name_level_by_level():
    net = serial(stage1=serial(conv(4, 3), relu, conv(5, 3)))
    kernel = net.init(KEY, IMAGES)[0]["stage1"]["conv2"]["kernel"]
    key = KEY
    for name in (b"stage1", b"conv2", b"kernel"):
        key = jax.random.fold_in(key, zlib.crc32(name))
    expected = jax.random.normal(key, (3, 3, 4, 5)) * np.sqrt(2 / (3 * 3 * 4)).astype(np.float32)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_the_same_key_draws_the_same_weights_and_another_key_others():
    net = serial(conv(4, 3), prelu(), stack(2, conv(4, 3)), flatten, dense(3))
    first, again, other = (net.init(jax.random.key(n), IMAGES)[0] for n in (1, 1, 2))
    assert bits(first) == bits(again)
    kernels = [path for path in tree.leaves(first) if path.endswith("kernel")]
    assert len(kernels) == 3
    assert all(bits(first)[path] != bits(other)[path] for path in kernels)


def test_every_leaf_and_every_copy_in_a_stack_has_randomness_of_its_own():
    block = serial(conv(3, 1, bias=False), conv(3, 1, bias=False))
    net = serial(block, repeat(2, block), stack(2, stack(2, block)), conv(3, 1, bias=False))
    params, _ = net.init(KEY, IMAGES)
    drawn = [np.asarray(leaf).reshape(-1, 9) for leaf in tree.leaves(params).values()]
    kernels = np.concatenate(drawn)
    assert len(kernels) == 2 + 4 + 8 + 1
    assert len(np.unique(kernels)) == kernels.size  # No two of all the numbers are equal.


def test_weights_do_not_depend_on_batch_or_image_size_or_how_the_input_is_described():
    net = serial(conv(4, 3), residual(conv(4, 3), batch_norm()))
    by_spec = net.init(KEY, IMAGES)
    by_array = net.init(KEY, jnp.ones((5, 8, 8, 3)))
    assert bits(by_spec) == bits(by_array)


def test_dropout_twice_in_one_call_gives_two_masks_and_the_same_context_the_same():
    def wire(net, x):
        return net.drop(x), net.drop(x), net.other(x)

    net = compose(wire, drop=noise(), other=noise())
    ctx = Context(key=jax.random.key(3), train=True)
    x = jnp.ones(2)
    (first, second, other), _ = net.apply({}, {}, x, ctx)
    (again, _, _), _ = net.apply({}, {}, x, ctx)
    (next_call, _, _), _ = net.apply({}, {}, x, Context(key=jax.random.key(4), train=True))
    assert len({np.asarray(each).tobytes() for each in (first, second, other, next_call)}) == 4
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("nest", [loop, stack])
def test_no_two_calls_share_randomness_however_they_are_nested(nest):
    def twice(net, x):
        return net.inner(x), net.inner(x)

    net = compose(twice, inner=nest(2, loop(2, serial(noise(), noise()))))
    x = jax.random.key_data(KEY)
    (_, seen), _ = capture(net, "*/noise?").apply({}, {}, x, Context(KEY, train=True))
    keys = np.concatenate([np.reshape(leaf, (-1, 2)) for leaf in jax.tree.leaves(seen)])
    assert len(keys) == 2 * 2 * 2 * 2
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_randomness_wanted_and_not_given_is_an_error_that_says_what_to_pass():
    with pytest.raises(ValueError, match=r"pass Context\(key=\.\.\., train=True\)"):
        serial(dropout(0.5)).apply({}, {}, jnp.ones((2, 3)), Context(train=True))


def test_a_context_is_a_pytree_whose_key_alone_is_data():
    ctx = Context(key=KEY, train=True, axis="batch", path="net")
    leaves, structure = jax.tree.flatten(ctx)
    assert leaves == [KEY]
    assert jax.tree.unflatten(structure, leaves) == ctx
    mapped = jax.vmap(lambda ctx: serial(noise()).apply({}, {}, jnp.ones(3), ctx)[0])
    keys = jax.random.split(KEY, 2)
    rows = [serial(noise()).apply({}, {}, jnp.ones(3), Context(key, train=True))[0] for key in keys]
    np.testing.assert_array_equal(mapped(Context(keys, train=True)), np.stack(rows))


# -- One abstract pass -----------------------------------------------------------------------------


def counting(calls: list[str]) -> Layer:
    """A parameter, and a note of every time that the layer is run."""

    def apply(params, x):
        calls.append("leaf")
        return x * params["scale"]

    return parametric("count", apply, scale=lambda key, x: jnp.ones((), x.dtype))


def test_a_net_of_depth_12_is_described_by_running_each_leaf_once():
    calls: list[str] = []
    net = serial(counting(calls))
    for kind in ("serial", "residual", "remat", "stack") * 3:
        net = NESTS[kind](net, counting(calls))
    params, _ = net.init(KEY, IMAGES)
    assert len(tree.leaves(params)) == 13
    assert len(calls) == 13


def test_a_shared_part_is_drawn_once_and_described_by_each_of_its_calls():
    calls: list[str] = []
    loop(5, counting(calls)).init(KEY, IMAGES)
    assert len(calls) == 5


def test_describing_a_network_computes_and_allocates_nothing():
    net = serial(flatten, dense(10**7), relu, dense(10**7))
    spec = jax.ShapeDtypeStruct((1, 10**4, 10**3, 1), jnp.float32)
    params, _ = jax.eval_shape(net.init, KEY, spec)
    assert params["dense2"]["kernel"].shape == (10**7, 10**7)
    assert tree.count(params) == 2 * (10**14 + 10**7)


def test_init_runs_under_jit_and_vmap_and_draws_the_same_weights():
    net = serial(batch_norm(), stack(2, conv(3, 1)))
    keys = jax.random.split(KEY, 2)
    mapped = jax.jit(jax.vmap(lambda key: net.init(key, IMAGES)))(keys)
    alone = jax.tree.map(lambda *each: jnp.stack(each), *[net.init(key, IMAGES) for key in keys])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mapped, alone)


def test_a_layer_that_holds_a_network_of_its_own_owns_it_alone():
    inner = serial(conv(3, 1), batch_norm())

    def init(key, spec):
        params, state = inner.init(key, spec)
        return {"teacher": params}, {"teacher": state}

    def apply(params, state, x, ctx=Context()):
        y, new = inner.apply(params["teacher"], state["teacher"], x, ctx)
        return x - y, {"teacher": new}

    params, state = serial(Layer(init, apply, "distance")).init(KEY, IMAGES)
    assert list(params["distance1"]) == ["teacher"]
    assert list(state["distance1"]) == ["teacher"]


# -- Errors ----------------------------------------------------------------------------------------

BROKEN = serial(stage1=serial(block1=residual(relu, function(fail, "conv"))))
NOTE = "in stage1/block1/conv1 (conv), called with float32[32,8,8,3]"


@pytest.mark.parametrize(
    "run",
    [
        lambda x: BROKEN.apply({}, {}, x),
        lambda x: BROKEN.init(KEY, x),
        lambda x: jax.jit(BROKEN.apply)({}, {}, x),
        jax.grad(lambda x: BROKEN.apply({}, {}, x)[0].sum()),
        lambda x: jax.eval_shape(BROKEN.apply, {}, {}, x),
        lambda x: jax.lax.scan(lambda x, _: BROKEN.apply({}, {}, x), x, None, length=2),
        jax.jit(jax.grad(lambda x: remat(BROKEN).apply({}, {}, x)[0].sum())),
    ],
    ids=["apply", "init", "jit", "grad", "eval_shape", "scan", "remat"],
)
def test_an_error_carries_path_kind_and_input_once(run):
    with pytest.raises(RuntimeError, match="the layer broke") as caught:
        run(jnp.ones((32, 8, 8, 3)))
    assert [note for note in caught.value.__notes__ if note.startswith("in ")] == [NOTE]


def test_an_error_inside_a_stack_or_a_loop_carries_its_place():
    for nest in (stack, loop):
        with pytest.raises(RuntimeError, match="the layer broke") as caught:
            serial(nest(2, serial(fail))).apply({}, {}, jnp.ones((2, 3)))
        assert f"in {nest.__name__}1/body/fail1 (fail), called with float32[2,3]" in (
            caught.value.__notes__
        )


def test_an_error_of_the_outermost_layer_is_told_at_init_too():
    with pytest.raises(ValueError, match="residual adds") as caught:
        residual(conv(4, 1)).init(KEY, IMAGES)
    assert "in the network, called with float32[2,4,4,3]" in caught.value.__notes__


def test_an_error_of_a_part_with_several_inputs_shows_all_of_them():
    net = serial(lambda x: {"a": x, "b": (x, 1)}, fail)
    with pytest.raises(RuntimeError, match="the layer broke") as caught:
        net.apply({}, {}, jnp.ones((2, 3)))
    assert caught.value.__notes__ == [
        "in fail1 (fail), called with (float32[2,3], float32[2,3], 1)"
    ]


def test_a_shape_as_a_tuple_is_a_type_error_that_says_what_to_pass():
    for net in (serial(conv(2, 3)), conv(2, 3)):
        with pytest.raises(TypeError, match=r"not by 2: pass jax\.ShapeDtypeStruct"):
            net.init(KEY, (2, 4, 4, 3))


@pytest.mark.parametrize("part", ["relu", None, [relu], (conv, relu), 3])
def test_a_part_that_is_no_layer_is_a_type_error_that_shows_it(part):
    with pytest.raises(TypeError, match="a part of a network is a Layer or a function"):
        serial(part)


@pytest.mark.parametrize("maker", [max_pool, dropout])
def test_a_maker_of_layers_that_was_not_called_is_a_type_error_that_says_so(maker):
    with pytest.raises(TypeError, match=f"{maker.__name__} made a layer of its input: call it"):
        serial(maker, flatten).init(KEY, jnp.ones((1, 4, 4, 3)))


def test_calling_a_part_that_is_not_there_names_those_that_are():
    net = compose(lambda net, x: net.conv2(x), conv1=conv(2, 3), norm=batch_norm())
    with pytest.raises(AttributeError, match="no part 'conv2' here: the parts are conv1, norm"):
        net.init(KEY, IMAGES)


def test_parameters_or_state_of_another_network_are_an_error_that_names_the_place():
    net = serial(stage1=serial(conv(2, 3), batch_norm()))
    params, state = net.init(KEY, IMAGES)
    x = jnp.ones(IMAGES.shape)
    with pytest.raises(ValueError, match="params of the network hold 'stage2', but its parts are"):
        net.apply({"stage2": {}}, state, x)
    with pytest.raises(ValueError, match="params of stage1 hold 'conv9'"):
        net.apply({"stage1": {**params["stage1"], "conv9": {}}}, state, x)
    with pytest.raises(ValueError, match="state of stage1 hold"):
        net.apply(params, {"stage1": {"conv9": {}}}, x)
    with pytest.raises(
        ValueError, match=r"conv has the parameters .* but was given none"
    ) as caught:
        net.apply({}, state, x)
    assert caught.value.__notes__[0].startswith("in stage1/conv1 (conv)")


# -- Compiled programs -----------------------------------------------------------------------------


def test_compiled_programs_carry_the_path_of_each_layer():
    net = serial(stage1=serial(residual(conv(3, 3)).named("block")), head=stack(2, conv(3, 3)))
    params, state = net.init(KEY, IMAGES)
    lowered = jax.jit(net.apply).lower(params, state, jnp.ones(IMAGES.shape))
    text = lowered.as_text(debug_info=True)
    assert "stage1/block1/conv1/" in text
    assert "head/" in text


def test_a_network_may_be_a_static_argument_of_a_compiled_function():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(net, params, x):
        traced.append(net)
        return net.apply(params, {}, x)[0]

    net, other = serial(prelu(), relu), serial(prelu(), function(jnp.tanh))
    params, _ = net.init(KEY, IMAGES)
    x = -jnp.ones(IMAGES.shape)
    for _ in range(2):
        np.testing.assert_array_equal(run(net, params, x), np.zeros(x.shape))
        np.testing.assert_allclose(run(other, params, x), np.full(x.shape, np.tanh(-0.25)))
    assert traced == [net, other]


def test_apply_changes_none_of_its_arguments():
    net = serial(conv(3, 3), batch_norm(), stack(2, serial(batch_norm())))
    params, state = net.init(KEY, IMAGES)
    before = copy.deepcopy(jax.tree.map(np.asarray, (params, state)))
    _, after = net.apply(params, state, jnp.ones(IMAGES.shape), Context(train=True))
    jax.tree.map(np.testing.assert_array_equal, (params, state), before)
    assert bits(after) != bits(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
