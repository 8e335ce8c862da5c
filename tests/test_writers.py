"""Who else is told of metrics: each line once, however often a run is taken up."""

import importlib.util
import io
import signal
import struct
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from convjax import ops, run, writers
from convjax.combine import serial
from convjax.config import (
    Checkpoint,
    ConfigError,
    Data,
    Experiment,
    Model,
    UserError,
    differences,
    digest,
    flatten,
    from_dict,
    read_json,
    to_dict,
)
from convjax.data import Dataset
from convjax.flags import parse_experiment
from convjax.layers import dense
from convjax.runlog import RunLog


def pictures(split, data_dir):
    """Thirty-two small pictures to train on, and eight to test."""
    size = {"train": 32, "test": 8}[split]
    draw = np.random.default_rng(size)
    images = draw.integers(0, 255, (size, 4, 4, 1)).astype(np.uint8)
    return Dataset(images, (np.arange(size) % 2).astype(np.int32), ("even", "odd"))


def net(classes):
    return serial(ops.flatten, dense(classes))


def experiment(**changes):
    """Eight steps, logged after each, evaluated after every fourth, and saved after every third."""
    config = Experiment(
        name="told",
        epochs=1,
        batch_size=4,
        log_every_steps=1,
        eval_every_steps=4,
        model=Model("test_writers:net"),
        data=Data("test_writers:pictures"),
        checkpoint=Checkpoint(every_steps=3),
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The same program is run again and again here: JAX may keep it on disk."""
    chosen = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    for name, value in chosen.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class Died(Exception):
    """What ends a run in the middle."""


def dies_at(step):
    def report(number, results):
        if number == step:
            raise Died

    return report


def train(config, folder, report=None):
    run.train(config, folder, out=io.StringIO(), report=report)


def lines_of(log):
    """What the metrics hold: (step, name, number) of each that a writer is to be told."""
    return [
        (line["step"], f"{line['split']}/{name}", line[name])
        for line in log.metrics()
        for name in ("loss", "accuracy", "learning_rate", "gradient_norm", "images_per_second")
        if line.get(name) is not None
    ]


# TensorBoard, whose files are records of protocol buffers: read here by hand.


def varint(data, at):
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data):
    """(number, value) of each field of a message: whole numbers, or bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = {1: (8, at), 5: (4, at), 2: varint(data, at)}[key & 7]
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def masked(data):
    """The checksum of a record: CRC-32C, turned by 15 bits and moved."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """(step, name, number) of the scalars in the event files of a folder."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            [size] = struct.unpack("<Q", content[at : at + 8])
            assert struct.unpack("<I", content[at + 8 : at + 12])[0] == masked(content[at : at + 8])
            record = content[at + 12 : at + 12 + size]
            at += 16 + size
            assert struct.unpack("<I", content[at - 4 : at])[0] == masked(record)
            event = dict(fields(record))
            for _, value in fields(event.get(5, b"")):
                scalar = dict(fields(value))
                [number] = struct.unpack("<f", scalar[2])
                found.append((event.get(2, 0), scalar[1].decode(), number))
    return found


def same(found, expected):
    """Whether they are the same scalars, to the rounding of single precision."""
    named = [(step, name) for step, name, _ in expected]
    kept = [each for each in found if each[:2] in set(named)]
    assert [each[:2] for each in kept] == named
    numbers = [[each[2] for each in some] for some in (kept, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-6)


def test_tensorboard_holds_each_metric_of_each_step_once(tmp_path):
    train(experiment(tensorboard=True), tmp_path / "run")
    log = RunLog(tmp_path / "run")
    found = events(log.folder / "tensorboard")
    same(found, lines_of(log))
    assert len({each[:2] for each in found}) == len(found)
    assert {name for _, name, _ in found} >= {"train/loss", "test/accuracy", "train/gradient_norm"}


def test_what_died_and_goes_on_is_in_tensorboard_once(tmp_path):
    with pytest.raises(Died):
        train(experiment(tensorboard=True), tmp_path / "run", dies_at(4))
    log = RunLog(tmp_path / "run")
    [torn] = (log.folder / "tensorboard").iterdir()
    torn.write_bytes(torn.read_bytes()[:-7])  # as a process that is killed leaves it
    train(experiment(tensorboard=True), tmp_path / "run")
    same(events(log.folder / "tensorboard"), lines_of(log))


def test_tensorboard_may_be_asked_for_when_a_run_goes_on(tmp_path):
    with pytest.raises(Died):
        train(experiment(), tmp_path / "run", dies_at(4))
    assert not (tmp_path / "run" / "tensorboard").exists()
    train(experiment(tensorboard=True), tmp_path / "run")
    log = RunLog(tmp_path / "run")
    same(events(log.folder / "tensorboard"), lines_of(log))
    assert read_json(log.config_file).tensorboard


# Weights & Biases and MLflow are not installed: these record what they are told.


class Calls(list):
    """What a module that is not there was told, in order."""


@pytest.fixture
def wandb(monkeypatch):
    calls = Calls()

    class Run:
        def __init__(self, known):
            self.known = known

        def log(self, values, step):
            calls.extend((self.known, step, name, number) for name, number in values.items())

        def finish(self, exit_code):
            calls.append((self.known, "finished", exit_code))

    def init(**about):
        calls.append(about)
        return Run(about["id"])

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = Calls()

    class Client:
        experiments = {}

        def get_experiment_by_name(self, name):
            return self.experiments.get(name)

        def create_experiment(self, name):
            self.experiments[name] = types.SimpleNamespace(experiment_id=f"number of {name}")
            return self.experiments[name].experiment_id

        def create_run(self, experiment_id, run_name):
            calls.append((experiment_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run {len(calls)}"))

        def update_run(self, run_id, status):
            calls.append((run_id, status))

        def log_batch(self, run_id, metrics=(), params=()):
            assert len(params) <= 100
            calls.extend((run_id, each.step, each.key, each.value) for each in metrics)
            calls.extend((run_id, each.key, each.value) for each in params)

        def set_terminated(self, run_id, status):
            calls.append((run_id, status))

    def metric(key, value, timestamp, step):
        return types.SimpleNamespace(key=key, value=value, step=step)

    def param(key, value):
        return types.SimpleNamespace(key=key, value=value)

    entities = types.SimpleNamespace(Metric=metric, Param=param)
    module = types.SimpleNamespace(MlflowClient=Client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return calls


def test_wandb_is_told_each_step_once_in_one_run_though_it_died_twice(wandb, tmp_path):
    config = experiment(writers=("wandb",))
    for step in (4, 8):
        with pytest.raises(Died):
            train(config, tmp_path / "run", dies_at(step))
    train(config, tmp_path / "run")
    begun = [each for each in wandb if isinstance(each, dict)]
    assert len(begun) == 3
    assert len({each["id"] for each in begun}) == 1
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("told", "run", "allow")
    assert begun[0]["config"] == flatten(from_dict(to_dict(config)))
    told = [each[1:] for each in wandb if len(each) == 4 and isinstance(each, tuple)]
    assert len({each[:2] for each in told}) == len(told)
    kept = [each for each in told if each[1] == "train/loss"]
    expected = [each for each in lines_of(RunLog(tmp_path / "run")) if each[1] == "train/loss"]
    assert kept == expected
    assert [each[2] for each in wandb if "finished" in each] == [1, 1, 0]


def test_mlflow_is_told_the_config_once_and_each_step_once(mlflow, tmp_path):
    config = experiment(writers=("mlflow",))
    with pytest.raises(Died):
        train(config, tmp_path / "run", dies_at(4))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", lambda step, results: signal.raise_signal(signal.SIGTERM))
    train(config, tmp_path / "run")
    assert mlflow[0] == ("number of told", "run")
    params = {each[1]: each[2] for each in mlflow if len(each) == 3}
    assert params["model.name"] == "test_writers:net"
    assert len(params) == len([each for each in mlflow if len(each) == 3]) == len(flatten(config))
    told = [each for each in mlflow if len(each) == 4]
    assert {each[0] for each in told} == {"run 1"}
    assert len({each[:3] for each in told}) == len(told)
    log = RunLog(tmp_path / "run")
    steady = [each for each in lines_of(log) if "per_second" not in each[1]]
    assert {each[1:] for each in told} >= set(steady)
    assert [each[1] for each in mlflow if len(each) == 2 and each[0] == "run 1"] == [
        *("RUNNING", "FAILED", "RUNNING", "KILLED", "RUNNING", "FINISHED")
    ]


# One's own, and what goes wrong.

SEEN: list = []


class Own:
    """A writer in two lines."""

    def __init__(self, log, config):
        self.name = config.name

    def scalars(self, step, values):
        SEEN.append((step, dict(values)))

    def close(self, error):
        SEEN.append(("closed", error))


class Failing(Own):
    def scalars(self, step, values):
        raise OSError("no\nnetwork")


def test_a_writer_of_ones_own_is_told_beside_others(tmp_path):
    SEEN.clear()
    try:
        raise ValueError("of another run, which is given up")
    except ValueError:
        train(experiment(writers=("test_writers:Own",), tensorboard=True), tmp_path / "run")
    assert SEEN[-1] == ("closed", None)
    assert [step for step, _ in SEEN[:-1]] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert SEEN[4][1].keys() == {"test/loss", "test/accuracy", "test/images_per_second"}
    assert len(events(tmp_path / "run" / "tensorboard")) > 0


def test_a_writer_that_fails_is_told_of_once_and_fails_no_run(tmp_path, capsys):
    SEEN.clear()
    train(experiment(writers=("test_writers:Failing", "test_writers:Own")), tmp_path / "run")
    [line] = [each for each in capsys.readouterr().err.splitlines() if "warning" in each]
    assert "test_writers:Failing is told no more (OSError: no network)" in line
    assert "metrics.jsonl has all" in line
    assert len([step for step, _ in SEEN if step != "closed"]) == 10
    assert RunLog(tmp_path / "run").record()["status"] == "finished"


@pytest.mark.parametrize(
    ("config", "package", "told"),
    [
        (Experiment(tensorboard=True), "tensorboardX", r"pip install 'convjax\[tensorboard\]'"),
        (Experiment(writers=("wandb",)), "wandb", r"pip install 'wandb>=0\.19\.10'"),
        (Experiment(writers=("mlflow",)), "mlflow", "pip install mlflow"),
    ],
)
def test_a_missing_package_is_refused_before_anything(config, package, told, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(UserError, match=told):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("test_writers:Nobody", "no function 'Nobody'"),
        ("no_such_module:Writer", "no module 'no_such_module'"),
    ],
)
def test_a_writer_that_does_not_exist_is_refused(name, told):
    with pytest.raises(ConfigError, match=told):
        writers.check(Experiment(writers=(name,)))


def test_numbers_that_are_not_finite_and_what_is_no_number_are_not_told():
    line = {"step": 1, "split": "test", "loss": float("nan"), "accuracy": 0.5, "final": True}
    assert writers.scalars_of(line | {"note": "x", "skipped": 0}) == {
        "test/accuracy": 0.5,
        "test/skipped": 0.0,
    }


# The config.


def test_who_is_told_changes_no_digest_and_no_record_of_before():
    plain, telling = Experiment(), Experiment(tensorboard=True, writers=("wandb",))
    assert digest(plain) == digest(telling)
    assert "tensorboard" not in to_dict(plain)
    assert "writers" not in to_dict(plain)
    assert from_dict(to_dict(telling)) == telling
    assert set(differences(plain, telling)) == {"tensorboard", "writers"}
    # As a sweep of before these keys had it in its record.
    before = "de54cd66a3b9f59fc427ef45cb9550886911255802a53b981a84ae5f8b7066f1"
    assert digest(plain) == before


@pytest.mark.parametrize("words", [["--config.tensorboard"], ["--config.tensorboard=true"]])
def test_the_command_line_asks_for_tensorboard_and_others(words):
    words = ["train", *words, "--config.writers=wandb; mlflow"]
    config = parse_experiment(flags.FlagValues(), words, None)
    assert config.tensorboard
    assert config.writers == ("wandb", "mlflow")
