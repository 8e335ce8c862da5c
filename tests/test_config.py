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

from convjax import config as config_module
from convjax.config import (
    Checkpoint,
    ConfigError,
    Data,
    Experiment,
    Loss,
    Model,
    Optimizer,
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
    "loss.name",
    "loss.label_smoothing",
    "checkpoint.every_steps",
    "checkpoint.keep",
]
SECTIONS = ["model", "data", "optimizer", "loss", "checkpoint"]
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
    "loss.name": ({}, "str"),
    "loss.label_smoothing": ("none", "float"),
    "checkpoint.every_steps": (0.5, "int"),
    "checkpoint.keep": ("all", "int"),
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
    ("loss.name", "cross_entropi"),
    ("loss.label_smoothing", 1.0),
    ("loss.label_smoothing", -0.1),
    ("checkpoint.every_steps", -1),
    ("checkpoint.keep", 0),
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
        data=Data("cifar10", "folder"),
        optimizer=Optimizer(
            "sgd", 0.1, 5e-4, ("*/kernel", "*/scale"), "linear", 1.0, 2.0, {"nesterov": True}
        ),
        loss=Loss("cross_entropy", 0.1),
        checkpoint=Checkpoint(100, 5),
    )
    plain, default = flatten(config), flatten(Experiment())
    assert not [path for path in PATHS if plain.get(path) == default[path] and path != "loss.name"]
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
    # Any folder, any tuple of patterns: nothing to refuse before they are used.
    assert {path for path, _ in OUT_OF_RANGE} == set(PATHS) - {"data.dir", "optimizer.decay"}


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


def test_warming_up_for_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"at most the 2 of config\.epochs"):
        validate(Experiment(epochs=2, optimizer=Optimizer(warmup_epochs=2.5)))
    validate(Experiment(epochs=2, optimizer=Optimizer(warmup_epochs=2)))


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

    assert set(schedule.SCHEDULES) <= set(config_module.SCHEDULES)
    for name in config_module.SCHEDULES:
        # At its peak the share is 1, whatever comes after.
        assert float(schedule.make(name, steps=100, warmup=10)(10)) == pytest.approx(1)
    assert sorted(config_module.LOSSES) == sorted(loss.LOSSES)


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
