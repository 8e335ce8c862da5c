"""The dataclasses of an experiment: typed, mutable, with defaults, and the same as a page of JSON.

    config = Experiment(epochs=10, model=Model("resnet20", {"width": 32}))
    config.optimizer.learning_rate = 0.1
    validate(config)                            # lists all that is wrong at once
    assert from_dict(to_dict(config)) == config

Nothing here imports JAX: a launcher checks its flags before anything slow is loaded.
"""

# The annotations stay real types: ml_collections reads them to parse `--config.a.b=V`.
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from convjax.names import nearest
from convjax.typed import build, leaves, plain, problems

PARALLEL = ("jit", "sharded", "pmap", "shard_map")
SCHEDULES = ("constant", "cosine", "linear", "one_cycle", "step")
LOSSES = ("cross_entropy",)


class UserError(Exception):
    """What a person can put right: a launcher shows its one line and exits with status 2."""


class ConfigError(UserError, ValueError):
    """A config that cannot be run: the message names the path, the value and the next step."""


@dataclass
class Model:
    """Which network is trained."""

    name: str = "small"
    """A name of `convjax.models.names()`, or any function as `package.module:function`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keywords of the model's function, such as `{"width": 32}`."""


@dataclass
class Data:
    """Which images: normalised by the mean and standard deviation of the train split's channels."""

    name: str = "fashion_mini"
    """A bundled or prepared data set."""
    dir: str | None = None
    """The folder that holds the data; None looks in the usual places."""


@dataclass
class Optimizer:
    """How parameters follow gradients."""

    name: str = "adamw"
    """Any optimizer of optax, by the name of its function."""
    learning_rate: float = 1e-3
    """The peak of the schedule."""
    weight_decay: float = 0.0
    """Decoupled for adamw and its like; the L2 penalty of sgd and the others."""
    decay: tuple[str, ...] = ("*/kernel",)
    """Patterns of the parameter paths that decay: kernels only, norms and biases do not."""
    schedule: str = "cosine"
    """After the warm-up: constant, or falling as cosine, linear, one_cycle or step."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises to its peak; of one_cycle, 30 % if 0."""
    clip_norm: float | None = None
    """The largest global norm of a gradient; None clips nothing."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the optax function, such as `{"momentum": 0.9, "nesterov": True}`."""


@dataclass
class Loss:
    """What is minimised."""

    name: str = "cross_entropy"
    """cross_entropy, the mean over images."""
    label_smoothing: float = 0.0
    """The share of a label's weight that is spread over all classes, in [0, 1)."""


@dataclass
class Checkpoint:
    """What a run keeps on disk."""

    every_steps: int = 0
    """Steps between saves; 0 saves once an epoch."""
    keep: int = 3
    """The number of newest checkpoints that stay."""


@dataclass
class Experiment:
    """Everything that decides what a run computes."""

    name: str = "experiment"
    """The run folder's name begins with it."""
    seed: int = 0
    """Decides first parameters, order of images and noise; from 0 to 2**32 - 1."""
    epochs: float = 5.0
    """Passes over the train split; a fraction is allowed."""
    batch_size: int = 128
    """Images a step, over all devices."""
    eval_batch_size: int = 500
    """Images an evaluation step, over all devices; it changes no result."""
    parallel: str = "jit"
    """How the step is spread over devices: jit (one), sharded, pmap or shard_map."""
    eval_every_epochs: int = 1
    """Epochs between evaluations on the test split."""
    log_every_steps: int = 50
    """Steps between lines of the metric log."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


def validate(config: Experiment) -> None:
    """Raises ConfigError with every problem of `config`: its types, ranges and contradictions.

    >>> validate(Experiment(epochs=0, parallel="pmapp"))
    Traceback (most recent call last):
    convjax.config.ConfigError: config.epochs is 0: give more than 0; config.parallel is 'pmapp': \
did you mean 'pmap'?
    """
    # Ranges are asked only of values of the right type.
    _raise(list(problems(config, Experiment, "config")))
    _raise(list(_range_problems(config)))


def to_dict(config: Experiment) -> dict[str, Any]:
    """Every value of `config`, defaults too, as nested dicts that JSON can hold.

    Whole numbers become floats where a float is meant, and tuples become lists, so that equal
    experiments give equal JSON.

    Raises: ConfigError for a value of the wrong type.
    """
    _raise(list(problems(config, Experiment, "config")))
    return plain(config, Experiment)


def from_dict(values: Mapping[str, Any]) -> Experiment:
    """The experiment of nested dicts; a key that is left out takes its default.

    Raises: ConfigError that lists every wrong type and unknown key, with the nearest right key.

    >>> from_dict({"optimizer": {"shedule": "cosine"}})
    Traceback (most recent call last):
    convjax.config.ConfigError: config.optimizer has no 'shedule'; did you mean 'schedule'?
    """
    _raise(list(problems(values, Experiment, "config")))
    return build(values, Experiment)


def read_json(path: str | os.PathLike[str]) -> Experiment:
    """The experiment of a saved `config.json`: no Python runs, so a stranger's file is safe.

    Raises: ConfigError if the file is no JSON or no config; OSError if it cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{os.fspath(path)} is not JSON: {error}") from error
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from None


def flatten(config: Experiment) -> dict[str, Any]:
    """Dotted path to value: `{"seed": 0, ..., "model.args.width": 32, ...}`."""
    return dict(leaves(config))


def differences(config: Experiment, other: Experiment) -> dict[str, tuple[Any, Any]]:
    """Dotted path to (value, other value) where two experiments differ; None for a missing key.

    >>> differences(Experiment(epochs=2), Experiment())
    {'epochs': (2.0, 5.0)}
    """
    mine, theirs = flatten(from_dict(to_dict(config))), flatten(from_dict(to_dict(other)))
    unequal = {
        path: (mine.get(path), theirs.get(path))
        for path in mine | theirs
        if path not in mine or path not in theirs or mine[path] != theirs[path]
    }
    # An empty open dict holds no key that could differ.
    return {path: pair for path, pair in unequal.items() if {} not in pair}


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems))


def _range_problems(config: Experiment) -> Iterator[str]:
    optimizer, loss = config.optimizer, config.loss

    def problem(path: str, value: Any, next_step: str) -> str:
        return f"config.{path} is {value!r}: {next_step}"

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", config.name):
        advice = "it names a folder, so use up to 100 letters, digits, '.', '_' and '-'"
        yield problem("name", config.name, advice)
    if not 0 <= config.seed < 2**32:
        yield problem("seed", config.seed, "give a whole number from 0 to 4294967295")
    if not (config.epochs > 0 and math.isfinite(config.epochs)):
        yield problem("epochs", config.epochs, "give more than 0")
    for name in ("batch_size", "eval_batch_size", "eval_every_epochs", "log_every_steps"):
        if getattr(config, name) < 1:
            yield problem(name, getattr(config, name), "give 1 or more")
    if not re.fullmatch(r"[^:\s]+|\w+(\.\w+)*:\w+", config.model.name):
        advice = "give a registered name or 'package.module:function'"
        yield problem("model.name", config.model.name, advice)
    if "classes" in config.model.args:
        advice = "leave it out, the data say how many classes there are"
        yield problem("model.args.classes", config.model.args["classes"], advice)
    if not config.data.name.strip():
        yield problem("data.name", config.data.name, "give the name of a data set")
    if not optimizer.name.isidentifier():
        yield problem("optimizer.name", optimizer.name, "give the name of an optax optimizer")
    for name in ("learning_rate", "weight_decay", "warmup_epochs"):
        value = getattr(optimizer, name)
        if not (value >= 0 and math.isfinite(value)):
            yield problem(f"optimizer.{name}", value, "give 0 or more")
    if 0 < config.epochs < optimizer.warmup_epochs < math.inf:
        advice = f"warm up for at most the {config.epochs:g} of config.epochs"
        yield problem("optimizer.warmup_epochs", optimizer.warmup_epochs, advice)
    if optimizer.clip_norm is not None and not 0 < optimizer.clip_norm < math.inf:
        yield problem("optimizer.clip_norm", optimizer.clip_norm, "give more than 0, or None")
    for key in ("learning_rate", "weight_decay"):
        if key in optimizer.args:
            advice = f"set config.optimizer.{key} instead"
            yield problem(f"optimizer.args.{key}", optimizer.args[key], advice)
    if not 0 <= loss.label_smoothing < 1:
        advice = "give 0 or more and less than 1"
        yield problem("loss.label_smoothing", loss.label_smoothing, advice)
    if config.checkpoint.every_steps < 0:
        advice = "give 0 (once an epoch) or a number of steps"
        yield problem("checkpoint.every_steps", config.checkpoint.every_steps, advice)
    if config.checkpoint.keep < 1:
        yield problem("checkpoint.keep", config.checkpoint.keep, "give 1 or more")
    for path, value, choices in (
        ("parallel", config.parallel, PARALLEL),
        ("loss.name", loss.name, LOSSES),
        ("optimizer.schedule", optimizer.schedule, SCHEDULES),
    ):
        if value not in choices:
            yield problem(path, value, nearest(value, choices))
