"""Which values of a config make sense: every one that does not, with what to write instead."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from convjax.names import nearest
from convjax.training.rules import parse
from convjax.typed import leaves

if TYPE_CHECKING:
    from convjax.config import Experiment
    from convjax.training.fit import Plan

PARALLEL = ("jit", "sharded", "pmap", "shard_map", "fsdp")
PRECISIONS = ("bfloat16", "float16", "float32")
SCHEDULES = (
    *("constant", "cosine", "exponential", "linear"),
    *("one_cycle", "polynomial", "step", "trapezoid"),
)
METRICS = ("accuracy", "loss")
LOSSES = ("binary_cross_entropy", "cross_entropy", "focal", "sigmoid_focal")


def range_problems(config: Experiment) -> Iterator[str]:
    """What is out of range or contradicts itself in a config whose types are right, one by one."""
    loss = config.loss

    def problem(path: str, value: Any, next_step: str) -> str:
        return f"config.{path} is {value!r}: {next_step}"

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", config.name):
        advice = "it names a folder, so use up to 100 letters, digits, '.', '_' and '-'"
        yield problem("name", config.name, advice)
    if not 0 <= config.seed < 2**32:
        yield problem("seed", config.seed, "give a whole number from 0 to 4294967295")
    if not (config.epochs > 0 and math.isfinite(config.epochs)):
        yield problem("epochs", config.epochs, "give more than 0")
    for name in (
        *("batch_size", "eval_batch_size", "accumulate", "steps_per_call"),
        *("eval_every_epochs", "log_every_steps"),
    ):
        if getattr(config, name) < 1:
            yield problem(name, getattr(config, name), "give 1 or more")
    if not re.fullmatch(r"[^:\s]+|\w+(\.\w+)*:\w+", config.model.name):
        advice = "give a registered name or 'package.module:function'"
        yield problem("model.name", config.model.name, advice)
    if "classes" in config.model.args:
        advice = "leave it out, the data say how many classes there are"
        yield problem("model.args.classes", config.model.args["classes"], advice)
    yield from _device_problems(config, problem)
    yield from _blank_problems(config, problem)
    yield from _data_problems(config, problem)
    yield from _optimizer_problems(config, problem)
    average = config.average
    if average.decay is not None and not 0 <= average.decay < 1:
        advice = "give 0 or more and less than 1, such as 0.999, or None"
        yield problem("average.decay", average.decay, advice)
    if average.every < 1:
        yield problem("average.every", average.every, "give 1 or more")
    if not average.from_epoch >= 0 or 0 < config.epochs <= average.from_epoch:
        advice = f"give 0 or more, and less than the {config.epochs:g} of config.epochs"
        yield problem("average.from_epoch", average.from_epoch, advice)
    if not 0 <= average.power < math.inf:
        yield problem("average.power", average.power, "give 0 or more")
    for name in ("reestimate", "write_back"):
        if getattr(average, name) and average.decay is None:
            advice = "there is no average: give config.average.decay, such as 0.999"
            yield problem(f"average.{name}", True, advice)
    if not 0 <= loss.label_smoothing < 1:
        advice = "give 0 or more and less than 1"
        yield problem("loss.label_smoothing", loss.label_smoothing, advice)
    weights = loss.class_weights
    good = all(0 <= weight <= _LARGEST for weight in weights)
    if weights and not (good and any(weights)):
        advice = "give a number of 0 or more for each class, not all of them 0, that float32 holds"
        yield problem("loss.class_weights", loss.class_weights, advice)
    if config.stop.metric == "accuracy" and 1 <= config.stop.min_delta < math.inf:
        advice = "accuracy is a share from 0 to 1: give less than 1, such as 0.001"
        yield problem("stop.min_delta", config.stop.min_delta, advice)
    for path, value, instead in (
        ("checkpoint.every_steps", config.checkpoint.every_steps, "once an epoch"),
        ("eval_every_steps", config.eval_every_steps, "as config.eval_every_epochs says"),
        ("norm.ghost", config.norm.ghost, "the whole batch"),
        ("stop.patience", config.stop.patience, "train to the end"),
        ("stop.min_delta", config.stop.min_delta, "any better one"),
    ):
        if not 0 <= value < math.inf:
            yield problem(path, value, f"give 0 ({instead}) or more")
    yield from _start_problems(config, problem)
    if config.stop.bad_steps < 1:
        yield problem("stop.bad_steps", config.stop.bad_steps, "give 1 or more")
    if config.checkpoint.keep < 1:
        yield problem("checkpoint.keep", config.checkpoint.keep, "give 1 or more")
    best = config.checkpoint.best
    for path, value, choices in (
        ("parallel", config.parallel, PARALLEL),
        ("precision", config.precision, PRECISIONS),
        ("stop.metric", config.stop.metric, METRICS),
        ("checkpoint.best", METRICS[0] if best is None else best, METRICS),
        ("loss.name", loss.name, LOSSES),
        ("optimizer.schedule", config.optimizer.schedule, SCHEDULES),
    ):
        if value not in choices:
            yield problem(path, value, nearest(value, choices))


def _device_problems(config: Experiment, problem: Callable[[str, Any, str], str]) -> Iterator[str]:
    """Numbers that the int32 and float32 of a device cannot hold."""
    for path, value in leaves(config):
        if type(value) is int and value >= 2**31 and path != "seed":
            yield problem(path, value, "give less than 2147483648, which a device can count to")
        elif type(value) is float and _LARGEST < abs(value) < math.inf:
            yield problem(path, value, f"give what float32 holds, at most {_LARGEST:.1e}")


def _blank_problems(config: Experiment, problem: Callable[[str, Any, str], str]) -> Iterator[str]:
    """Names that are empty, such as those of a shell's variable that was never set."""
    values = dict(leaves(config))
    for path in (
        *("test_time", "data.dir", "data.train", "data.valid", "data.test", "augment.mix"),
        *("start.run", "start.weights", "start.images"),
    ):
        if values[path] is not None and not values[path].strip():
            yield problem(path, values[path], "write what it is to be, or leave it out")


def _start_problems(config: Experiment, problem: Callable[[str, Any, str], str]) -> Iterator[str]:
    chosen = config.start
    given = [name for name in ("run", "weights", "images") if getattr(chosen, name) is not None]
    for name in given[1:]:
        first = f"config.start.{given[0]} is {getattr(chosen, given[0])!r}"
        yield problem(f"start.{name}", getattr(chosen, name), f"{first}, too: give one of them")
    if chosen.average and chosen.run is None:
        yield problem("start.average", True, "give config.start.run, whose average is meant")
    if chosen.fresh and chosen.run is None and chosen.weights is None:
        advice = "give config.start.run or .weights, of which that is not to be taken"
        yield problem("start.fresh", chosen.fresh, advice)


def _data_problems(config: Experiment, problem: Callable[[str, Any, str], str]) -> Iterator[str]:
    chosen = config.data
    kind = chosen.name.partition(":")[0]
    if not chosen.name.strip():
        yield problem("data.name", chosen.name, "give the name of a data set")
    if (chosen.view is None) != (chosen.eval_view is None):
        advice = "config.data.view is for training, eval_view for evaluation: give both or neither"
        yield problem("data.eval_view", chosen.eval_view, advice)
    if chosen.processes < 0 or (chosen.processes and chosen.view is None):
        advice = "give 0, or with config.data.view a number of processes that decode"
        yield problem("data.processes", chosen.processes, advice)
    if not 0 <= chosen.unreadable < 1:
        advice = "give a share of the images, 0 or more and less than 1"
        yield problem("data.unreadable", chosen.unreadable, advice)
    elif chosen.unreadable and chosen.view is None and kind != "image_folder":
        advice = "it is about files of images, an image_folder or a stream: give 0"
        yield problem("data.unreadable", chosen.unreadable, advice)
    if chosen.view is not None and config.steps_per_call > 1:
        advice = "images that are streamed from disk are taken one step a call: give 1"
        yield problem("steps_per_call", config.steps_per_call, advice)
    if chosen.valid is None:
        advice = (
            "to choose by the test split would measure on what was chosen by: give a part of "
            "the train split, such as config.data.train='train[:90%]' and .valid='train[90%:]'"
        )
        if config.stop.patience > 0:
            yield problem("data.valid", None, f"config.stop needs it; {advice}")
        elif config.checkpoint.best in METRICS:
            yield problem("data.valid", None, f"config.checkpoint.best needs it; {advice}")


def idle_problems(config: Experiment) -> Iterator[str]:
    """What is set and does nothing, because what it is about is not."""
    average, optimizer, stop = config.average, config.optimizer, config.stop
    averages = average.decay is not None
    one_cycle = optimizer.schedule == "one_cycle"  # It always warms up.
    warms_up = one_cycle or optimizer.warmup_epochs or optimizer.warmup_steps
    looks_ahead = optimizer.lookahead_steps
    for path, usual, needed, there in (
        ("average.every", 1, "average.decay", averages),
        ("average.power", 0, "average.decay", averages),
        ("average.from_epoch", 0, "average.decay", averages),
        ("stop.min_delta", 0, "stop.patience", stop.patience),
        ("stop.metric", METRICS[0], "stop.patience", stop.patience),
        ("optimizer.warmup_start", None, "optimizer.warmup_epochs", warms_up),
        ("optimizer.lookahead_share", 0.5, "optimizer.lookahead_steps", looks_ahead),
    ):
        section, name = path.split(".")
        value = getattr(getattr(config, section), name)
        if value != usual and not there:
            yield (
                f"config.{path} is {value!r}: it does nothing without config.{needed}; give both"
            )


def length_problems(config: Experiment, plan: Plan) -> Iterator[str]:
    """What a run of so many steps is over before it comes to, so that its figures would mislead."""
    average, optimizer, steps = config.average, config.optimizer, plan.steps
    if optimizer.lookahead_steps > steps:
        yield (
            f"config.optimizer.lookahead_steps is {optimizer.lookahead_steps}: the run has {steps} "
            "steps, so the weights that are evaluated would never move; give fewer"
        )
    first = round(average.from_epoch * plan.epoch)
    if average.decay is not None and steps // average.every * average.every <= first:
        yield (
            f"config.average.every is {average.every} and .from_epoch {average.from_epoch:g}: of "
            f"the {steps} steps of the run the average would follow none; give less"
        )


def _optimizer_problems(
    config: Experiment, problem: Callable[[str, Any, str], str]
) -> Iterator[str]:
    chosen = config.optimizer
    if not re.fullmatch(r"\w+(\.\w+)*:\w+|\w+", chosen.name):
        advice = "give the name of an optimizer, as optax has it, or 'package.module:function'"
        yield problem("optimizer.name", chosen.name, advice)
    for name in ("learning_rate", "weight_decay", "warmup_epochs", "warmup_steps"):
        value = getattr(chosen, name)
        if not (value >= 0 and math.isfinite(value)):
            yield problem(f"optimizer.{name}", value, "give 0 or more")
    if chosen.warmup_epochs and chosen.warmup_steps > 0:
        advice = f"config.optimizer.warmup_epochs is {chosen.warmup_epochs}, too: give one of them"
        yield problem("optimizer.warmup_steps", chosen.warmup_steps, advice)
    if 0 < config.epochs <= chosen.warmup_epochs < math.inf:
        advice = (
            f"give less than the {config.epochs:g} of config.epochs, such as "
            f"{config.epochs / 10:g}, so that something is left for the schedule"
        )
        yield problem("optimizer.warmup_epochs", chosen.warmup_epochs, advice)
    for name in ("warmup_start", "final_factor"):
        value = getattr(chosen, name)
        if value is not None and not 0 <= value <= 1:
            yield problem(f"optimizer.{name}", value, "give a share of the peak, from 0 to 1")
    for name in ("layer_decay", "lookahead_share"):
        value = getattr(chosen, name)
        if not 0 < value <= 1:
            yield problem(f"optimizer.{name}", value, "give more than 0 and at most 1")
    for name in ("clip_norm", "adaptive_clip", "sam_rho"):
        value = getattr(chosen, name)
        if value is not None and not 0 < value < math.inf:
            yield problem(f"optimizer.{name}", value, "give more than 0, or None")
    if chosen.lookahead_steps < 0:
        advice = "give 0 (none) or a number of steps"
        yield problem("optimizer.lookahead_steps", chosen.lookahead_steps, advice)
    for key in ("learning_rate", "weight_decay"):
        if key in chosen.args:
            advice = f"set config.optimizer.{key} instead"
            yield problem(f"optimizer.args.{key}", chosen.args[key], advice)
    ends = chosen.args.get("adam_paths", ())
    if not (isinstance(ends, list | tuple) and all(isinstance(each, str) for each in ends)):
        advice = "give patterns of parameter paths, such as ('head/*',)"
        yield problem("optimizer.args.adam_paths", ends, advice)
    for text in chosen.rules:
        try:
            rule = parse(text)
        except ValueError as error:
            yield f"config.optimizer.rules: {error}"
            continue
        if 0 < config.epochs <= rule.until_epoch:
            yield (
                f"config.optimizer.rules: {text!r} never ends: give until_epoch less than the "
                f"{config.epochs:g} of config.epochs"
            )


# Of float32; what is larger becomes infinite in silence.
_LARGEST = (2 - 2**-23) * 2.0**127
