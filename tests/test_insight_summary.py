"""The table of a network: its rows, in order, and totals that count everything once."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from convjax import (
    avg_pool,
    batch_norm,
    compose,
    conv,
    conv_transpose,
    dense,
    depthwise_conv,
    flatten,
    global_avg_pool,
    max_pool,
    models,
    relu,
    residual,
    serial,
    shaped,
    stack,
)
from convjax.combine import loop
from convjax.insight.inspection import tables
from convjax.insight.inspection.difference import difference
from convjax.insight.inspection.summary import summarize
from convjax.layer import parametric

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
    assert lines[3][3:5] == ["16", "768"]
    assert lines[-4] == ["outside of layers", f"{64 * 64 * 4:,}"]
    assert lines[-3][:3] == ["total", "16", f"{64 * 64 * 4 + 768:,}"]


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
        "kernel": {"size": [3, 3], "stride": [1, 1], "dilation": [1, 1], "groups": 1},
        "output": "float32[2,8,8,4]",
        "parameters": 112,
        "frozen_parameters": 0,
        "parameter_bytes": {"float32": 448},
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
    table, _, notes = tables.markdown(summarize(NET, SPEC)).partition("\n\n")
    lines = table.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].endswith("| activations | field size | field stride | field offset |")
    assert lines[1].startswith("| --- | --- | --- | ---: |")
    assert "| head | dense | 10 | 650 | 640 | 80 B | all |   |   |" in lines
    assert notes == "for float32[2,8,8,3]; parameters take 4.26 kB in float32"


def test_a_difference_shows_what_differs_and_the_ratio_of_the_totals():
    one = serial(stem=conv(4, 3), then=relu, head=dense(2))
    other = serial(stem=conv(8, 3), then=relu, drop=flatten, head=dense(2))
    text = difference(summarize(one, SPEC, name="a"), summarize(other, SPEC, name="b"))
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    rows = {line[0]: line[1:] for line in lines}
    stem = ["conv 3x3", "8x8x4 → 8x8x8", "112 → 224", "6,912 → 13,824", "3", "1"]
    assert rows["stem"] == stem
    assert rows["drop"] == ["- → flatten", "- → 512", "- → 0", "- → 0", "- → all", "-"]
    assert rows["total"] == ["a", "b", "ratio"]
    assert rows["parameters"] == ["122", f"{224 + 1026:,}", f"{1250 / 122:.3f}"]
    assert [*rows].index("drop") < [*rows].index("head")


def test_a_difference_shows_the_column_by_which_rows_differ():
    one = serial(stem=conv(4, 3, padding=1), head=dense(2))
    other = serial(stem=conv(4, 3, padding=((0, 2), (0, 2))), head=dense(2))
    lines = difference(summarize(one, SPEC), summarize(other, SPEC)).splitlines()
    assert lines[0] == "one → other, for float32[2,8,8,3]"
    assert lines[3].split()[-1] == "offset"
    assert lines[4].split()[-3:] == ["-1", "→", "0"]
    assert "1 of 2 rows are alike and not shown." in lines


def test_a_difference_names_both_inputs_and_the_dtype_that_is_new():
    half = jax.ShapeDtypeStruct(SPEC.shape, jnp.bfloat16)
    net = serial(relu)
    text = difference(summarize(net, SPEC, name="a"), summarize(net, half, name="b"))
    assert text.startswith("a → b, for float32[2,8,8,3] → bfloat16[2,8,8,3]\n")
    assert "8x8x3 → 8x8x3 bfloat16" in text


def test_networks_that_are_alike_have_no_row_in_a_difference():
    text = difference(summarize(NET, SPEC), summarize(NET, SPEC))
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


def test_windows_are_those_that_layers_were_written_with():
    net = serial(
        *(conv(8, (3, 5), stride=(2, 1), padding=1), conv(8, 3, dilation=2, groups=4)),
        *(depthwise_conv(3), conv_transpose(4, 4, stride=2), max_pool(3, stride=2, padding=1)),
        *(avg_pool(2), conv(4, 3, padding="CIRCULAR"), relu, global_avg_pool, dense(2)),
    )
    rows = summarize(net, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)).rows
    assert {row.path: str(row.window) for row in rows if row.window is not None} == {
        "conv1": "3x5/2x1",
        "conv2": "3x3 d2 g4",
        "conv3": "3x3 g8",
        "conv_transpose1": "4x4/2",
        "max_pool1": "3x3/2",
        "avg_pool1": "2x2/2",
        "conv4": "3x3",
    }
    [sound] = summarize(conv(4, 7, stride=3), jax.ShapeDtypeStruct((1, 32, 2), jnp.float32)).rows
    assert str(sound.window) == "7/3"


def test_windows_are_those_of_lax_too():
    def lax_conv(x):
        kernel = jnp.ones((3, 3, 1, 6))
        return jax.lax.conv_general_dilated(
            *(x, kernel, (2, 2), "SAME"),
            rhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )

    [row] = summarize(serial(lax_conv), SPEC).rows
    assert row.window == ((3, 3), (2, 2), (2, 2), 3)


def test_a_block_has_no_window_of_its_own():
    found = {row.path: row for row in summarize(NET, SPEC, deep=False).rows}
    assert found["stage/residual1"].window is None
    assert "stage/residual1  residual of 3" in tables.text(summarize(NET, SPEC, deep=False))


def test_the_memory_of_parameters_is_told_by_dtype_and_what_is_frozen_by_number():
    half = parametric(
        "scale",
        lambda params, x: x * params["scale"].astype(x.dtype),
        scale=lambda *_: jnp.ones((1, 1, 1, 3), jnp.bfloat16),
    )
    net = serial(half, conv(4, 3))
    found = summarize(net, SPEC, frozen=["conv1/bias", "scale1/scale"])
    assert [row.weights for row in found.rows] == [{"bfloat16": 6}, {"float32": 448}]
    assert [row.frozen for row in found.rows] == [3, 4]
    note = "parameters take 448 B in float32 and 6 B in bfloat16; 108 are trained, 7 frozen"
    assert tables.text(found).endswith(note)
    heads = [cell.strip() for cell in tables.markdown(found).splitlines()[0].split("|")]
    assert heads[4:6] == ["parameters", "frozen"]


@pytest.mark.parametrize("deep", [False, True])
def test_the_table_of_resnet50_fits_into_120_columns(deep):
    spec = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    text = tables.text(summarize(models.create("resnet50", classes=1000), spec, deep=deep))
    assert max(map(len, text.splitlines())) <= 120
