"""A run from its folder: its network with what it learned, and the images that it knows.

model = trained("runs/mine", "best")
images = model.split("test")                    # as the config has it in evaluation
logits = model.logits(images.sample(8))         # uint8 in, float32 [8, classes] out
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax import tree
from convjax.assemble import load, network, spec_of
from convjax.config import Experiment, UserError, read_json
from convjax.data.maker import seen
from convjax.data.views import NUMBERS
from convjax.layer import Context, Layer, Params, State
from convjax.runlog import RunLog
from convjax.saved import saved_model
from convjax.training.feed import OnDisk, Split
from convjax.training.step import Prepare, normalise


@dataclass(frozen=True, eq=False)
class Trained:
    """The model of a run, and what is needed to use it.

    which: `newest`, `average` or `best`, as it was asked for.
    params, state: on the first device.
    prepare: what becomes of uint8 images `[batch, height, width, channels]` before the network.
    shape: height, width and channels of an image.
    classes: the names of the classes, in the order of the logits.
    """

    log: RunLog
    config: Experiment
    which: str
    net: Layer
    params: Params
    state: State
    prepare: Prepare
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    _splits: dict[str, Split] = field(default_factory=dict, repr=False)

    def split(self, name: str | None = None) -> Split:
        """A split of the run's data, by default that which it was tested on; opened only once.

        Raises:
            UserError: if it cannot be had, or its images or classes are of another kind.
        """
        name = self.config.data.test if name is None else name
        if name not in self._splits:
            found = load(self.config, name)
            if (found.shape, found.classes) != (self.shape, self.classes):
                raise UserError(
                    f"config.data: the split {name!r} has {len(found.classes)} classes and images "
                    f"{list(found.shape)}, the run {len(self.classes)} and {list(self.shape)}"
                )
            self._splits[name] = found
        return self._splits[name]

    def images(self, numbers: Iterable[int], split: str | None = None) -> np.ndarray:
        """The images of these numbers in a split: see `images_of`."""
        return images_of(self.split(split), numbers)

    def logits(self, images: Any) -> Array:
        """What the network says in evaluation, float32 `[batch, classes]`.

        images: uint8 `[batch, height, width, channels]`; each shape is compiled once.
        """
        return self._apply(self.params, self.state, jnp.asarray(images))

    @cached_property
    def _apply(self) -> Any:
        def apply(params: Params, state: State, images: Array) -> Array:
            logits, _ = self.net.apply(params, state, self.prepare(images), Context())
            return logits.astype(jnp.float32)

        return jax.jit(apply)


def trained(
    folder: str | os.PathLike[str], which: str = "newest", split: str | None = None
) -> Trained:
    """The model of a run, opened with its data; nothing is computed yet.

    which: `newest` or `average` of the newest checkpoint, or the `best` that the run has kept.
    split: that by which shape and classes of the images are known, and which is opened; by default
        that which the run was tested on.

    Raises:
        UserError: if the folder holds no run with that model, or the data have no such split.
    """
    log = RunLog(folder)
    if not log.exists():
        raise UserError(f"{log.folder} holds no run: it has no {log.config_file.name}")
    config = read_json(log.config_file)
    split = config.data.test if split is None else split
    images = load(config, split)
    net = network(config, images)
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec_of(images, 1))
    try:
        found = tree.merge({"params": params, "state": state}, saved_model(log.folder, which))
    except ValueError as error:
        raise UserError(f"the checkpoint in {log.folder} is of another network: {error}") from error
    pixels = log.record().get("pixels", {})
    if not _is_normal(pixels, images.shape[-1]):
        raise UserError(f"{log.run_file} does not say how pixels were normalised: train it again")
    prepare = normalise(pixels["mean"], pixels["std"], config.precision)
    found = jax.tree.map(jnp.asarray, found)
    model = (net, found["params"], found["state"], prepare)
    return Trained(log, config, which, *model, images.shape, images.classes, {split: images})


def images_of(split: Split, numbers: Iterable[int]) -> np.ndarray:
    """The images of these numbers, as evaluation sees them; uint8 `[count, *shape]`.

    Those on disk are decoded now.
    """
    numbers, source = list(numbers), split.source
    if not isinstance(source, OnDisk):
        return np.asarray(source.images)[numbers]
    none = np.zeros(NUMBERS)  # as in an evaluation
    found = [seen(source.examples, source.view, number, none)[0] for number in numbers]
    return np.stack(found) if found else np.zeros((0, *split.shape), np.uint8)


def _is_normal(pixels: Mapping[str, Any], channels: int) -> bool:
    """Whether this is a mean and a deviation of each channel."""
    try:
        both = np.array([pixels["mean"], pixels["std"]], np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    return both.shape == (2, channels) and bool(np.isfinite(both).all() and (both[1] >= 0).all())
