"""The choice of algorithms: the table, the table of a machine, and `ops.algorithm`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import ops
from convjax.assemble import assemble
from convjax.config import Experiment, UserError
from convjax.ops import choice, correlation
from convjax.ops.choice import Case, Row, read_table

HEAD = " ".join(Row._fields) + "\n"
X = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 4, 4)).astype(np.float32)


def case(operation="conv", kind="dense", **numbers):
    """A case of a window of 3, a stride of 1, and otherwise of eights."""
    usual = {**dict.fromkeys(Case._fields[2:], 8), "window": 3, "stride": 1}
    return Case(operation, kind, **{**usual, **numbers})


def line(operation, kind, algorithm, **ranges):
    """A line of a table, for any numbers but those that are given."""
    return " ".join([operation, kind, *(ranges.get(n, "any") for n in Case._fields[2:]), algorithm])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes a text the table of this machine, for the length of a test."""

    def install(text):
        path = tmp_path / "algorithms.txt"
        if text is not None:
            path.write_text(text)
        monkeypatch.setenv("CONVJAX_ALGORITHMS", str(path))
        choice.rows.cache_clear()
        return path

    yield install
    choice.rows.cache_clear()


@pytest.fixture
def computed(monkeypatch):
    """The names of the algorithms of the forward convolution that were compiled, in order."""
    names = []

    def recorded(name, function):
        def record(*arguments, **options):
            names.append(name)
            return function(*arguments, **options)

        return record

    for name, function in correlation.FUNCTIONS["conv"].items():
        monkeypatch.setitem(correlation.FUNCTIONS["conv"], name, recorded(name, function))
    return names


def primitives(function, *arguments):
    """The names of all primitives of a function, and of what it calls."""

    def within(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from within(inner)

    return set(within(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_a_row_says_for_which_ranges_it_is():
    ranges = {"window": "3", "stride": "2-4", "inputs": "16+", "size": "0"}
    (row,) = read_table(HEAD + "# a remark\n\n" + line("conv", "any", "taps", **ranges), "FILE")
    assert (row.operation, row.kind, row.algorithm) == ("conv", "any", "taps")
    assert (row.window, row.stride, row.inputs) == ((3, 3), (2, 4), (16, 2**31))
    assert (row.features, row.size) == ((0, 2**31), (0, 0))
    assert row.fits(case(stride=2, inputs=16, size=0))
    assert row.fits(case(kind="grouped", stride=4, inputs=99, features=1, size=0))
    for other in (
        {"operation": "conv_input"},
        {"window": 2},
        {"stride": 1},
        {"stride": 5},
        {"inputs": 15},
        {"size": 1},
    ):
        assert not row.fits(case(**{"stride": 2, "inputs": 16, "size": 0, **other}))


def test_the_table_of_the_package_is_read_row_by_row():
    written = [text.split() for text in choice.TABLE.strip().splitlines()[1:]]
    rows = read_table(choice.TABLE, "TABLE")
    assert [(row.operation, row.kind, row.algorithm) for row in rows] == [
        (operation, kind, name) for operation, kind, *_, name in written
    ]


def test_every_algorithm_that_can_be_asked_for_has_a_function():
    for operation, functions in correlation.FUNCTIONS.items():
        assert set(functions) == set(choice.ALGORITHMS[operation])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv dense 3 1 any", r"FILE, line 3 has 5 cells: it needs operation, kind, window, stri"),
        (line("convv", "dense", "taps"), r"FILE, line 3 has 'convv': did you mean 'conv'\?"),
        (line("conv", "dense", "tap"), r"FILE, line 3 has 'tap': did you mean 'taps'\?"),
        (line("conv", "dense", "col2im"), r"line 3 has 'col2im': choose from .*'im2col'"),
        (line("conv", "thick", "taps"), r"line 3 has the kind 'thick': it is any, dense, dep"),
        (
            line("conv", "dense", "taps", window="3-"),
            r"line 3 has '3-': a range is 3, 3-5, 3\+ or any",
        ),
        (line("conv", "dense", "taps", size="-3"), r"line 3 has '-3': a range is"),
        (line("conv", "dense", "taps", size="5-3"), r"line 3 has '5-3': nothing fits, write 3-5"),
        (line("conv", "dense", "taps", inputs="some"), r"line 3 has 'some': a range is"),
    ],
)
def test_a_line_that_is_no_row_is_named_with_its_number(text, message):
    with pytest.raises(ValueError, match=message):
        read_table(HEAD + "\n" + text, "FILE")


def test_the_first_row_that_fits_is_taken_and_those_of_the_machine_come_first(machine):
    machine(line("conv", "dense", "im2col", window="3") + "\n" + line("conv", "dense", "taps"))
    assert choice.choose(case()) == "im2col"
    assert choice.choose(case(window=5)) == "taps"
    assert choice.choose(case("conv_input", "depthwise")) == "depthwise"


def test_what_no_row_fits_is_left_to_xla():
    assert choice.choose(case("max_pool")) == "lax"


def test_the_table_of_the_machine_is_followed_when_a_network_is_compiled(machine, computed):
    machine(line("conv", "dense", "im2col"))
    jax.jit(lambda x: ops.conv(x, KERNEL))(X)
    assert computed == ["im2col"]


def test_a_row_that_names_what_does_not_apply_leaves_it_to_the_rows_below(machine, computed):
    machine(line("conv", "any", "winograd") + "\n" + line("conv", "any", "taps", inputs="4"))
    jax.jit(lambda x: ops.conv(x, KERNEL, stride=2))(X)
    assert computed == ["taps"]


def test_where_no_row_applies_it_is_left_to_xla(machine, computed):
    machine(line("conv", "any", "winograd"))
    x, kernel = np.tile(X, 2), np.tile(KERNEL, (1, 1, 2, 1))
    y = jax.jit(lambda x: ops.conv(x, kernel, stride=2))(x)
    assert computed == ["lax"]
    with ops.algorithm("lax"):
        np.testing.assert_array_equal(y, jax.jit(lambda x: ops.conv(x, kernel, stride=2))(x))


def test_a_fault_in_the_table_of_the_machine_names_the_file_and_the_line(machine):
    path = machine(HEAD + line("conv", "dense", "winnograd"))
    with pytest.raises(ValueError, match=rf"{path}, line 2 has 'winnograd': .*'winograd'"):
        choice.choose(case())


def test_a_table_that_is_not_there_is_named_with_the_variable(machine):
    path = machine(None)
    with pytest.raises(ValueError, match=rf"CONVJAX_ALGORITHMS={path}: No such file"):
        choice.choose(case())


def test_a_table_that_is_no_text_is_named_with_the_variable(machine):
    path = machine("")
    path.write_bytes(b"\x80\x00")
    with pytest.raises(ValueError, match=rf"CONVJAX_ALGORITHMS={path} is no text"):
        choice.choose(case())


def test_a_launcher_tells_a_fault_in_the_table_in_one_line_before_it_trains(machine):
    path = machine(HEAD + line("conv", "dense", "winnograd"))
    with pytest.raises(UserError, match=rf"{path}, line 2 has .* or unset CONVJAX_ALGORITHMS$"):
        assemble(Experiment(epochs=1))


@pytest.mark.parametrize(
    ("arguments", "choices", "message"),
    [
        (("taps",), {}, r"algorithm\('taps'\): only 'lax' .* as in algorithm\(conv='taps'\)"),
        ((), {"conf": "lax"}, r"no operation 'conf': did you mean 'conv'\?"),
        ((), {"conv": "winnograd"}, r"no algorithm 'winnograd' for conv: .*'winograd'\?"),
        (
            (),
            {"conv_input": "im2col"},
            r"no algorithm 'im2col' for conv_input: choose from 'col2im'",
        ),
        ((), {"sums": "tree"}, r"no algorithm 'tree' for sums: choose from 'lax', 'slabs'"),
    ],
)
def test_what_does_not_exist_cannot_be_asked_for(arguments, choices, message):
    with pytest.raises(ValueError, match=message), ops.algorithm(*arguments, **choices):
        pass
    assert choice.forced("conv") is None


def test_conv_is_meant_for_its_gradients_too_where_they_have_an_algorithm_of_that_name():
    def asked():
        return tuple(map(choice.forced, choice.ALGORITHMS))

    nothing = (None,) * 5
    assert asked() == nothing
    with ops.algorithm(conv="taps"):
        assert asked() == ("taps", "taps", "taps", None, None)
    with ops.algorithm(conv="im2col"):
        assert asked() == ("im2col", None, "im2col", None, None)
    with ops.algorithm(conv="taps", conv_weight="canonical"):
        assert asked() == ("taps", "taps", "canonical", None, None)
    assert asked() == nothing


def test_contexts_within_each_other_add_up_and_the_inner_one_wins():
    with ops.algorithm(max_pool="lax", conv="taps"):
        with ops.algorithm(conv_input="col2im"):
            assert choice.forced("max_pool") == "lax"
            assert choice.forced("conv") == "taps"
            assert choice.forced("conv_input") == "col2im"
            with ops.algorithm("lax"):
                assert {choice.forced(each) for each in choice.ALGORITHMS} == {"lax"}
        assert choice.forced("conv_input") == "taps"
    assert choice.forced("max_pool") is None


def test_a_context_ends_with_an_error_inside():
    with pytest.raises(ZeroDivisionError), ops.algorithm("lax"):
        _ = 1 / 0
    assert choice.forced("conv") is None


def test_a_compiled_function_is_traced_again_for_the_algorithms_around_its_call(computed):
    traces = []

    @jax.jit
    def net(x):
        traces.append(choice.forced("conv"))
        return ops.conv(x, KERNEL)

    for _ in range(2):
        expected = net(X)
        for name in ("im2col", "lax"):
            with ops.algorithm(conv=name):
                np.testing.assert_allclose(net(X), expected, rtol=1e-4, atol=1e-5)
    assert traces == [None, "im2col", "lax"]
    assert computed == [choice.choose(case(inputs=4, features=4, places=128)), "im2col", "lax"]


def test_a_call_outside_of_jit_takes_the_algorithm_that_is_asked_for(computed):
    for name in ("im2col", "taps"):
        with ops.algorithm(conv=name):
            ops.conv(X[:, :7], KERNEL)
    assert computed == ["im2col", "taps"]


def test_where_what_is_asked_for_does_not_apply_the_table_decides(computed):
    with ops.algorithm(conv="winograd"):
        jax.jit(lambda x: ops.conv(x, KERNEL))(X)
        jax.jit(lambda x: ops.conv(x, KERNEL, stride=2))(X)
    decided = choice.choose(case(stride=2, inputs=4, features=4, size=4, places=32))
    assert decided != "winograd"
    assert computed == ["winograd", decided]


def test_everything_by_lax_leaves_no_primitive_of_ours():
    def net(x, kernel, bias):
        y = ops.conv(x, kernel, bias)
        y = ops.batch_norm(y, *ops.moments(y, (0, 1, 2)), bias, bias)
        y = ops.max_pool(ops.conv_transpose(ops.relu(y), kernel, bias, stride=2), 2)
        y = ops.depthwise_conv(y, kernel[:, :, :1])
        return ops.dense(ops.global_avg_pool(y), kernel[0, 0], bias).sum()

    def ours():
        names = primitives(jax.grad(net, (0, 1, 2)), X, KERNEL, np.ones(4, "f"))
        return {name for name in names if name.startswith("convjax_")}

    assert ours() == {
        f"convjax_{name}"
        for name in (
            *("conv", "conv_input", "conv_weight"),
            *("max", "max_place", "channel_sum", "spread"),
        )
    }
    with ops.algorithm("lax"):
        assert ours() == set()


@pytest.mark.parametrize(
    ("choices", "gone"),
    [
        ({"conv": "lax"}, "convjax_conv"),
        ({"max_pool": "lax"}, "convjax_max"),
        ({"sums": "lax"}, "convjax_spread"),
    ],
)
def test_one_operation_by_lax_leaves_the_others(choices, gone):
    def net(x):
        return ops.max_pool(ops.conv(x, KERNEL, jnp.ones(4)), 2)

    whole = primitives(net, X)
    assert {"convjax_conv", "convjax_max", "convjax_spread"} <= whole
    with ops.algorithm(**choices):
        left = primitives(net, X)
    assert whole - left == {gone}


# Of networks that are measured: image, kernel, stride, and what computes the convolution, its input
# gradient and its weight gradient: what is fastest on two cores with AVX-512.
LAYERS = {
    "LeNet 1": ((128, 28, 28, 1), (5, 5, 1, 32), 1, "pairs col2im canonical"),
    "LeNet 2": ((128, 14, 14, 32), (5, 5, 32, 64), 1, "winograd winograd winograd"),
    "stem of CIFAR": ((128, 32, 32, 3), (3, 3, 3, 64), 1, "pairs col2im canonical"),
    "stem of ImageNet": ((8, 224, 224, 3), (7, 7, 3, 64), 2, "lax phases canonical"),
    "patches": ((8, 224, 224, 3), (4, 4, 3, 96), 4, "im2col col2im canonical"),
    "16 channels": ((128, 32, 32, 16), (3, 3, 16, 16), 1, "lax flipped canonical"),
    "32 channels": ((128, 32, 32, 32), (3, 3, 32, 32), 1, "lax flipped winograd"),
    "64 channels": ((128, 32, 32, 64), (3, 3, 64, 64), 1, "winograd winograd winograd"),
    "512 channels": ((128, 4, 4, 512), (3, 3, 512, 512), 1, "winograd winograd winograd"),
    "2x2 images": ((128, 2, 2, 64), (3, 3, 64, 64), 1, "lax flipped canonical"),
    "392 places": ((8, 7, 7, 512), (3, 3, 512, 512), 1, "lax flipped canonical"),
    "down": ((128, 32, 32, 64), (3, 3, 64, 128), 2, "lax phases taps"),
    "1x1": ((8, 56, 56, 64), (1, 1, 64, 256), 1, "dot dot dot"),
    "1x1 down": ((8, 56, 56, 256), (1, 1, 256, 512), 2, "dot dot dot"),
    "depthwise 7x7": ((8, 56, 56, 96), (7, 7, 1, 96), 1, "depthwise depthwise depthwise"),
    "depthwise down": ((64, 48, 48, 96), (3, 3, 1, 96), 2, "depthwise depthwise depthwise"),
    "32 groups": ((8, 56, 56, 128), (3, 3, 4, 128), 1, "im2col flipped im2col"),
    "32 groups down": ((8, 56, 56, 128), (3, 3, 4, 128), 2, "im2col col2im im2col"),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_of_a_network_and_its_gradients_have_the_algorithms_of_the_table(layer, monkeypatch):
    image, kernel, stride, expected = LAYERS[layer]
    low = 0 if kernel[0] == stride else kernel[0] // 2
    chosen = {}
    for operation, functions in correlation.FUNCTIONS.items():
        for name, function in functions.items():

            def record(*arguments, operation=operation, name=name, function=function):
                chosen[operation] = name
                return function(*arguments)

            monkeypatch.setitem(functions, name, record)

    def both_ways(x, kernel):
        groups = x.shape[-1] // kernel.shape[-2]
        y, back = jax.vjp(
            lambda *both: ops.conv(*both, stride=stride, padding=low, groups=groups), x, kernel
        )
        return y, back(jnp.ones_like(y))

    jax.jit(both_ways).lower(*(jax.ShapeDtypeStruct(each, jnp.float32) for each in (image, kernel)))
    assert [chosen[operation] for operation in correlation.FUNCTIONS] == expected.split()
