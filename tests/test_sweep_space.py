"""Spaces: how they are written, which points they have, and that each makes a valid config."""

import itertools
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from convjax import flags
from convjax.config import Experiment, Model, UserError, digest
from convjax.sweep import distributions
from convjax.sweep.distributions import at, contains, ends, parse, share_of, written
from convjax.sweep.space import (
    SpaceError,
    Sweep,
    check,
    corners,
    described,
    grid,
    resolve,
    space_of,
    trace,
    walk,
)


def choices(*values):
    with distributions.quiet():
        return CategoricalDistribution(values)


@pytest.mark.parametrize(
    ("text", "path", "distribution"),  # None: the path is written as it is
    [
        ("optimizer.learning_rate=log(1e-4, 1e-1)", None, FloatDistribution(1e-4, 1e-1, log=True)),
        ("optimizer.learning_rate = log( 1e-4,1 )", None, FloatDistribution(1e-4, 1, log=True)),
        ("loss.label_smoothing=uniform(0, .2)", None, FloatDistribution(0, 0.2)),
        ("batch_size=integers(16, 64)", None, IntDistribution(16, 64)),
        ("batch_size=integers(16,70,16)", None, IntDistribution(16, 64, step=16)),
        ("epochs=integers(2, 4)", None, IntDistribution(2, 4)),
        ("model.args.rate=uniform(0, 1)", None, FloatDistribution(0, 1)),
        ("model.args.width=16,32,64", None, choices(16, 32, 64)),
        ("--config.model.name=small, lenet5", "model.name", choices("small", "lenet5")),
        ("epochs=1,2.5", None, choices(1.0, 2.5)),
        ("average.decay=None,0.99", None, choices(None, 0.99)),
        ("average.reestimate=true,false", None, choices(True, False)),
        ("model.args.sizes=(1, 2),(3,)", None, choices((1, 2), (3,))),
        ("model.args.x='5',5", None, choices("5", 5)),
        ("data.train='train[:9%],x',train", None, choices("train[:9%],x", "train")),
        ("augment.mix=mixup(0.2),None", None, choices("mixup(0.2)", None)),
        ("augment.mix=mixup(0.2)", None, choices("mixup(0.2)")),
        (
            "augment.parts=crop(4, mode='edge');flip,flip,()",
            None,
            choices(("crop(4, mode='edge')", "flip"), ("flip",), ()),
        ),
    ],
)
def test_a_text_says_path_and_distribution(text, path, distribution):
    found = parse(text)
    assert found == (path or text.split("=")[0].strip(), distribution)
    if isinstance(distribution, CategoricalDistribution):
        # To Python, 1 is 1.0 and True.
        assert list(map(type, ends(found[1]))) == list(map(type, distribution.choices))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size", "it has no '='; write PATH=log(a, b)"),
        ("batch_size=", "a value is empty; write"),
        ("batch_size=16,,32", "a value is empty"),
        ("epochs=(1,2", "a bracket or a quote is not closed"),
        ("data.train='train,test", "a bracket or a quote is not closed"),
        ("optimzer.learning_rate=log(1, 2)", "config has no 'optimzer'; did you mean 'optimizer'?"),
        ("optimizer.learning_rat=1,2", "did you mean 'learning_rate'?"),
        ("learning_rate=1,2", "did you mean 'optimizer.learning_rate'?"),
        ("learning_rate=log(1, 2)", "did you mean 'optimizer.learning_rate'?"),
        ("model=small,lenet5", "config.model is a section"),
        ("seed.x=1,2", "config.seed is one value"),
        ("seed.x=uniform(1,2)", "config.seed is one value"),
        ("optimizer.learning_rate=unifrom(0, 1)", "no 'unifrom'; did you mean 'uniform'?; write"),
        ("model.args.rate=Uniform(0, 1)", "there is no 'Uniform'; did you mean 'uniform'?"),
        ("model.args.rate=loguniform(1, 2)", "there is no 'loguniform'; did you mean 'log'?"),
        ("optimizer.learning_rate=log(0, 1)", "log(0, 1) needs 0 < a < b"),
        ("optimizer.learning_rate=log(-1, 1)", "log(-1, 1) needs 0 < a < b"),
        ("optimizer.learning_rate=log(2, 1)", "log(2, 1) needs 0 < a < b"),
        ("optimizer.learning_rate=log(1, 1e999)", "needs 0 < a < b"),
        ("optimizer.learning_rate=uniform(1, 1)", "uniform(1, 1) needs a < b"),
        ("optimizer.learning_rate=uniform(1)", "uniform(1) needs numbers, its ends"),
        ("optimizer.learning_rate=uniform(1, 2, 3)", "needs numbers, its ends"),
        ("optimizer.learning_rate=log(a, b)", "log(a, b) needs numbers, its ends"),
        ("optimizer.learning_rate=log(True, 2)", "needs numbers, its ends"),
        ("batch_size=integers(1, 2.5)", "needs whole numbers"),
        ("batch_size=integers(1, 9, 0)", "a step of 1 or more"),
        ("batch_size=integers(9, 1)", "a < b"),
        ("batch_size=uniform(16, 64)", "expected int, not float: give integers(a, b)"),
        ("batch_size=16,32.5", "config.batch_size is '32.5': expected int"),
        ("model.name=log(1, 2)", "config.model.name is 1.0: expected str, not float; write"),
        ("average.reestimate=integers(0, 1)", "config.average.reestimate is 0: expected bool"),
        ("optimizer.learning_rate=1e-3,fast", "is 'fast': expected float"),
        ("epochs=1,2,1.0", "the value 1.0 is there twice"),
    ],
)
def test_a_wrong_text_is_refused_with_the_next_step(text, message):
    with pytest.raises(SpaceError, match=re.escape(message)) as caught:
        parse(text)
    assert str(caught.value).startswith(f"--vary {text!r}: ")


@pytest.mark.parametrize(
    "text",
    [
        "optimizer.learning_rate=log(0.0001, 0.1)",
        "loss.label_smoothing=uniform(0.0, 0.2)",
        "batch_size=integers(16, 64, 16)",
        "model.args.x=(1, 2),'5',5,None,'log(1, 2)'",
        "data.train='train[:9%],x','train'",
    ],
)
def test_a_distribution_is_written_as_it_is_read(text):
    path, distribution = parse(text)
    assert parse(f"{path}={written(distribution)}") == (path, distribution)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["optimizer.learning_rate=uniform(-1, 1)"], "config.optimizer.learning_rate is -1.0"),
        (["loss.label_smoothing=uniform(0, 1.5)"], "config.loss.label_smoothing is 1.5"),
        (["precision=float32,float16,float8"], "config.precision is 'float8'"),
        (["batch_size=integers(0, 9)"], "batch_size=0 cannot be run: config.batch_size is 0"),
        (["seed=1,2"], "--seeds=N"),
        (["name=a,b"], "name is not varied"),
        (["epochs=1,2", "epochs=3,4"], "epochs is varied twice"),
        ([], "nothing is varied"),
        # Each end is fine by itself.
        (
            ["epochs=1,20", "optimizer.warmup_epochs=uniform(0, 5)"],
            "epochs=1.0, optimizer.warmup_epochs=5.0 cannot be run: config.optimizer.warmup_epochs",
        ),
    ],
)
def test_an_end_that_makes_no_valid_config_is_refused(texts, message):
    with pytest.raises(SpaceError, match=re.escape(message)):
        check(space_of(texts), Experiment(epochs=20))


def test_the_greatest_seed_has_to_be_a_seed():
    space = space_of(["epochs=1,2"])
    check(space, Experiment(seed=2**32 - 3), seeds=3)
    with pytest.raises(SpaceError, match=r"config\.seed is 4294967296"):
        check(space, Experiment(seed=2**32 - 3), seeds=4)


def test_a_space_of_many_ranges_is_tried_at_each_end_and_together():
    space = space_of([f"model.args.x{index}=uniform(0, 1)" for index in range(20)])
    points = corners(space)
    assert points == corners(space)
    assert len(points) <= 512
    for one, other in itertools.combinations(points[0], 2):
        pairs = {(point[one], point[other]) for point in points}
        assert pairs == {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}


def test_a_grid_has_all_products_in_order():
    space = space_of(["batch_size=32,64", "epochs=integers(1, 5, 2)", "model.name=small,lenet5"])
    expected = itertools.product((32, 64), (1, 3, 5), ("small", "lenet5"))
    assert [tuple(point.values()) for point in grid(space)] == list(expected)


def test_a_grid_refuses_real_numbers_and_too_many_points():
    with pytest.raises(SpaceError, match=r"optimizer.learning_rate is a range of real numbers"):
        grid(space_of(["epochs=1,2", "optimizer.learning_rate=log(1e-4, 1)"]))
    with pytest.raises(SpaceError, match="more than 100,000 points"):
        grid(space_of(["batch_size=integers(1, 1000)", "model.args.width=integers(1, 1000)"]))


def conditional(choose):
    if (
        choose.of("model.name", "small", "lenet5") == "small"
        and choose.integers("model.args.width", 8, 24, 8) > 8
    ):
        choose.of("model.args.bias", True, False)


def test_conditions_leave_out_what_they_do_not_ask_for():
    small = {"model.name": "small"}
    assert grid(conditional) == [
        small | {"model.args.width": 8},
        small | {"model.args.width": 16, "model.args.bias": True},
        small | {"model.args.width": 16, "model.args.bias": False},
        small | {"model.args.width": 24, "model.args.bias": True},
        small | {"model.args.width": 24, "model.args.bias": False},
        {"model.name": "lenet5"},
    ]


def test_conditions_are_checked_at_their_ends():
    def space(choose):
        if choose.of("optimizer.name", "sgd", "adamw") == "sgd":
            choose.log("optimizer.learning_rate", 1e-2, 1.0)
        else:
            choose.uniform("optimizer.learning_rate", -0.1, 1.0)

    with pytest.raises(SpaceError, match=r"optimizer.name=adamw, optimizer.learning_rate=-0.1"):
        check(space, Experiment())


def test_a_point_is_traced_only_where_it_lies():
    small = {"model.name": "small", "model.args.width": 16, "model.args.bias": True}
    assert trace(conditional, small) == {
        "model.name": choices("small", "lenet5"),
        "model.args.width": IntDistribution(8, 24, step=8),
        "model.args.bias": choices(True, False),
    }
    for wrong in (
        {"model.args.width": 32},
        {"model.args.width": 12},
        {"model.args.width": 16.0},
        {"model.args.bias": 1},
        {"model.name": "lenet5"},
        {"epochs": 2.0},
    ):
        assert trace(conditional, small | wrong) is None
    assert trace(conditional, {"model.name": "small"}) is None


# A tree of choices: each option leads to another tree, or to nothing.
trees = st.recursive(
    st.none(), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=12
)


@given(trees)
def test_every_leaf_of_a_tree_of_conditions_is_visited_once_in_order(tree):
    def leaves(tree, path):
        if tree is None:
            return [path]
        return [leaf for n, inner in enumerate(tree) for leaf in leaves(inner, (*path, n))]

    def space(choose):
        inner, depth = tree, 0
        while inner is not None:
            inner = inner[choose.of(f"model.args.x{depth}", *range(len(inner)))]
            depth += 1

    assert [tuple(point.values()) for point in grid(space)] == leaves(tree, ())


def test_a_trial_is_what_the_command_line_would_make_of_it():
    base = Experiment(model=Model("small", {"width": 8}))
    point = {"model.args.width": 16, "epochs": 3, "augment.parts": ("flip",)}
    texts = [("model.args.width", "16"), ("epochs", "3"), ("augment.parts", "flip"), ("seed", "5")]
    assert digest(resolve(base, point, seed=5)) == digest(flags.override(base, texts))
    assert base == Experiment(model=Model("small", {"width": 8}))


def test_equal_spaces_are_described_alike_and_others_are_not():
    def otherwise(choose):
        choose.of("model.name", "small", "lenet5")
        choose.integers("model.args.width", 8, 24, 8)
        choose.of("model.args.bias", True, False)

    assert described(conditional)["varied"] == {
        "model.name": ["'small','lenet5'"],
        "model.args.width": ["integers(8, 24, 8)"],
        "model.args.bias": ["True,False"],
    }
    assert described(otherwise)["varied"] == described(conditional)["varied"]
    assert described(otherwise) != described(conditional) == described(conditional)


def test_a_page_varies_by_function_mapping_or_texts():
    texts = ["epochs=integers(1, 3)", "model.name=small,lenet5"]
    mapping = {"epochs": distributions.integers(1, 3), "model.name": choices("small", "lenet5")}

    def function(choose):
        choose.integers("epochs", 1, 3)
        choose.of("model.name", "small", "lenet5")

    spaces = [space_of(Sweep(vary).vary) for vary in (texts, mapping, function)]
    assert grid(spaces[0]) == grid(spaces[1]) == grid(spaces[2])


numbers = st.floats(1e-6, 1e6)
shares = st.floats(0, 1, exclude_max=True)


@given(numbers, numbers, shares, st.booleans())
def test_a_share_of_a_range_lies_in_it_and_says_the_way_back(one, other, share, is_log):
    low, high = sorted((one, other))
    if high / low > 1 + 1e-6:
        distribution = FloatDistribution(low, high, log=is_log)
        value = at(distribution, share)
        assert contains(distribution, value)
        assert share_of(distribution, value) == pytest.approx(share, abs=1e-7)


@given(st.integers(-50, 50), st.integers(1, 50), st.integers(1, 9), shares)
@settings(max_examples=200)
def test_shares_of_whole_numbers_are_equal(low, more, step, share):
    distribution = distributions.integers(low, low + more, step)
    values = range(low, low + more + 1, step)
    assert at(distribution, share) == values[int(share * len(values))]
    assert [at(distribution, share_of(distribution, value)) for value in values] == list(values)


def test_the_middle_of_a_log_range_is_the_geometric_mean():
    assert at(distributions.log(1e-4, 1e-2), 0.5) == pytest.approx(1e-3)


def test_a_path_that_was_taken_keeps_its_value():
    space = space_of(["epochs=1,2", "batch_size=32,64"])
    found = walk(space, lambda path, each: ends(each)[-1])
    assert found.point == {"epochs": 2.0, "batch_size": 64}


def test_without_optuna_the_message_says_what_to_install(monkeypatch):
    for name in ("optuna", "optuna.distributions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'convjax\[sweep\]'"):
        parse("epochs=1,2")


def test_neither_jax_nor_optuna_is_loaded_before_it_is_needed():
    code = """
import sys
from convjax.config import Experiment
from convjax.sweep import distributions, objective, sampler, space
assert not {"jax", "optuna", "scipy"} & sys.modules.keys()
varied = space.space_of(["optimizer.learning_rate=log(1e-4, 1e-1)"])
space.check(varied, Experiment())
assert sampler.make("tpe", varied, 0).ask(0, [])
assert not {"jax", "torch", "sqlalchemy"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
