"""The dataclasses of an experiment: typed, mutable, with defaults, and the same as a page of JSON.

    config = Experiment(epochs=10, model=Model("resnet20", {"width": 32}))
    config.optimizer.learning_rate = 0.1
    validate(config)                            # lists all that is wrong at once
    assert from_dict(to_dict(config)) == config

Nothing here imports JAX: a launcher checks its flags before anything slow is loaded.
"""

# The annotations stay real types: ml_collections reads them to parse `--config.a.b=V`.
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convjax.ranges import idle_problems, range_problems
from convjax.typed import build, leaves, plain, problems


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
    train: str = "train"
    """The split that is trained on, or a part of it, such as 'train[:90%]'."""
    valid: str | None = None
    """What choices are made by (config.stop, config.checkpoint.best), such as 'train[90%:]'."""
    test: str = "test"
    """The split that the result is measured on."""
    view: str | None = None
    """How images that stay on disk are cropped and scaled for training, such as
    'random_resized_crop(224)'; None loads all into memory."""
    eval_view: str | None = None
    """The same for evaluation, such as 'centre_crop(224, resize=256)'."""
    processes: int = 0
    """Processes that decode images of the disk; 0 decodes in threads of this one."""
    unreadable: float = 0.0
    """The share of a split's image files that may be left out where they cannot be read."""


@dataclass
class Optimizer:
    """How parameters follow gradients."""

    name: str = "adamw"
    """One of `convjax.training.algorithms`, or any of optax by the name of its function."""
    learning_rate: float = 1e-3
    """The peak of the schedule."""
    weight_decay: float = 0.0
    """Decoupled for adamw and its like; the L2 penalty of sgd and the others."""
    decay: tuple[str, ...] = ("*/kernel",)
    """Patterns of the parameter paths that decay: kernels only, norms and biases do not."""
    schedule: str = "cosine"
    """After the warm-up: constant, or falling as any other of `convjax.training.schedule`."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises to its peak; of one_cycle, 30 % if 0."""
    clip_norm: float | None = None
    """The largest global norm of a gradient; None clips nothing."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the function, such as `{"momentum": 0.9, "nesterov": True}`."""
    warmup_steps: int = 0
    """The same as warmup_epochs, in steps; one of the two."""
    warmup_start: float | None = None
    """The share of the peak at the first step; None begins on a line from 0, one_cycle at 1/25."""
    final_factor: float = 0.0
    """The share of the peak at the end; at 0, one_cycle and exponential end a little above it."""
    schedule_args: dict[str, Any] = field(default_factory=dict)
    """Keywords of the schedule, such as `{"milestone_epochs": (30, 60, 80)}` of step."""
    adaptive_clip: float | None = None
    """The largest norm of a unit's gradient, as a share of that of its weights; None is any."""
    adaptive_clip_skips: tuple[str, ...] = ()
    """Patterns of the parameter paths that adaptive_clip leaves alone."""
    rules: tuple[str, ...] = ()
    """What differs by path, such as 'stem/*: freeze' or 'head/*: learning_rate=10'."""
    layer_decay: float = 1.0
    """The learning rate of each layer or block, as a share of that of the next one."""
    lookahead_steps: int = 0
    """Steps after which the weights go back a part of their way; 0 looks not ahead."""
    lookahead_share: float = 0.5
    """The part of their way that they keep."""
    sam_rho: float | None = None
    """The radius of sharpness-aware minimisation, of two gradients a step; None goes without."""


@dataclass
class Loss:
    """What is minimised."""

    name: str = "cross_entropy"
    """cross_entropy, binary_cross_entropy, focal or sigmoid_focal: the mean over images."""
    label_smoothing: float = 0.0
    """The share of a label's weight that is spread over all classes, in [0, 1)."""
    class_weights: tuple[float, ...] = ()
    """A weight for each class, in the order of the data's classes; without any, all are alike."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the loss, such as `{"gamma": 2.0}` of focal."""


@dataclass
class Augment:
    """How training images are changed at random: on the device, inside the compiled step."""

    parts: tuple[str, ...] = ()
    """Functions of `convjax.augment`, in order, such as 'crop(4)' and 'flip'."""
    mix: str | None = None
    """mixup, cutmix or mixup_or_cutmix, such as 'mixup(0.2)': of two images and their labels."""


@dataclass
class Average:
    """A second network that follows the trained one, and is evaluated beside it."""

    decay: float | None = None
    """The share that it keeps each time, such as 0.999; None goes without."""
    every: int = 1
    """Steps between two times."""
    power: float = 0.0
    """The share rises to its last value as this power of how far training is; 0 keeps it."""
    from_epoch: float = 0.0
    """Until then the average is the trained network itself."""
    write_back: bool = False
    """Whether the trained network goes on from the average each time, as a look-ahead."""
    reestimate: bool = False
    """Whether its batch statistics are estimated anew, from the train split, at the end."""


@dataclass
class Norm:
    """How the batch norms of the model take their statistics: by default, over the whole batch."""

    frozen: tuple[str, ...] = ()
    """Patterns of the paths of those that keep the statistics that they have."""
    ghost: int = 0
    """Images whose statistics are taken together; 0 takes those of the whole batch."""


@dataclass
class Start:
    """What training starts from."""

    run: str | None = None
    """The folder of a run, whose newest checkpoint gives the parameters; None draws them."""
    fresh: tuple[str, ...] = ()
    """Patterns of the parameter paths that are drawn all the same, such as 'head/*'."""
    average: bool = False
    """Whether that run's averaged parameters are taken."""
    images: str | None = None
    """A function of parameters and training images that makes the parameters to start from, as
    'package.module:function', such as 'convjax.models.airbench:whitened'."""
    weights: str | None = None
    """A .safetensors file that gives the parameters, in place of a run, as docs/weights.md says."""


@dataclass
class Stop:
    """When training ends early: by the metric on config.data.valid, or because it diverged."""

    patience: int = 0
    """Evaluations in a row without a better one after which it ends; 0 trains to the end."""
    metric: str = "accuracy"
    """accuracy, more of which is better, or loss, less of which is."""
    min_delta: float = 0.0
    """By how much a better one has to be better."""
    bad_steps: int = 10
    """Steps in a row with a number that is not finite after which the run has diverged."""


@dataclass
class Checkpoint:
    """What a run keeps on disk."""

    every_steps: int = 0
    """Steps between saves; 0 saves once an epoch."""
    keep: int = 3
    """The number of newest checkpoints that stay."""
    best: str | None = None
    """accuracy or loss on config.data.valid, whose best model is kept and tested; or None."""


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
    """How the step is spread over devices: jit (one), sharded, pmap, shard_map or fsdp."""
    steps_per_call: int = 1
    """Steps that the compiled program takes at once, of images that live on the devices."""
    accumulate: int = 1
    """Parts that a batch is taken in, one after the other, for a fraction of the memory."""
    precision: str = "float32"
    """What images are computed in, float32, bfloat16 or float16; parameters are float32 always."""
    eval_every_epochs: int = 1
    """Epochs between evaluations."""
    eval_every_steps: int = 0
    """The same in steps; 0 goes by eval_every_epochs."""
    test_time: str | None = None
    """Views whose mean is evaluated at the end, apart, such as 'flip' or 'flip_and_shift'."""
    log_every_steps: int = 50
    """Steps between lines of the metric log."""
    tensorboard: bool = False
    """Whether metrics are written for TensorBoard, too, into the run's folder."""
    writers: tuple[str, ...] = ()
    """Who else is told of metrics: wandb, mlflow, or a function as 'package.module:function'."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    augment: Augment = field(default_factory=Augment)
    average: Average = field(default_factory=Average)
    norm: Norm = field(default_factory=Norm)
    start: Start = field(default_factory=Start)
    stop: Stop = field(default_factory=Stop)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


# Who is told of a run changes nothing of it: these may differ when it is taken up again.
TOLD = ("tensorboard", "writers")


def validate(config: Experiment) -> None:
    """Raises ConfigError with every problem of `config`: its types, ranges and contradictions.

    >>> validate(Experiment(epochs=0, parallel="pmapp"))
    Traceback (most recent call last):
    convjax.config.ConfigError: config.epochs is 0: give more than 0; config.parallel is 'pmapp': \
did you mean 'pmap'?
    """
    # Ranges are asked only of values of the right type.
    _raise(list(problems(config, Experiment, "config")))
    _raise(list(range_problems(config)) or list(idle_problems(config)))


def to_dict(config: Experiment) -> dict[str, Any]:
    """Every value of `config`, defaults too, as nested dicts that JSON can hold.

    Whole numbers become floats where a float is meant, and tuples become lists, so that equal
    experiments give equal JSON. What is in `TOLD` is left out where it is the default, so that
    records of before there was any are the same.

    Raises: ConfigError for a value of the wrong type.
    """
    _raise(list(problems(config, Experiment, "config")))
    default = Experiment()
    silent = [name for name in TOLD if getattr(config, name) == getattr(default, name)]
    values = plain(config, Experiment)
    return {name: value for name, value in values.items() if name not in silent}


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


def digest(config: Experiment) -> str:
    """One SHA-256 over all values that decide what is computed, which equal experiments share.

    >>> digest(Experiment(epochs=2)) == digest(Experiment(epochs=2.0)) != digest(Experiment())
    True
    >>> digest(Experiment(tensorboard=True)) == digest(Experiment())
    True
    """
    values = {name: value for name, value in to_dict(config).items() if name not in TOLD}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems))
