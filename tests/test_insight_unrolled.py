"""A network that is unrolled computes the same, and calls each of its parts once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import (
    batch_norm,
    capture,
    compose,
    conv,
    dense,
    flatten,
    loop,
    max_pool,
    relu,
    remat,
    residual,
    serial,
    shaped,
    stack,
)
from convjax.insight.inspection.receptive import receptive_fields
from convjax.insight.passes import called
from convjax.insight.unrolled import unrolled

SEEN = jax.random.normal(jax.random.key(1), (2, 8, 8, 2))


def twice(net, x):
    return net.b(net.a(x) + net.b(x))


def over_again(net, x):
    for _ in range(2):
        for part in net:
            x = part(x)
    return x


NETWORKS = {
    "stack": serial(stack(2, residual(conv(2, 3), batch_norm(), relu)), flatten, dense(3)),
    "loop": serial(loop(2, serial(conv(2, 3), relu)), flatten, dense(3)),
    "nested": serial(stack(2, loop(2, stack(2, conv(2, 3)))), flatten, dense(3)),
    "wire": serial(compose(twice, a=conv(2, 3), b=conv(2, 1)), max_pool(2), flatten, dense(3)),
    "over": serial(compose(over_again, a=conv(2, 3), b=conv(2, 1)), flatten, dense(3)),
    "remat": serial(remat(stack(2, remat(serial(conv(2, 3), relu)))), flatten, dense(3)),
    "shaped": serial(shaped(lambda x: loop(2, conv(x.shape[-1], 3))), flatten, dense(3)),
}


def init(net):
    """Parameters and state of the right shapes, drawn by NumPy, which compiles nothing."""
    draw = np.random.default_rng(0)

    def drawn(leaf):
        return jnp.asarray(draw.normal(size=leaf.shape, scale=0.4).astype(np.float32))

    params, state = jax.eval_shape(net.init, jax.random.key(0), SEEN)
    return jax.tree.map(drawn, params), jax.tree.map(lambda leaf: jnp.abs(drawn(leaf)), state)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_unrolled_network_computes_the_same_and_calls_each_part_once(name):
    net = NETWORKS[name]
    params, state = init(net)
    apart, own_params, own_state = unrolled(net, params, state, SEEN)
    expected = jax.jit(net.apply)(params, state, SEEN)[0]
    found = jax.jit(apart.apply)(own_params, own_state, SEEN)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    convs = {
        "stack": ["stack1/body@1/conv1", "stack1/body@2/conv1"],
        "loop": ["loop1/body@1/conv1", "loop1/body@2/conv1"],
        "nested": [
            f"stack1/body@{i}/body@{j}/body@{k}" for i in (1, 2) for j in (1, 2) for k in (1, 2)
        ],
        "wire": ["twice1/a", "twice1/b@1", "twice1/b@2"],
        "over": ["over_again1/a@1", "over_again1/a@2", "over_again1/b@1", "over_again1/b@2"],
        "remat": ["stack1/body@1/conv1", "stack1/body@2/conv1"],
        "shaped": ["shaped1/body@1", "shaped1/body@2"],
    }
    calls = called(apart, SEEN)
    assert sorted(call.path for call in calls if call.kind == "conv") == convs[name]
    assert not [call.path for call in called(net, SEEN) if call.path in convs[name][-1:]]


def test_each_turn_of_a_stack_has_its_own_parameters_maps_and_receptive_field():
    net = serial(stack(3, serial(conv(2, 3), relu)), flatten, dense(3))
    params, state = init(net)
    apart, own, _ = unrolled(net, params, state, SEEN)
    paths = [f"stack1/body@{turn}/conv1" for turn in (1, 2, 3)]
    (_, seen), _ = jax.jit(capture(apart, paths).apply)(own, {}, SEEN)
    x = SEEN
    for turn, path in enumerate(paths):
        kernel = jax.tree.map(lambda leaf, turn=turn: leaf[turn], params["stack1"]["body"]["conv1"])
        np.testing.assert_array_equal(
            own["stack1"][f"body@{turn + 1}"]["conv1"]["kernel"], kernel["kernel"]
        )
        maps = conv(2, 3).apply(kernel, {}, x)[0]
        np.testing.assert_allclose(seen[path], maps, rtol=1e-5, atol=1e-6)
        x = jnp.maximum(maps, 0)
    fields = receptive_fields(apart, SEEN)
    assert [fields[path].size for path in paths] == [(3, 3), (5, 5), (7, 7)]


def test_a_part_that_is_called_more_often_the_second_time_finds_room():
    def many(net, x):
        for _ in range(x.shape[1] // 4):
            x = net.one(x)
        return x

    def halved(net, x):
        return net.many(net.pool(net.many(x)))

    net = compose(halved, many=compose(many, one=conv(2, 3)), pool=max_pool(2))
    params, state = init(net)
    apart, own, _ = unrolled(net, params, state, SEEN)
    found = jax.jit(apart.apply)(own, {}, SEEN)[0]
    expected = jax.jit(net.apply)(params, state, SEEN)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    convs = [call.path for call in called(apart, SEEN) if call.kind == "conv"]
    assert convs == ["many@1/one@1", "many@1/one@2", "many@2/one@1"]


def test_a_network_that_calls_each_part_once_stays_as_it_is():
    net = serial(conv(2, 3), relu, flatten, dense(3))
    params, state = init(net)
    assert unrolled(net, params, state, SEEN)[0] is net
