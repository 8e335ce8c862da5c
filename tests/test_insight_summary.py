"""The table of a network: its rows, in order, and totals that count everything once."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from convjax import (
    batch_norm,
    compose,
    conv,
    dense,
    flatten,
    max_pool,
    relu,
    residual,
    serial,
    shaped,
    stack,
)
from convjax.combine import loop
from convjax.insight.inspection import tables
from convjax.insight.inspection.summary import summarize

SPEC = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
NET = serial(
    stem=serial(conv(4, 3), batch_norm(), relu),
    stage=serial(residual(conv(4, 3), relu, conv(4, 3, dilation=2)), max_pool(2)),
    pool=flatten,
    head=dense(10),
)
CONV = 3 * 3 * 4 * 4 + 4


def test_rows_are_the_leaves_in_order_with_all_that_there_is_to_know():
    found = [row[:6] for row in summarize(NET, SPEC).rows]
    assert found == [
        ("stem/conv1", "conv", "float32[2,8,8,4]", 112, 64 * 27 * 4, 2 * 256 * 4),
        ("stem/norm1", "norm", "float32[2,8,8,4]", 4 + 4, 0, 2 * 256 * 4),
        ("stem/relu1", "relu", "float32[2,8,8,4]", 0, 0, 2 * 256 * 4),
        ("stage/residual1/conv1", "conv", "float32[2,8,8,4]", CONV, 64 * 36 * 4, 2 * 256 * 4),
        ("stage/residual1/relu1", "relu", "float32[2,8,8,4]", 0, 0, 2 * 256 * 4),
        ("stage/residual1/conv2", "conv", "float32[2,8,8,4]", CONV, 64 * 36 * 4, 2 * 256 * 4),
        ("stage/max_pool1", "max_pool", "float32[2,4,4,4]", 0, 0, 2 * 64 * 4),
        ("pool", "flatten", "float32[2,64]", 0, 0, 2 * 64 * 4),
        ("head", "dense", "float32[2,10]", 650, 640, 2 * 10 * 4),
    ]


def test_a_block_is_one_row_that_sums_up_what_is_in_it():
    found = {row.path: row for row in summarize(NET, SPEC, deep=False).rows}
    assert [*found] == [
        *("stem/conv1", "stem/norm1", "stem/relu1", "stage/residual1", "stage/max_pool1"),
        *("pool", "head"),
    ]
    block = found["stage/residual1"]
    assert (block.kind, block.layers, block.parameters) == ("residual", 3, 2 * CONV)
    assert (block.multiply_adds, block.bytes) == (2 * 64 * 36 * 4, 3 * 2 * 256 * 4)
    assert block.field is not None
    assert block.field.size == (9, 9)  # 3 of the stem, 2 more of the one and 4 of the other


@pytest.mark.parametrize("deep", [True, False])
def test_totals_are_the_same_however_many_rows_there_are(deep):
    total = summarize(NET, SPEC, deep=deep).total
    assert total.parameters == 112 + 8 + 2 * CONV + 650
    assert total.multiply_adds == 64 * (27 + 36 + 36) * 4 + 640
    assert total.bytes == 4 * 2 * (6 * 256 + 64 + 64 + 10)
    assert total.layers == 9


@pytest.mark.parametrize("net", [conv(4, 3), shaped(lambda x: conv(4, x.shape[-1]))])
def test_a_network_of_a_single_layer_is_a_row_of_its_own(net):
    found = summarize(net, SPEC)
    [row] = found.rows
    assert (row.kind, row.output) == ("conv", "float32[2,8,8,4]")
    assert row.parameters == found.total.parameters == 3 * 3 * 3 * 4 + 4


def test_layers_that_are_called_several_times_say_so_and_learn_once():
    [shared] = summarize(serial(loop(3, conv(3, 3))), SPEC).rows
    assert (shared.calls, shared.parameters, shared.bytes) == (3, 84, 3 * 2 * 64 * 3 * 4)
    [own] = summarize(serial(stack(3, conv(3, 3))), SPEC).rows
    assert (own.calls, own.parameters) == (3, 3 * 84)
    assert own.field == shared.field
    assert own.field is not None
    assert own.field.size == (7, 7)


def test_a_layer_that_is_called_for_two_sizes_holds_both_outputs():
    def levels(net, x):
        return net.shared(x), net.shared(x[:, ::2, ::2])

    [row] = summarize(compose(levels, shared=conv(5, 1)), SPEC).rows
    assert (row.calls, row.output) == (2, "float32[2,4,4,5]")
    assert row.bytes == 2 * (64 + 16) * 5 * 4
    assert row.multiply_adds == (64 + 16) * 3 * 5


def test_what_is_computed_between_layers_has_a_line_so_that_columns_add_up():
    def attend(net, x):
        rows = net.embed(x).reshape(x.shape[0], -1, 4)
        return jnp.einsum("bqc,bkc->bqk", rows, rows)

    text = tables.text(summarize(serial(compose(attend, embed=conv(4, 1)), flatten), SPEC))
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert lines[2][3:5] == ["16", "768"]
    assert lines[-2] == ["outside of layers", f"{64 * 64 * 4:,}"]
    assert lines[-1][:3] == ["total", "16", f"{64 * 64 * 4 + 768:,}"]


def test_what_shaped_layers_make_has_rows_of_its_own():
    net = serial(shaped(lambda x: serial(conv(x.shape[-1], 3), relu)), dense(2))
    found = [(row.path, row.kind) for row in summarize(net, SPEC).rows]
    assert found == [
        ("shaped1/conv1", "conv"),
        ("shaped1/relu1", "relu"),
        ("dense1", "dense"),
    ]


def test_vectors_have_rows_without_fields():
    found = summarize(serial(dense(4), relu), jax.ShapeDtypeStruct((2, 5), jnp.bfloat16))
    assert [(row.path, row.field, row.bytes) for row in found.rows] == [
        ("dense1", None, 16),
        ("relu1", None, 16),
    ]


def test_json_holds_every_figure_in_full():
    found = json.loads(tables.as_json(summarize(NET, SPEC, name="mine")))
    assert found["name"] == "mine"
    assert found["layers"][0] == {
        "path": "stem/conv1",
        "kind": "conv",
        "output": "float32[2,8,8,4]",
        "parameters": 112,
        "multiply_adds": 6912,
        "activation_bytes": 2048,
        "calls": 1,
        "layers": 1,
        "receptive_field": {
            "size": [3, 3],
            "stride": [1, 1],
            "offset": [-1, -1],
            "sees_all": False,
        },
    }
    assert found["total"]["parameters"] == 112 + 8 + 2 * CONV + 650


def test_markdown_is_one_table_with_as_many_cells_in_each_line():
    lines = tables.markdown(summarize(NET, SPEC)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[1].startswith("| --- | --- | --- | ---: |")
    assert "| head | dense | float32[2,10] | 650 | 640 | 80 B | all |   |   |" in lines


def test_a_difference_shows_what_differs_and_the_ratio_of_the_totals():
    one = serial(stem=conv(4, 3), then=relu, head=dense(2))
    other = serial(stem=conv(8, 3), then=relu, drop=flatten, head=dense(2))
    text = tables.difference(summarize(one, SPEC, name="a"), summarize(other, SPEC, name="b"))
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    rows = {line[0]: line[1:] for line in lines}
    moved = "float32[2,8,8,4] → float32[2,8,8,8]"
    assert rows["stem"] == [moved, "112 → 224", "6,912 → 13,824", "3", "1"]
    assert rows["drop"] == ["- → float32[2,512]", "- → 0", "- → 0", "- → all", "- → 0"]
    assert rows["total"] == ["a", "b", "ratio"]
    assert rows["parameters"] == ["122", f"{224 + 1026:,}", f"{1250 / 122:.3f}"]
    assert [*rows].index("drop") < [*rows].index("head")


def test_networks_that_are_alike_have_no_row_in_a_difference():
    text = tables.difference(summarize(NET, SPEC), summarize(NET, SPEC))
    assert "9 of 9 rows are alike and not shown." in text
    assert "1.000" in text


def test_parts_that_are_mapped_or_differentiated_within_a_network_have_rows():
    def both(net, x):
        mapped = jax.vmap(net.first)(x[:, None])[:, 0]
        return jax.grad(lambda x: net.second(x).sum())(mapped)

    net = compose(both, first=conv(3, 3), second=conv(4, 1))
    found = {row.path: row for row in summarize(net, SPEC).rows}
    assert found["first"].output == "float32[2,1,8,8,3]"
    assert found["first"].multiply_adds == 64 * 27 * 3
    assert found["second"].parameters == 3 * 4 + 4
