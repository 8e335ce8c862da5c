"""What a config means: its data, network and optimizer, made and checked to fit together.

    experiment = assemble(config)                       # or a UserError that says what is wrong
    print(describe(experiment))

Nothing is computed here but shapes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convjax import data, doubts, models, surgery, writers
from convjax.augment import named
from convjax.calls import made
from convjax.config import ConfigError, Experiment, Norm, UserError, to_dict
from convjax.data import views
from convjax.data.splits import overlap
from convjax.insight.inspection import tables
from convjax.insight.inspection.summary import summarize
from convjax.layer import Context, Layer, Params, show
from convjax.layers import frozen_norm, ghost_norm
from convjax.names import imported
from convjax.ops import choice
from convjax.ranges import length_problems
from convjax.saved import begin_from
from convjax.training import parallel, recipe, schedule
from convjax.training.evaluate import batch_size_for
from convjax.training.feed import OnDisk, Split, in_memory
from convjax.training.fit import Plan, make_plan
from convjax.training.loss import targets
from convjax.training.optimizer import Hyper, Optimizer
from convjax.training.parallel import Mapper
from convjax.training.schedule import Schedule
from convjax.training.step import Change, Mix
from convjax.training.views import View, averaged, views_of

START_IMAGES = 5000  # that `config.start.images` is given
Begin = Callable[[Params, Array], Params]


class Assembled(NamedTuple):
    """What a config means, with its data opened: all that training needs beside a folder."""

    config: Experiment
    train: Split
    judged: dict[str, Split]
    net: Layer
    spec: jax.ShapeDtypeStruct
    mapper: Mapper
    plan: Plan
    schedule: Schedule
    optimizer: Optimizer
    hyper: Hyper
    change: Change | None
    mix: Mix | None
    views: Sequence[View]
    begin: Begin | None


def assemble(config: Experiment) -> Assembled:
    """Opens the data, makes the network and the optimizer, and checks that they fit together.

    Raises:
        UserError: if they do not, before anything is computed.
    """
    writers.check(config)
    train = load(config, config.data.train, training=True)
    named_splits = {"valid": config.data.valid, "test": config.data.test}
    judged = {name: load(config, split) for name, split in named_splits.items() if split}
    for name, split in judged.items():
        if (split.shape, split.classes) != (train.shape, train.classes):
            raise UserError(
                f"the splits of {config.data.name} do not fit: train has {_shown(train)} in "
                f"{len(train.classes)} classes, {name} {_shown(split)} in {len(split.classes)}"
            )
    _check_splits(config)
    doubts.check_classes(config, train)
    doubts.tell_shared(config, {"train": train, **judged})
    plan = make_plan(
        train.size,
        batch_size=config.batch_size,
        epochs=config.epochs,
        eval_every_epochs=config.eval_every_epochs,
        eval_every_steps=config.eval_every_steps,
        save_every_steps=config.checkpoint.every_steps,
        log_every_steps=config.log_every_steps,
    )
    if problems := list(length_problems(config, plan)):
        raise ConfigError("; ".join(problems))
    mapper = parallel.make(config.parallel)
    _check_batch(config, mapper)
    change, mix = augmentation(config, train)
    test_time = _of(views_of, config.test_time, "config.test_time") if config.test_time else ()
    net = network(config, train)
    _check_views(config, test_time, train)
    spec = spec_of(train, config.batch_size)
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec)
    if config.start.run is not None or config.start.weights is not None:
        begin_from(config.start, (params, state))  # or an error
    factor = schedule.from_config(config.optimizer, plan.steps, plan.epoch)
    optimizer, hyper = recipe.make(config, factor, net, params, len(train.classes), plan.epoch)
    return Assembled(
        *(config, train, judged, net, spec, mapper, plan, factor, optimizer, hyper),
        *(change, mix, test_time, _begin(config, net, spec, params)),
    )


def describe(experiment: Assembled) -> str:
    """Shapes and parameters of the network, the config and the plan, as text."""
    config, plan, mapper = experiment.config, experiment.plan, experiment.mapper
    largest = max(split.size for split in experiment.judged.values())
    eval_batch = batch_size_for(config.eval_batch_size, len(mapper.devices), largest)
    devices = f"{len(mapper.devices)} {mapper.devices[0].platform}"
    params, _ = jax.eval_shape(experiment.net.init, jax.random.key(0), experiment.spec)
    return "\n".join(
        (
            tables.text(summarize(experiment.net, spec_of(experiment.train, 1))),
            "",
            recipe.table(config.optimizer, experiment.net, params),
            "",
            f"config: {json.dumps(to_dict(config), indent=2)}",
            "",
            f"plan: {plan.steps} steps, {config.epochs:g} epochs of {plan.epoch} batches",
            f"train: {experiment.train.size} images, {plan.batch_size} a batch, "
            f"{config.parallel} on {devices}",
            *(
                f"{name}: {split.size} images in {-(-split.size // eval_batch)} batches of "
                f"{eval_batch}, every {plan.eval_every} steps and at the end"
                for name, split in experiment.judged.items()
            ),
            f"checkpoints: every {plan.save_every} steps and at the end, "
            f"of which the newest {config.checkpoint.keep} stay",
        )
    )


def augmentation(config: Experiment, images: Split) -> tuple[Change | None, Mix | None]:
    """How images, and images with their labels, are changed at random; None for not at all.

    Raises:
        ConfigError: if it is written wrong, or does not take these images. Nothing is computed.
    """
    classes = len(images.classes)
    few = jax.ShapeDtypeStruct((2, *images.shape), jnp.uint8)
    change = _of(named.parts_of, config.augment.parts, "config.augment.parts")
    if change is not None:

        def changed(key: Array, numbers: Array, images: Array) -> Array:
            return change(named.compose.Draw(key, key, numbers, numbers[0]), images)

        key, numbers = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((2,), jnp.int32)
        few_changed = _of(
            lambda few: jax.eval_shape(changed, key, numbers, few), few, "config.augment.parts"
        )
        if (few_changed.shape, few_changed.dtype) != (few.shape, few.dtype):
            raise ConfigError(
                f"config.augment.parts make {show(few_changed)} of {show(few)}: keep shape and "
                "dtype"
            )
    mixed = _of(named.mix_of, config.augment.mix, "config.augment.mix")
    if mixed is None:
        return change, None
    mix = mix_labels(mixed, classes)
    key, labels = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((2,), jnp.int32)
    made = _of(lambda few: jax.eval_shape(mix, key, few, labels), few, "config.augment.mix")
    if jax.tree.map(lambda leaf: leaf.shape, made) != (few.shape, (2, classes)):
        raise ConfigError(
            f"config.augment.mix is {config.augment.mix!r}: it is to give images and targets as "
            f"it is given, {show(few)} and [2,{classes}]"
        )
    return change, mix


def mix_labels(mixed: Mix, classes: int) -> Mix:
    """A mixture of images and targets as one of images and labels, numbers of classes."""

    def mix(key: Array, pixels: Array, labels: Array) -> tuple[Array, Array]:
        # Not `jax.nn.one_hot`, which makes a label that is no class the target of nothing.
        return mixed(key, pixels, targets(labels, classes))

    return mix


def load(config: Experiment, split: str, *, training: bool = False) -> Split:
    """A split of the config's data set, as it is seen in training or in evaluation.

    Raises:
        UserError: if it cannot be had.
    """
    chosen = config.data
    try:
        if chosen.view is None:
            dataset, faults = data.load_readable(chosen.name, split, chosen.dir, chosen.unreadable)
            images = in_memory(dataset)
        else:
            name = "view" if training else "eval_view"
            view = _of(_view_of, getattr(chosen, name), f"config.data.{name}")
            examples, faults = data.open_readable(chosen.name, split, chosen.dir, chosen.unreadable)
            images = Split(OnDisk(examples, view, chosen.processes), tuple(examples.classes))
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"config.data: {error}") from error
    doubts.tell_faults(config, split, faults)
    return images._replace(faults=faults)


def network(config: Experiment, images: Split) -> Layer:
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
    net = with_norms(net, config.norm)
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


def _begin(config: Experiment, net: Layer, spec: jax.ShapeDtypeStruct, params: Params) -> Any:
    """The function that makes the first parameters of training images, once it is known to."""
    name = config.start.images
    if name is None:
        return None
    path = "config.start.images"
    function = _of(lambda name: imported(name, "function of parameters and images"), name, path)
    made = _of(lambda spec: jax.eval_shape(function, params, spec), spec, path)
    if made != params:
        raise ConfigError(f"{path}: {name} changes the shapes of the parameters")
    return function


def with_norms(net: Layer, chosen: Norm) -> Layer:
    """The network with the batch statistics that the config asks for."""
    if chosen.ghost:
        ghost = functools.partial(ghost_norm, size=chosen.ghost)
        net = _of(lambda net: surgery.replace_norms(net, "*", ghost), net, "config.norm.ghost")
    if chosen.frozen:
        frozen = list(chosen.frozen)
        path = "config.norm.frozen"
        net = _of(lambda net: surgery.replace_norms(net, frozen, frozen_norm), net, path)
    return net


def spec_of(images: Split, batch: int) -> jax.ShapeDtypeStruct:
    """A batch of these images as the network sees it."""
    return jax.ShapeDtypeStruct((batch, *images.shape), jnp.float32)


def _check_algorithms() -> None:
    """Raises UserError for a table of algorithms that cannot be read."""
    try:
        choice.rows()
    except ValueError as error:
        raise UserError(f"{error}: mend the file, or unset CONVJAX_ALGORITHMS") from error


def _check_splits(config: Experiment) -> None:
    """Raises ConfigError where choices would be made by images of another split."""
    chosen = config.data
    for name in ("train", "test"):
        other = getattr(chosen, name)
        if chosen.valid is not None and overlap(chosen.valid, other):
            raise ConfigError(
                f"config.data.valid is {chosen.valid!r}, which has images of config.data.{name}, "
                f"{other!r}: divide a split, such as 'train[:90%]' and 'train[90%:]'"
            )


def _check_views(config: Experiment, test_time: Sequence[View], images: Split) -> None:
    """Raises ConfigError for views of test images that change their shape or do not sum to 1."""
    if not test_time:
        return

    def means(few: Array) -> Array:
        return averaged(lambda images: images.reshape(len(images), -1), test_time)(few)

    few = spec_of(images, 2)
    made = _of(lambda few: jax.eval_shape(means, few), few, "config.test_time")
    if made.size != few.size:
        raise ConfigError(f"config.test_time: {config.test_time} changes the shape of images")


def _check_batch(config: Experiment, mapper: Mapper) -> None:
    """Raises ConfigError for a batch that cannot be spread over devices and parts."""
    devices = len(mapper.devices)
    if config.batch_size % devices:
        raise ConfigError(
            f"config.batch_size is {config.batch_size}: give a multiple of the "
            f"{devices} devices that config.parallel={config.parallel!r} runs on"
        )
    if (config.batch_size // devices) % config.accumulate:
        raise ConfigError(
            f"config.accumulate is {config.accumulate}: it is to divide the "
            f"{config.batch_size // devices} images of a batch on each device"
        )
    part = config.batch_size // devices // config.accumulate
    if config.norm.ghost and part % config.norm.ghost:
        raise ConfigError(
            f"config.norm.ghost is {config.norm.ghost}: it is to divide the {part} images that a "
            "device takes at once"
        )


def _view_of(text: str) -> views.View:
    """The view that is written here, such as "centre_crop(224, resize=256)"."""
    functions: tuple[Callable[..., views.View], ...]
    functions = (views.random_resized_crop, views.centre_crop, views.whole)
    known = {function.__name__: function for function in functions}
    return made(text, known, "view")


def _of(function: Callable[[Any], Any], value: Any, path: str) -> Any:
    """What the function makes of a value of the config; ConfigError for what it refuses."""
    try:
        return function(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _shown(split: Split) -> str:
    return f"uint8[{','.join(map(str, (split.size, *split.shape)))}]"
