"""The config is what was typed: JSON gives it back, and whatever is wrong is named by its path."""

import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convjax import ranges
from convjax.config import (
    Augment,
    Average,
    Checkpoint,
    ConfigError,
    Data,
    Experiment,
    Loss,
    Model,
    Norm,
    Optimizer,
    Start,
    Stop,
    differences,
    flatten,
    from_dict,
    read_json,
    to_dict,
    validate,
)

# Written by hand: the words that the rest of the project and every saved run rely on.
PATHS = [
    "name",
    "seed",
    "epochs",
    "batch_size",
    "eval_batch_size",
    "parallel",
    "eval_every_epochs",
    "log_every_steps",
    "model.name",
    "model.args",
    "data.name",
    "data.dir",
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.decay",
    "optimizer.schedule",
    "optimizer.warmup_epochs",
    "optimizer.clip_norm",
    "optimizer.args",
    "optimizer.warmup_steps",
    "optimizer.warmup_start",
    "optimizer.final_factor",
    "optimizer.schedule_args",
    "optimizer.adaptive_clip",
    "optimizer.adaptive_clip_skips",
    "optimizer.rules",
    "optimizer.layer_decay",
    "optimizer.lookahead_steps",
    "optimizer.lookahead_share",
    "optimizer.sam_rho",
    "loss.name",
    "loss.label_smoothing",
    "loss.class_weights",
    "loss.args",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.best",
    "steps_per_call",
    "accumulate",
    "precision",
    "eval_every_steps",
    "test_time",
    "tensorboard",
    "writers",
    "data.train",
    "data.valid",
    "data.test",
    "data.view",
    "data.eval_view",
    "data.processes",
    "data.unreadable",
    "augment.parts",
    "augment.mix",
    "average.decay",
    "average.every",
    "average.power",
    "average.from_epoch",
    "average.write_back",
    "average.reestimate",
    "norm.frozen",
    "norm.ghost",
    "start.run",
    "start.fresh",
    "start.average",
    "start.images",
    "start.weights",
    "stop.patience",
    "stop.metric",
    "stop.min_delta",
    "stop.bad_steps",
]
SECTIONS = [
    *("model", "data", "optimizer", "loss", "augment", "average", "norm", "start", "stop"),
    "checkpoint",
]
# Several texts in one: what a command line gives is always right.
TEXTS = (
    *("optimizer.decay", "optimizer.adaptive_clip_skips", "optimizer.rules", "augment.parts"),
    *("norm.frozen", "start.fresh", "writers"),
)
# A value of the wrong type for each path, and what the message says was expected.
MISTYPED = {
    "name": (3, "str"),
    "seed": (1.5, "int"),
    "epochs": ("many", "float"),
    "batch_size": (True, "int"),
    "eval_batch_size": (None, "int"),
    "parallel": (None, "str"),
    "eval_every_epochs": (1.0, "int"),
    "log_every_steps": ("10", "int"),
    "model.name": (["small"], "str"),
    "model.args": ([1], "a dict"),
    "data.name": (0, "str"),
    "data.dir": (0, "str or None"),
    "optimizer.name": (None, "str"),
    "optimizer.learning_rate": ("0.1", "float"),
    "optimizer.weight_decay": (None, "float"),
    "optimizer.decay": ("*/kernel", "a tuple of str"),
    "optimizer.schedule": (7, "str"),
    "optimizer.warmup_epochs": (False, "float"),
    "optimizer.clip_norm": ("1", "float or None"),
    "optimizer.args": ("momentum", "a dict"),
    "optimizer.warmup_steps": (1.5, "int"),
    "optimizer.warmup_start": ("0", "float or None"),
    "optimizer.final_factor": (None, "float"),
    "optimizer.schedule_args": ([0.97], "a dict"),
    "optimizer.adaptive_clip": (True, "float or None"),
    "optimizer.adaptive_clip_skips": ("head/*", "a tuple of str"),
    "optimizer.rules": ({"head/*": 10}, "a tuple of str"),
    "optimizer.layer_decay": (None, "float"),
    "optimizer.lookahead_steps": (None, "int"),
    "optimizer.lookahead_share": ("half", "float"),
    "optimizer.sam_rho": ("0.05", "float or None"),
    "loss.name": ({}, "str"),
    "loss.label_smoothing": ("none", "float"),
    "loss.class_weights": (1.0, "a tuple of float"),
    "loss.args": (2.0, "a dict"),
    "checkpoint.every_steps": (0.5, "int"),
    "checkpoint.keep": ("all", "int"),
    "checkpoint.best": (1, "str or None"),
    "steps_per_call": (2.0, "int"),
    "accumulate": (None, "int"),
    "precision": (16, "str"),
    "eval_every_steps": (1.5, "int"),
    "test_time": (True, "str or None"),
    "tensorboard": (1, "bool"),
    "writers": ("wandb", "a tuple of str"),
    "data.train": (None, "str"),
    "data.valid": (0.1, "str or None"),
    "data.test": (None, "str"),
    "data.view": (224, "str or None"),
    "data.eval_view": (224, "str or None"),
    "data.processes": (None, "int"),
    "data.unreadable": ("some", "float"),
    "augment.parts": ("flip", "a tuple of str"),
    "augment.mix": (0.2, "str or None"),
    "average.decay": ("0.9", "float or None"),
    "average.every": (0.5, "int"),
    "average.power": (None, "float"),
    "average.from_epoch": (None, "float"),
    "average.write_back": (1, "bool"),
    "average.reestimate": ("yes", "bool"),
    "norm.frozen": ("*", "a tuple of str"),
    "norm.ghost": (None, "int"),
    "start.run": (1, "str or None"),
    "start.fresh": ("head/*", "a tuple of str"),
    "start.average": (0, "bool"),
    "start.images": (1, "str or None"),
    "start.weights": (1, "str or None"),
    "stop.patience": (1.5, "int"),
    "stop.metric": (None, "str"),
    "stop.min_delta": (None, "float"),
    "stop.bad_steps": (2.5, "int"),
}
# Values of the right type that no run can use.
OUT_OF_RANGE = [
    ("name", ""),
    ("name", "../escape"),
    ("name", "two\nlines"),
    ("seed", -1),
    ("seed", 2**32),
    ("epochs", 0.0),
    ("epochs", -1.0),
    ("epochs", math.inf),
    ("epochs", math.nan),
    ("batch_size", 0),
    ("eval_batch_size", -5),
    ("parallel", "gpu"),
    ("eval_every_epochs", 0),
    ("log_every_steps", 0),
    ("model.name", ""),
    ("model.name", "package:module:function"),
    ("model.args", {"width": math.nan}),
    ("data.name", " "),
    ("optimizer.name", "adam w"),
    ("optimizer.learning_rate", -0.1),
    ("optimizer.learning_rate", math.nan),
    ("optimizer.weight_decay", math.inf),
    ("optimizer.schedule", "cosin"),
    ("optimizer.warmup_epochs", 11.0),
    ("optimizer.clip_norm", 0.0),
    ("optimizer.args", {"learning_rate": 0.1}),
    ("optimizer.warmup_epochs", 10.0),
    ("optimizer.warmup_steps", -1),
    ("optimizer.warmup_start", 1.1),
    ("optimizer.final_factor", -0.1),
    ("optimizer.schedule_args", {"gamma": math.nan}),
    ("optimizer.adaptive_clip", 0.0),
    ("optimizer.layer_decay", 0.0),
    ("optimizer.layer_decay", 1.5),
    ("optimizer.lookahead_steps", -5),
    ("optimizer.lookahead_share", 0.0),
    ("optimizer.sam_rho", 0.0),
    ("loss.name", "cross_entropi"),
    ("loss.label_smoothing", 1.0),
    ("loss.label_smoothing", -0.1),
    ("loss.class_weights", (1.0, -1.0)),
    ("loss.args", {"gamma": math.inf}),
    ("checkpoint.every_steps", -1),
    ("checkpoint.keep", 0),
    ("checkpoint.best", "acuracy"),
    ("steps_per_call", 0),
    ("accumulate", 0),
    ("precision", "float8"),
    ("eval_every_steps", -1),
    ("data.eval_view", "centre_crop(224)"),
    ("data.processes", 2),
    ("data.unreadable", 1.0),
    ("average.decay", 1.0),
    ("average.every", 0),
    ("average.power", -1.0),
    ("average.from_epoch", 10.0),
    ("average.write_back", True),
    ("average.reestimate", True),
    ("norm.ghost", -1),
    ("stop.patience", -1),
    ("stop.metric", "acc"),
    ("stop.min_delta", math.nan),
    ("stop.bad_steps", 0),
]


def put(config, path, value):
    """Sets a field of a config by its dotted path."""
    *sections, name = path.split(".")
    setattr(functools.reduce(getattr, sections, config), name, value)
    return config


def nested(path, value) -> dict:
    """A dotted path as nested dicts around a value."""
    key, _, rest = path.partition(".")
    return {key: nested(rest, value) if rest else value}


def swapped(name):
    """A name as hasty fingers type it: the first two letters change places."""
    return name[1] + name[0] + name[2:]


def test_the_paths_are_those_that_everything_else_relies_on():
    assert sorted(flatten(Experiment())) == sorted(PATHS)


def test_json_gives_back_an_experiment_with_no_default_left():
    config = Experiment(
        name="mine",
        seed=7,
        epochs=2.5,
        batch_size=3,
        eval_batch_size=11,
        parallel="pmap",
        eval_every_epochs=2,
        log_every_steps=9,
        model=Model("my.package:net", {"width": 32, "norm": None, "stages": (1, (2, 3))}),
        data=Data(
            *("cifar10", "folder", "train[:90%]", "train[90%:]", "test[:50%]"),
            *("random_resized_crop(224)", "centre_crop(224)", 2, 0.01),
        ),
        optimizer=Optimizer(
            "sgd",
            0.1,
            5e-4,
            ("*/kernel", "*/scale"),
            "step",
            0.0,
            2.0,
            {"nesterov": True},
            warmup_steps=7,
            warmup_start=0.2,
            final_factor=0.1,
            schedule_args={"milestone_epochs": (1, 2), "gamma": 0.5},
            adaptive_clip=0.01,
            adaptive_clip_skips=("head/*",),
            rules=("stem/*: freeze", "head/*: learning_rate=10, weight_decay=0"),
            layer_decay=0.7,
            lookahead_steps=5,
            lookahead_share=0.8,
            sam_rho=0.05,
        ),
        loss=Loss("cross_entropy", 0.1, (1.0, 0.5), {"gamma": 1.0}),
        steps_per_call=1,
        accumulate=3,
        precision="float16",
        eval_every_steps=50,
        test_time="flip",
        tensorboard=True,
        writers=("wandb", "my.package:writer"),
        augment=Augment(("crop(4)", "flip"), "mixup(0.2)"),
        average=Average(0.99, 5, 3.0, 1.0, True, True),
        norm=Norm(("stem/*",), 32),
        start=Start("runs/other", ("head/*",), True),
        stop=Stop(3, "loss", 0.01, 5),
        checkpoint=Checkpoint(100, 5, "loss"),
    )
    plain, default = flatten(config), flatten(Experiment())
    # The default name, the one of the two lengths of a warm-up that is not given, and what a stream
    # needs.
    same = {"loss.name", "optimizer.warmup_epochs", "steps_per_call"}
    same |= {"start.images", "start.weights"}  # what is given is start.run
    assert {path for path in PATHS if plain.get(path) == default[path]} == same
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    validate(config)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Of a text only its type matters.
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), json_values, max_size=3))
def test_json_gives_back_whatever_an_open_dict_holds(args):
    config = Experiment(model=Model(args=args))
    assert from_dict(json.loads(json.dumps(to_dict(config)))).model.args == args


def test_equal_experiments_give_equal_json():
    as_typed = Experiment(epochs=5, model=Model(args={"stages": [1, 2]}))
    as_saved = Experiment(epochs=5.0, model=Model(args={"stages": (1, 2)}))
    assert json.dumps(to_dict(as_typed)) == json.dumps(to_dict(as_saved))
    assert type(to_dict(as_typed)["epochs"]) is float


def test_a_key_that_is_left_out_takes_its_default():
    assert from_dict({"optimizer": {"name": "sgd"}}) == Experiment(optimizer=Optimizer("sgd"))


def test_the_experiment_shares_nothing_with_the_dict_it_came_from():
    values = to_dict(Experiment(model=Model(args={"width": 8})))
    config = from_dict(values)
    values["model"]["args"]["width"] = 9
    assert config.model.args == {"width": 8}
    assert Experiment().model is not Experiment().model


@pytest.mark.parametrize("path", [*PATHS, *SECTIONS])
@pytest.mark.parametrize("misspell", [swapped, lambda name: name[:-1], str.upper])
def test_a_misspelt_key_is_told_the_nearest_right_one(path, misspell):
    *sections, name = path.split(".")
    wrong = misspell(name)
    where = ".".join(["config", *sections])
    with pytest.raises(ConfigError) as error:
        from_dict(nested(".".join([*sections, wrong]), 1))
    assert str(error.value) == f"{where} has no {wrong!r}; did you mean {name!r}?"


def test_a_key_in_the_wrong_section_is_told_the_right_one():
    with pytest.raises(ConfigError, match=r"config has no 'learning_rate'; .* 'optimizer\.learn"):
        from_dict({"learning_rate": 0.1})


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_type_is_told_with_path_value_and_type(path):
    value, expected = MISTYPED[path]
    message = f"config.{path} is {value!r}: expected {expected}, not {type(value).__name__}"
    for refuse in (
        lambda: from_dict(nested(path, value)),
        lambda: to_dict(put(Experiment(), path, value)),
        lambda: validate(put(Experiment(), path, value)),
    ):
        with pytest.raises(ConfigError) as error:
            refuse()
        assert str(error.value) == message


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_no_single_value(section):
    with pytest.raises(ConfigError, match=rf"config\.{section} is 3: expected the keys of "):
        from_dict({section: 3})


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_told_with_its_path_and_value(path, value):
    with pytest.raises(ConfigError) as error:
        validate(put(Experiment(), path, value))
    message = str(error.value)
    shown = next(iter(value.values())) if isinstance(value, dict) else value
    assert message.startswith(f"config.{path}")
    assert f" is {shown!r}: " in message
    assert "; " not in message, "one mistake, one message"


def test_every_path_has_a_value_out_of_range_or_none():
    # Any folder, split or pattern, and what is written as calls: refused where it is used, or in a
    # test of its own.
    free = {
        *("data.dir", "data.train", "data.valid", "data.test", "data.view", "augment.mix"),
        *("start.run", "start.average", "start.images", "start.weights", "test_time", *TEXTS),
        "tensorboard",
    }
    assert {path for path, _ in OUT_OF_RANGE} == set(PATHS) - free


def test_validation_lists_everything_that_is_wrong():
    config = Experiment(epochs=0, batch_size=0, parallel="pmapp", loss=Loss(label_smoothing=2))
    config.optimizer.learning_rate = -1
    with pytest.raises(ConfigError) as error:
        validate(config)
    wrong = sorted(part.split(" is ")[0] for part in str(error.value).split("; "))
    assert wrong == [
        "config.batch_size",
        "config.epochs",
        "config.loss.label_smoothing",
        "config.optimizer.learning_rate",
        "config.parallel",
    ]
    assert "did you mean 'pmap'?" in str(error.value)


def test_all_wrong_types_and_unknown_keys_are_listed_at_once():
    with pytest.raises(ConfigError) as error:
        from_dict({"epochs": "x", "sede": 1, "model": {"nam": "y"}, "loss": 1})
    assert len(str(error.value).split("; config")) == 4


def test_what_json_cannot_hold_is_refused_where_it_stands():
    for value in (max, np.float32(1), {1, 2}, object()):
        with pytest.raises(
            ConfigError, match=r"config\.model\.args\.block\.0 is .*: expected a nu"
        ):
            validate(Experiment(model=Model(args={"block": [value]})))
    with pytest.raises(ConfigError, match=r"config\.model\.args has the key 'a b'"):
        validate(Experiment(model=Model(args={"a b": 1})))


def test_a_run_that_is_all_warm_up_is_refused():
    for warmup, epochs in ((2.5, 2), (2, 2)):
        with pytest.raises(ConfigError) as error:
            validate(Experiment(epochs=epochs, optimizer=Optimizer(warmup_epochs=warmup)))
        assert str(error.value) == (
            f"config.optimizer.warmup_epochs is {warmup}: give less than the 2 of config.epochs, "
            "such as 0.2, so that something is left for the schedule"
        )
    validate(Experiment(epochs=2, optimizer=Optimizer(warmup_epochs=1.9)))


def test_a_warm_up_in_epochs_and_in_steps_is_refused():
    with pytest.raises(
        ConfigError, match=r"warmup_steps is 5: config\.optimizer\.warmup_epochs is 1"
    ):
        validate(Experiment(optimizer=Optimizer(warmup_epochs=1, warmup_steps=5)))


def test_every_rule_that_cannot_be_read_is_told():
    rules = ("stem/*: frieze", "head/*: learning_rat=10", "*/bias", "*: weight_decay=-1")
    with pytest.raises(ConfigError) as error:
        validate(Experiment(optimizer=Optimizer(rules=rules)))
    assert str(error.value).split("; ") == [
        "config.optimizer.rules: 'stem/*: frieze' says 'frieze': did you mean 'freeze'?",
        "config.optimizer.rules: 'head/*: learning_rat=10' says 'learning_rat=10': "
        "did you mean 'learning_rate'?",
        "config.optimizer.rules: '*/bias' is no rule: write 'PATTERN: freeze' or "
        "'PATTERN: learning_rate=FACTOR, weight_decay=FACTOR, until_epoch=EPOCH'",
        "config.optimizer.rules: '*: weight_decay=-1' has the factor '-1': "
        "give a number of 0 or more",
    ]


def test_differences_are_the_paths_where_values_differ():
    one = Experiment(epochs=3, model=Model(args={"width": 8, "depth": 2}))
    other = Experiment(epochs=3.0, seed=1, model=Model(args={"width": 16}))
    assert differences(one, other) == {
        "seed": (0, 1),
        "model.args.width": (8, 16),
        "model.args.depth": (2, None),
    }
    assert differences(one, one) == {}
    assert differences(Experiment(epochs=3), one) == {
        "model.args.width": (None, 8),
        "model.args.depth": (None, 2),
    }


def test_a_saved_file_is_read_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "config.json"
    config = Experiment(seed=3, model=Model(args={"stages": (1, 2)}))
    path.write_text(json.dumps(to_dict(config)), "utf-8")
    assert read_json(path) == config
    for text, problem in (
        (b'{"seed": 3', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "expected the keys of Experiment"),
        (b'{"sede": 3}', "did you mean 'seed'?"),
        (b'{"model": {"args": {"rate": NaN}}}', "config.model.args.rate is nan"),
    ):
        path.write_bytes(text)
        with pytest.raises(ConfigError) as error:
            read_json(path)
        assert str(error.value).startswith(str(path))
        assert problem in str(error.value)


def test_the_names_that_a_config_offers_are_those_that_training_has():
    from convjax.training import loss, schedule

    assert set(schedule.SCHEDULES) <= set(ranges.SCHEDULES)
    for name in ranges.SCHEDULES:
        # At its peak the share is 1, whatever comes after.
        assert float(
            schedule.make(name, steps=100, warmup=10)(9 if name == "one_cycle" else 10)
        ) == pytest.approx(1)
    assert sorted(ranges.LOSSES) == sorted(loss.LOSSES)


def test_every_field_is_explained_in_the_help():
    from convjax.flags import _keys

    explained = {path: text for path, _, text in _keys()}
    assert sorted(explained) == sorted(PATHS)
    assert all(len(text) > 15 for text in explained.values())


def test_importing_the_config_imports_nothing_slow():
    slow = "{'jax', 'numpy', 'absl', 'ml_collections', 'optax', 'yaml'}"
    code = f"import sys, convjax.config; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("average.every", 5), ("average.power", 3.0), ("average.from_epoch", 1.0)),
        *(("stop.min_delta", 0.1), ("optimizer.warmup_start", 0.1)),
        ("optimizer.lookahead_share", 0.8),
    ],
)
def test_what_would_do_nothing_is_refused(path, value):
    with pytest.raises(ConfigError, match=rf"config\.{path} is {value}: it does nothing without"):
        validate(put(Experiment(), path, value))
