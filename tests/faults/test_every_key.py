"""Every key of a config, misspelt, mistyped and out of range: one line that says what to write."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_config import nested
from test_run import experiment

import convjax
from convjax.config import Experiment, flatten, to_dict, validate
from convjax.flags import guard
from convjax.ranges import length_problems
from convjax.training.fit import make_plan
from experiments import train

KEYS = sorted(flatten(Experiment()))


@pytest.fixture
def launched(tmp_path, monkeypatch, capsys):
    """launched(*words): the one line that the launcher answers to a mistake.

    It exits with status 2, says nothing on standard output and makes no folder of a run.
    """
    monkeypatch.chdir(tmp_path)
    # It would be told to all the tests that follow.
    monkeypatch.setattr("experiments.train.keep_freed_memory", lambda: None)
    before = sorted(tmp_path.iterdir())

    def launch(*words):
        # The pictures and the network are functions of a test.
        status = guard(train.main, ["train", "--workdir=run", "--trust", *words])
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), words
        # What is doubtful about the data is told first.
        *warnings, line = err.splitlines()
        assert all(each.startswith("warning: ") for each in warnings)
        assert line.startswith("error: ")
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "runs").exists()
        return line.removeprefix("error: ")

    yield launch
    assert {path.suffix for path in set(tmp_path.iterdir()) - set(before)} <= {".json", ".py"}


@pytest.fixture
def early(launched, monkeypatch):
    """The same of what is refused before JAX is asked for anything."""

    def too_late(config, *_, **__):
        raise AssertionError(f"the run was asked to train {config}")

    monkeypatch.setattr(convjax, "run", SimpleNamespace(train=too_late), raising=False)
    return launched


def as_json(changes):
    """The words of a config of ten small pictures with these changes, by dotted path."""
    values = to_dict(experiment())
    for path, value in changes.items():
        *sections, name = path.split(".")
        section = values
        for each in sections:
            section = section[each]
        section[name] = value
    return written(".json", json.dumps(values))


def as_page(changes):
    """The words of a page of Python that says the same."""
    lines = [f"    config.{path} = {value!r}" for path, value in changes.items()]
    begin = ["from test_run import experiment", "def get_config():", "    config = experiment()"]
    return written(".py", "\n".join([*begin, *lines, "    return config", ""]))


def written(suffix, text):
    """The words that name a new file of this text."""
    file = Path(f"{len(os.listdir())}{suffix}")
    file.write_text(text, "utf-8")
    return (f"--config={file}",)


# -- Misspelt --------------------------------------------------------------------------------------


def spellings(name):
    """A name as hasty fingers type it, one or two letters away from the right one."""
    middle = len(name) // 2
    wrong = [
        name[1] + name[0] + name[2:],
        name[:-1],
        name + name[-1],
        name[1:],
        name[:middle] + "x" + name[middle + 1 :],
        name[:-2] + name[-1] + name[-2],
        name.replace("_", "-") if "_" in name else name.upper(),
        name[:middle] + name[middle] + name[middle:],
    ]
    if len(name) > 5:
        wrong += [name[:middle] + name[middle + 2 :], name[1:-1], "x" + name[:-1]]
    return [each for each in dict.fromkeys(wrong) if each != name]


def test_a_misspelt_key_is_told_the_right_one(early, repeats, observed):
    count = 0
    most = repeats(3, 99)
    for number, path in enumerate(KEYS):
        *sections, name = path.split(".")
        where = ".".join(["config", *sections])
        others = {key.split(".")[-1] for key in KEYS if key.split(".")[:-1] == sections}
        for wrong in [each for each in spellings(name) if each not in others][:most]:
            ways = [(f"--config.{'.'.join([*sections, wrong])}=1",)]
            if count % repeats(4, 1) == 0:
                ways.append(written(".json", json.dumps(nested(".".join([*sections, wrong]), 1))))
            if number % repeats(15, 1) == 0 and wrong.isidentifier():
                ways.append(as_page({".".join([*sections, wrong]): 1}))
            for words in ways:
                line = early(*words)
                assert f"{where} has no {wrong!r}; did you mean {name!r}?" in line
                count += 1
    observed("a config key misspelt", count, f"all {len(KEYS)} keys, several ways")


# -- Mistyped --------------------------------------------------------------------------------------

WRONG = {
    "int": [1.5, "1", True, None, [1], {}],
    "float": ["0.1", True, None, [0.1], {}],
    "str": [3, None, True, ["x"], {}],
    "bool": [1, "yes", None, []],
    "a dict": [[1], "x", 3, None, True],
    "a tuple of str": ["head/*", 3, None, [1], ["x", None], {"x": 1}],
    "a tuple of float": [1.0, "1", None, ["1"], [1, None]],
}
# Written by hand; what is in none of them is a text.
TYPES = {
    "int": """
        seed batch_size eval_batch_size steps_per_call accumulate eval_every_epochs eval_every_steps
        log_every_steps data.processes optimizer.warmup_steps optimizer.lookahead_steps
        average.every norm.ghost stop.patience stop.bad_steps checkpoint.every_steps checkpoint.keep
    """,
    "float": """
        epochs data.unreadable optimizer.learning_rate optimizer.weight_decay
        optimizer.warmup_epochs optimizer.final_factor optimizer.layer_decay
        optimizer.lookahead_share loss.label_smoothing average.power average.from_epoch
        stop.min_delta
    """,
    "float or None": """
        optimizer.clip_norm optimizer.warmup_start optimizer.adaptive_clip optimizer.sam_rho
        average.decay
    """,
    "str or None": """
        test_time data.dir data.valid data.view data.eval_view augment.mix start.run start.images
        start.weights checkpoint.best
    """,
    "bool": "tensorboard average.write_back average.reestimate start.average",
    "a dict": "model.args optimizer.args optimizer.schedule_args loss.args",
    "a tuple of str": """
        optimizer.decay optimizer.adaptive_clip_skips optimizer.rules augment.parts norm.frozen
        start.fresh writers
    """,
    "a tuple of float": "loss.class_weights",
}
TYPE_OF = {key: words for words, keys in TYPES.items() for key in keys.split()}


def wrong_values(path):
    """Values of another type than that of the key, and how that is called."""
    expected = TYPE_OF.get(path, "str")
    optional = expected.endswith(" or None")
    values = WRONG[expected.removesuffix(" or None")]
    return [value for value in values if not (optional and value is None)], expected


def test_a_mistyped_value_is_told_the_type(early, repeats, observed):
    count = 0
    for number, path in enumerate(KEYS):
        values, expected = wrong_values(path)
        for value in values[: repeats(2, 99)]:
            ways = [as_json({path: value})]
            if number % repeats(15, 1) == 0:
                ways.append(as_page({path: value}))
            for words in ways:
                line = early(*words)
                what = f"config.{path} is {value!r}: expected {expected}, not "
                assert re.sub(r"^\d+\.json: ", "", line).startswith(what)
                count += 1
        # On a command line everything is text, and text is right where a text is expected.
        if not expected.startswith("str") and expected != "a tuple of str":
            line = early(f"--config.{path}=1 so")
            assert line.startswith(f"config.{path} is '1 so': expected {expected}")
            count += 1
    observed("a config value of the wrong type", count, f"all {len(KEYS)} keys, several ways")


# -- Out of range ----------------------------------------------------------------------------------

# Written by hand: values that no run can use, and what the line says of them.
EARLY = {
    "name": [
        ("../x", "it names a folder, so use"),
        ("", "it names a folder"),
        ("a\nb", "it names"),
    ],
    "seed": [(-1, "give a whole number from 0 to 4294967295"), (2**32, "from 0 to 4294967295")],
    "epochs": [(0.0, "give more than 0"), (float("nan"), "more than 0"), (1e39, "float32 holds")],
    "batch_size": [(0, "give 1 or more"), (2**31, "give less than 2147483648")],
    "eval_batch_size": [(-5, "give 1 or more"), (10**30, "give less than 2147483648")],
    "parallel": [("pmapp", "did you mean 'pmap'?"), ("", "choose from 'fsdp', 'jit'")],
    "steps_per_call": [(0, "give 1 or more"), (2**31, "give less than 2147483648")],
    "accumulate": [(0, "give 1 or more")],
    "precision": [("float61", "did you mean 'float16'?"), ("float64", "did you mean 'float")],
    "eval_every_epochs": [(0, "give 1 or more"), (2**31, "give less than 2147483648")],
    "eval_every_steps": [(-1, "give 0 (as config.eval_every_epochs says) or more")],
    "test_time": [("", "write what it is to be, or leave it out")],
    "log_every_steps": [(0, "give 1 or more")],
    "model.name": [("", "give a registered name or"), ("a:b:c", "give a registered name or")],
    "model.args": [({"classes": 3}, "leave it out, the data say how many")],
    "data.name": [(" ", "give the name of a data set")],
    "data.dir": [("", "write what it is to be, or leave it out")],
    "data.train": [("", "write what it is to be, or leave it out")],
    "data.valid": [(" ", "write what it is to be, or leave it out")],
    "data.test": [("", "write what it is to be, or leave it out")],
    "data.eval_view": [("centre_crop(9)", "give both or neither")],
    "data.processes": [
        (-1, "give 0, or with config.data.view"),
        (2, "give 0, or with config.data"),
    ],
    "data.unreadable": [(1.0, "give a share"), (-0.1, "give a share"), (0.5, "give 0")],
    "optimizer.name": [
        ("adam w", "give the name of an optimizer"),
        ("", "give the name of an opt"),
    ],
    "optimizer.learning_rate": [(-0.1, "give 0 or more"), (1e39, "give what float32 holds")],
    "optimizer.weight_decay": [(-1.0, "give 0 or more"), (float("inf"), "give 0 or more")],
    "optimizer.schedule": [("cosin", "did you mean 'cosine'?")],
    "optimizer.warmup_epochs": [
        (-1.0, "give 0 or more"),
        (2.0, "give less than the 2 of config.ep"),
    ],
    "optimizer.clip_norm": [(0.0, "give more than 0, or None"), (1e39, "give what float32 holds")],
    "optimizer.args": [
        ({"learning_rate": 0.1}, "set config.optimizer.learning_rate instead"),
        ({"adam_paths": 3}, "give patterns of parameter paths"),
        ({"eps": 2**40}, "give less than 2147483648"),
    ],
    "optimizer.warmup_steps": [(-1, "give 0 or more")],
    "optimizer.warmup_start": [(1.5, "give a share of the peak, from 0 to 1")],
    "optimizer.final_factor": [(-0.1, "give a share of the peak, from 0 to 1")],
    "optimizer.schedule_args": [({"gamma": float("nan")}, "give a finite number")],
    "optimizer.adaptive_clip": [(0.0, "give more than 0, or None")],
    "optimizer.rules": [(["*: frieze"], "did you mean 'freeze'?"), (["*"], "is no rule: write ")],
    "optimizer.layer_decay": [(0.0, "give more than 0 and at most 1"), (2.0, "and at most 1")],
    "optimizer.lookahead_steps": [(-1, "give 0 (none) or"), (2**31, "give less than 2147483648")],
    "optimizer.lookahead_share": [(0.0, "give more than 0 and at most 1"), (1.1, "at most 1")],
    "optimizer.sam_rho": [(0.0, "give more than 0, or None")],
    "loss.name": [("cross_entropi", "did you mean 'cross_entropy'?")],
    "loss.label_smoothing": [(1.0, "give 0 or more and less than 1"), (-0.1, "0 or more and less")],
    "loss.class_weights": [
        ([1.0, -1.0, 1.0], "give a number of 0 or more for each class"),
        ([0.0, 0.0, 0.0], "not all of them 0"),
        ([1e39, 1.0, 1.0], "that float32 holds"),
    ],
    "average.decay": [(1.0, "give 0 or more and less than 1, such as 0.999, or None")],
    "average.every": [(0, "give 1 or more")],
    "average.power": [(-1.0, "give 0 or more")],
    "average.from_epoch": [(2.0, "give 0 or more, and less than the 2 of config.epochs")],
    "average.write_back": [(True, "there is no average: give config.average.decay")],
    "average.reestimate": [(True, "there is no average: give config.average.decay")],
    "norm.ghost": [(-1, "give 0 (the whole batch) or more")],
    "start.run": [("", "write what it is to be, or leave it out")],
    "start.fresh": [(["head/*"], "give config.start.run or .weights")],
    "start.average": [(True, "give config.start.run, whose average is meant")],
    "start.images": [(" ", "write what it is to be, or leave it out")],
    "start.weights": [("", "write what it is to be, or leave it out")],
    "stop.patience": [(-1, "give 0 (train to the end) or more")],
    "stop.metric": [("acuracy", "did you mean 'accuracy'?")],
    "stop.min_delta": [
        (-1.0, "give 0 (any better one) or"),
        (1.0, "accuracy is a share from 0 to"),
    ],
    "stop.bad_steps": [(0, "give 1 or more")],
    "checkpoint.every_steps": [(-1, "give 0 (once an epoch) or more")],
    "checkpoint.keep": [(0, "give 1 or more")],
    "checkpoint.best": [
        ("acuracy", "did you mean 'accuracy'?"),
        ("", "choose from 'accuracy', 'lo"),
    ],
}
# What only data, network or optimizer can tell: still before a folder is made.
LATE = {
    "writers": [
        (["wandbb"], "did you mean 'wandb'?"),
        (["test_run:Nobody"], "has no function 'Nobody'"),
    ],
    "epochs": [(1e12, "give fewer than")],
    "batch_size": [(41, "choose a batch size from 1 to 40")],
    "accumulate": [(2, "it is to divide the 5 images of a batch")],
    "test_time": [("flop", "there are no views 'flop': did you mean 'flip'?")],
    "model.name": [
        ("resnet20s", "did you mean 'resnet20'?"),
        ("test_run:tyni", "has no function 'tyni'"),
    ],
    "model.args": [({"widht": 3}, "no keyword 'widht': did you mean 'width'?")],
    "data.name": [("fashion_mimi", "did you mean 'fashion_mini'?")],
    "data.dir": [("nowhere", "nowhere is no folder: give the one that holds the data")],
    "data.train": [("trian", "there is no split 'trian'")],
    "data.valid": [("vaild", "there is no split 'vaild'")],
    "data.test": [("tset", "there is no split 'tset'")],
    "optimizer.name": [("adamm", "did you mean 'adam")],
    "optimizer.decay": [(["*/kernle"], "'*/kernle'")],
    "optimizer.args": [({"momentun": 0.9}, "did you mean 'momentum'?")],
    "optimizer.schedule_args": [({"gama": 0.5}, "the schedule 'cosine' does not take")],
    "optimizer.lookahead_steps": [(17, "the run has 16 steps, so the weights that are evaluated")],
    "optimizer.adaptive_clip_skips": [(["dense1/*"], "nothing is clipped without")],
    "optimizer.rules": [(["dence1/*: freeze"], "'dence1/*")],
    "loss.class_weights": [([1.0, 1.0], "has 2 numbers: the data have 3 classes")],
    "loss.args": [({"gama": 2.0}, "which cross_entropy does not take")],
    "augment.parts": [
        (["flop"], "there is no flop"),
        (["crop(99)"], "out of sight: give less tha"),
    ],
    "augment.mix": [
        ("mixxup(0.2)", "did you mean 'mixup'?"),
        ("mixup(-1)", "mixup: "),
        ("os:getpid", "config.augment.mix"),
    ],
    "norm.frozen": [(["batch9"], "no norm of the network matches 'batch9'")],
    "norm.ghost": [(2, "it is to divide the 5 images")],
    "start.run": [("nowhere", "nowhere has no checkpoints yet: train it first")],
    "start.images": [("test_run:nothing", "test_run has no function 'nothing'")],
    "start.weights": [("nowhere.safetensors", "does not exist: give a file of weights")],
}
# Named by what they are part of.
BROADER = {
    **dict.fromkeys(("data.name", "data.dir", "data.train", "data.valid", "data.test"), "data"),
    **dict.fromkeys(("model.name", "model.args"), "model"),
}


def test_every_key_has_a_value_that_no_run_can_use():
    # Of views see the contradictions; a run can do with TensorBoard and without.
    assert {*EARLY, *LATE} == {*KEYS} - {"data.view", "tensorboard"}


def test_a_value_out_of_range_is_told_the_range(early, repeats, observed):
    count = 0
    for number, (path, cases) in enumerate(EARLY.items()):
        for value, expected in cases:
            ways: list[tuple[str, ...]] = [as_json({path: value})]
            if not isinstance(value, list | dict):
                ways.append((f"--config.{path}={value}", *as_json({})))
            if number % repeats(15, 1) == 0 and not {"nan", "inf"} & set(
                re.findall(r"\w+", repr(value))
            ):
                ways.append(as_page({path: value}))
            for words in ways:
                line = early(*words)
                assert f"config.{path}" in line
                assert expected in line
                assert "; config." not in line, "one mistake, one message"
                count += 1
    observed("a config value out of range", count, f"{len(EARLY)} keys, before JAX is loaded")


@pytest.mark.parametrize("path", LATE)
def test_what_only_data_and_network_can_tell_is_told_before_the_first_step(
    launched, observed, path
):
    for value, expected in LATE[path]:
        line = launched(*as_json({path: value}))
        assert f"config.{BROADER.get(path, path)}" in line
        assert expected in line
        observed("a config value that data or network refuse", 1, "before a folder is made")


VALID = {"data.valid": "valid"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"start.run": "a", "start.weights": "b"},
            "start.weights is 'b': config.start.run is 'a', t",
        ),
        ({"start.run": "a", "start.images": "b:c"}, "start.images is 'b:c': config.start.run is"),
        (
            {"start.weights": "a", "start.images": "b:c"},
            "config.start.weights is 'a', too: give one",
        ),
        (
            {"start.weights": "a", "start.average": True},
            "give config.start.run, whose average is m",
        ),
        ({"optimizer.warmup_epochs": 1.0, "optimizer.warmup_steps": 3}, "too: give one of them"),
        ({"stop.patience": 2}, "config.data.valid is None: config.stop needs it"),
        ({"checkpoint.best": "loss"}, "config.data.valid is None: config.checkpoint.best needs it"),
        ({"data.view": "whole(6, 6)"}, "give both or neither"),
        (
            {"data.view": "whole(6, 6)", "data.eval_view": "whole(6, 6)", "steps_per_call": 2},
            "config.steps_per_call is 2: images that are streamed from disk are taken one step",
        ),
        ({"average.every": 2}, "it does nothing without config.average.decay"),
        ({"average.power": 3.0}, "it does nothing without config.average.decay"),
        ({"average.from_epoch": 1.0}, "it does nothing without config.average.decay"),
        ({"stop.min_delta": 0.1}, "it does nothing without config.stop.patience"),
        ({"stop.metric": "loss"}, "it does nothing without config.stop.patience"),
        ({**VALID, "stop.patience": 1, "stop.min_delta": 2.0}, "accuracy is a share from 0 to 1"),
        (
            {"optimizer.lookahead_share": 0.9},
            "it does nothing without config.optimizer.lookahead_s",
        ),
        (
            {"optimizer.warmup_epochs": 0.0, "optimizer.warmup_start": 0.1},
            "it does nothing without config.optimizer.warmup_epochs",
        ),
        ({"optimizer.rules": ["*: until_epoch=2"]}, "never ends: give until_epoch less than the 2"),
    ],
)
def test_keys_that_contradict_each_other_are_told(early, observed, changes, expected):
    for words in (as_json(changes), as_page(changes)):
        assert expected in early(*words)
    observed("two config keys that contradict each other", 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"data.valid": "train"},
            "config.data.valid is 'train', which has images of config.data.tr",
        ),
        (
            {"optimizer.schedule": "constant", "optimizer.final_factor": 0.1},
            "falls to no such share",
        ),
        (
            {
                "optimizer.schedule": "exponential",
                "optimizer.schedule_args": {"gamma": 0.9},
                "optimizer.final_factor": 0.1,
            },
            "give one of them",
        ),
        (
            {"optimizer.warmup_epochs": 0.0, "optimizer.warmup_steps": 16},
            "config.optimizer.warmup_steps is 16, which is 16 steps: config.epochs asks for a run",
        ),
        ({"average.decay": 0.9, "average.every": 17}, "the average would follow none"),
        ({"parallel": "sharded"}, "give a multiple of the 8 devices"),
        (
            {"data.view": "whole(6, 6", "data.eval_view": "whole(6, 6)"},
            "config.data.view: 'whole(6, 6'",
        ),
    ],
)
def test_keys_that_do_not_fit_the_data_are_told(launched, observed, changes, expected):
    assert expected in launched(*as_json(changes))
    observed("two config keys that contradict each other", 1)


def test_what_a_run_is_over_before_is_told():
    plan = make_plan(40, batch_size=5, epochs=2)  # 16 steps, 8 an epoch
    config = experiment()
    assert not list(length_problems(config, plan))
    for steps, wrong in ((16, False), (17, True)):
        config.optimizer.lookahead_steps = steps
        told = list(length_problems(config, plan))
        assert told == wrong * [
            "config.optimizer.lookahead_steps is 17: the run has 16 steps, so the weights that are "
            "evaluated would never move; give fewer"
        ]
    config.optimizer.lookahead_steps = 0
    config.average.decay = 0.9
    # Every 9 steps the average follows once, at step 9; from epoch 1.25 on, that is step 10, never.
    for every, start, wrong in ((16, 0.0, 0), (17, 0.0, 1), (9, 1.0, 0), (9, 1.25, 1)):
        config.average.every, config.average.from_epoch = every, start
        validate(config)
        assert len(list(length_problems(config, plan))) == wrong


def test_a_line_is_plain_whatever_it_quotes(launched):
    for text in ("a\x1b[31mb", "a\r\nb", "a\0b", "a\u202eb"):
        for path in ("model.name", "data.name", "data.dir", "data.train", "start.run", "test_time"):
            line = launched(*as_json({path: text}))
            assert line.isprintable()
