"""What a config means: its data, network and optimizer, made and checked to fit together.

    experiment = assemble(config)                       # or a UserError that says what is wrong
    print(describe(experiment))

Nothing is computed here but shapes.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp

from convjax import data, models
from convjax.config import ConfigError, Experiment, UserError, to_dict
from convjax.data import Dataset
from convjax.insight import summary
from convjax.layer import Context, Layer, show
from convjax.ops import choice
from convjax.training import optimizer as optimizers
from convjax.training import parallel, schedule
from convjax.training.evaluate import batch_size_for
from convjax.training.fit import Plan, make_plan
from convjax.training.optimizer import Hyper, Optimizer
from convjax.training.parallel import Mapper
from convjax.training.schedule import Schedule


class Assembled(NamedTuple):
    """What a config means, with its data loaded: all that training needs beside a folder."""

    config: Experiment
    train: Dataset
    test: Dataset
    net: Layer
    spec: jax.ShapeDtypeStruct
    mapper: Mapper
    plan: Plan
    schedule: Schedule
    optimizer: Optimizer
    hyper: Hyper


def assemble(config: Experiment) -> Assembled:
    """Loads the data, makes the network and the optimizer, and checks that they fit together.

    Raises:
        UserError: if they do not, before anything is computed.
    """
    train, test = load(config, "train"), load(config, "test")
    if (train.images.shape[1:], train.classes) != (test.images.shape[1:], test.classes):
        raise UserError(
            f"the splits of {config.data.name} do not fit: train has {show(train.images)} in "
            f"{len(train.classes)} classes, test {show(test.images)} in {len(test.classes)}"
        )
    plan = make_plan(
        len(train.images),
        batch_size=config.batch_size,
        epochs=config.epochs,
        eval_every_epochs=config.eval_every_epochs,
        save_every_steps=config.checkpoint.every_steps,
        log_every_steps=config.log_every_steps,
    )
    mapper = parallel.make(config.parallel)
    if config.batch_size % len(mapper.devices):
        raise ConfigError(
            f"config.batch_size is {config.batch_size}: give a multiple of the "
            f"{len(mapper.devices)} devices that config.parallel={config.parallel!r} runs on"
        )
    net = network(config, train)
    chosen = config.optimizer
    warmup = round(chosen.warmup_epochs * plan.epoch)
    factor = schedule.make(chosen.schedule, steps=plan.steps, warmup=warmup)
    optimizer = optimizers.make(
        chosen.name, factor, decay=chosen.decay, clip_norm=chosen.clip_norm, args=chosen.args
    )
    hyper = optimizers.hyper_of(
        chosen.learning_rate, chosen.weight_decay, config.loss.label_smoothing, chosen.args
    )
    spec = spec_of(train, config.batch_size)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), spec)
    optimizers.check_decay(params, chosen.decay)
    optimizers.check_step(optimizer, hyper, params, chosen.args)
    return Assembled(config, train, test, net, spec, mapper, plan, factor, optimizer, hyper)


def describe(experiment: Assembled) -> str:
    """Shapes and parameters of the network, the config and the plan, as text."""
    config, plan, mapper = experiment.config, experiment.plan, experiment.mapper
    size, test = len(experiment.train.images), len(experiment.test.images)
    eval_batch = batch_size_for(config.eval_batch_size, len(mapper.devices))
    devices = f"{len(mapper.devices)} {mapper.devices[0].platform}"
    return "\n".join(
        (
            summary.table(experiment.net, spec_of(experiment.train, 1)),
            "",
            f"config: {json.dumps(to_dict(config), indent=2)}",
            "",
            f"plan: {plan.steps} steps, {config.epochs:g} epochs of {plan.epoch} batches",
            f"train: {size} images, {plan.batch_size} a batch, {config.parallel} on {devices}",
            f"test: {test} images in {-(-test // eval_batch)} batches of {eval_batch}, "
            f"every {plan.eval_every} steps and at the end",
            f"checkpoints: every {plan.save_every} steps and at the end, "
            f"of which the newest {config.checkpoint.keep} stay",
        )
    )


def load(config: Experiment, split: str) -> Dataset:
    """A split of the config's data set; UserError if it cannot be had."""
    try:
        return data.load(config.data.name, split, config.data.dir)
    except (ValueError, OSError) as error:
        raise UserError(f"config.data: {error}") from error


def network(config: Experiment, images: Dataset) -> Layer:
    """The network of the config, once it is known to take these images and tell their classes."""
    name, classes = config.model.name, len(images.classes)
    _check_algorithms()
    try:
        net = models.create(name, classes=classes, **config.model.args)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    except TypeError as error:
        raise UserError(
            f"config.model: {name!r} cannot be made with {config.model.args}: {error}"
        ) from error
    spec = spec_of(images, 2)
    try:
        params, state = jax.eval_shape(net.init, jax.random.key(0), spec)
        logits = jax.eval_shape(lambda *of: net.apply(*of, Context())[0], params, state, spec)
    except (ValueError, TypeError) as error:
        # JAX has notes of its own, about tracebacks; the layer's place begins with "in".
        where = "; ".join(
            note for note in getattr(error, "__notes__", ()) if note.startswith("in ")
        )
        raise UserError(
            f"config.model: {name!r} cannot take {show(spec)}: {error}; {where}"
        ) from error
    if getattr(logits, "shape", None) != (2, classes):
        raise UserError(
            f"config.model: {name!r} gives {show(logits)} for images {show(spec)}: "
            f"{config.data.name} has {classes} classes, so [2,{classes}] is needed"
        )
    return net


def _check_algorithms() -> None:
    """Raises UserError for a table of algorithms that cannot be read."""
    try:
        choice.rows()
    except ValueError as error:
        raise UserError(f"{error}: mend the file, or unset CONVJAX_ALGORITHMS") from error


def spec_of(images: Dataset, batch: int) -> jax.ShapeDtypeStruct:
    """A batch of these images as the network sees it."""
    return jax.ShapeDtypeStruct((batch, *images.images.shape[1:]), jnp.float32)
