"""The table of a network: its rows, in order, and a total that counts every parameter."""

import jax
import jax.numpy as jnp
import pytest

from convjax.combine import serial, shaped
from convjax.insight import summary
from convjax.layers import batch_norm, conv, dense
from convjax.ops import flatten, relu

SPEC = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def test_rows_are_the_leaves_in_order_with_shapes_and_counts():
    net = serial(stem=serial(conv(4, 3), batch_norm(), relu), pool=flatten, head=dense(10))
    assert summary.rows(net, SPEC) == [
        ("stem/conv1", "conv", "float32[2,8,8,4]", 3 * 3 * 3 * 4 + 4),
        ("stem/norm1", "norm", "float32[2,8,8,4]", 4 + 4),
        ("stem/relu1", "relu", "float32[2,8,8,4]", 0),
        ("pool", "flatten", "float32[2,256]", 0),
        ("head", "dense", "float32[2,10]", 256 * 10 + 10),
    ]


@pytest.mark.parametrize("net", [conv(4, 3), shaped(lambda x: conv(4, x.shape[-1]))])
def test_a_network_of_a_single_layer_is_a_row_of_its_own(net):
    [row] = summary.rows(net, SPEC)
    assert row.output == "float32[2,8,8,4]"
    assert row.parameters == 3 * 3 * 3 * 4 + 4
    assert summary.table(net, SPEC).splitlines()[-1].split() == ["total", "112"]
