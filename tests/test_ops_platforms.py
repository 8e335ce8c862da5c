"""Ops on other platforms and on several devices: XLA's own operations, and the same numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import normal

from convjax import ops

PARAMS = {
    "conv": normal(3, 3, 3, 8).astype(np.float32),
    "depthwise": normal(3, 3, 1, 8, seed=1).astype(np.float32),
    "scale": np.linspace(0.5, 1.5, 8, dtype=np.float32),
    "bias": np.linspace(-1, 1, 8, dtype=np.float32),
    "dense": normal(8, 5, seed=2).astype(np.float32),
}
IMAGES = normal(8, 8, 8, 3, seed=3).astype(np.float32)


def net(params, x, axis_name=None):
    """Every op that has an algorithm of its own on the CPU: the loss."""
    y = ops.conv(x, params["conv"], params["bias"])
    mean, var = ops.moments(y, (0, 1, 2), axis_name=axis_name)
    y = ops.relu(ops.batch_norm(y, mean, var, params["scale"], params["bias"]))
    y = ops.depthwise_conv(ops.max_pool(y, 2), params["depthwise"], stride=2)
    return jnp.square(ops.dense(ops.global_avg_pool(y), params["dense"])).mean()


gradient = jax.value_and_grad(net)


@functools.cache
def expected():
    """The loss and the gradients by XLA's own operations on one device."""
    with ops.algorithm("lax"):
        return jax.device_get(jax.jit(jax.value_and_grad(net))(PARAMS, IMAGES))


def assert_equal_trees(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def mesh(axis_types=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(axis_types,))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_are_given_the_operations_of_xla(platform):
    traced = jax.jit(gradient).trace(PARAMS, IMAGES)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Forward and weight gradient of each convolution, and the input gradient of the second.
    assert text.count("stablehlo.convolution") == 5
    assert "stablehlo.reduce_window" in text
    assert "stablehlo.select_and_scatter" in text
    assert "stablehlo.while" not in text


def test_the_cpu_is_given_algorithms_of_our_own():
    text = jax.jit(gradient).lower(PARAMS, IMAGES).as_text()
    assert "stablehlo.select_and_scatter" not in text
    assert not re.search(r"feature_group_count = [^1]", text)
    assert_equal_trees(jax.jit(gradient)(PARAMS, IMAGES), expected())


def test_the_precision_that_is_asked_for_around_an_op_is_that_of_its_products():
    def precise(x, kernel):
        with jax.default_matmul_precision("highest"):
            return ops.conv(x, kernel)

    traced = jax.jit(precise).trace(IMAGES, PARAMS["conv"])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "#stablehlo<precision HIGHEST>, #stablehlo<precision HIGHEST>" in text


def test_a_batch_that_is_spread_over_devices_has_the_gradients_of_one_device():
    spread = jax.device_put(IMAGES, NamedSharding(mesh(), P("data")))
    compiled = jax.jit(gradient)
    text = compiled.lower(PARAMS, spread).as_text()
    # What is XLA's own, XLA knows how to split.
    assert text.count("stablehlo.convolution") == 5
    assert "stablehlo.while" not in text
    assert_equal_trees(compiled(PARAMS, spread), expected())


def test_an_op_outside_of_jit_leaves_its_batch_spread_over_devices():
    spread = jax.device_put(IMAGES, NamedSharding(mesh(), P("data")))
    y = ops.max_pool(ops.conv(spread, PARAMS["conv"]), 2)
    assert y.sharding.is_equivalent_to(spread.sharding, 4)
    with ops.algorithm("lax"):
        np.testing.assert_allclose(
            y, ops.max_pool(ops.conv(IMAGES, PARAMS["conv"]), 2), rtol=1e-4, atol=1e-5
        )


def test_a_batch_whose_spread_is_part_of_its_type_has_the_gradients_of_one_device():
    with jax.set_mesh(mesh(AxisType.Explicit)):
        spread = jax.device_put(IMAGES, P("data"))
        params = jax.device_put(PARAMS, P())
        assert jax.typeof(spread).sharding.spec == P("data", None, None, None)
        assert_equal_trees(jax.jit(gradient)(params, spread), expected())
        y = jax.jit(lambda x, kernel: ops.max_pool(ops.conv(x, kernel), 2))(spread, params["conv"])
        assert jax.typeof(y).sharding.spec == P("data", None, None, None)


@pytest.mark.parametrize("checked", [True, False])
def test_gradients_inside_shard_map_are_those_of_one_device(checked):
    def loss(params, x):
        return lax.pmean(net(params, x, axis_name="data"), "data")

    def local(params, x):
        if checked:
            # JAX adds up the gradients of what all devices share.
            return jax.value_and_grad(loss)(params, x)
        value, gradients = jax.value_and_grad(lambda params: net(params, x, "data"))(params)
        return lax.pmean((value, gradients), "data")

    mapped = jax.shard_map(
        local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P(), check_vma=checked
    )
    assert_equal_trees(jax.jit(mapped)(PARAMS, IMAGES), expected())


def test_gradients_under_pmap_are_those_of_one_device():
    def local(params, x):
        return lax.pmean(jax.value_and_grad(net)(params, x, "data"), "data")

    mapped = jax.pmap(local, axis_name="data", in_axes=(None, 0), out_axes=None)
    assert_equal_trees(mapped(PARAMS, IMAGES[:, None]), expected())


def test_nothing_needs_to_be_compiled():
    with jax.disable_jit():
        assert_equal_trees(gradient(PARAMS, IMAGES), expected())


def test_an_exported_network_runs_on_either_platform_for_any_batch():
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *IMAGES.shape[1:]), IMAGES.dtype)
    # Where the batch is not known when it is compiled, there are only XLA's own operations.
    exported = export.export(jax.jit(net), platforms=["cpu", "cuda"])(PARAMS, images)
    np.testing.assert_allclose(exported.call(PARAMS, IMAGES), expected()[0], rtol=1e-4)
