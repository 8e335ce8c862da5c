"""The small ConvNet, trained by convjax and by PyTorch with the same recipe.

Both begin with the same weights, see the same images in the same order and follow the same learning
rates; crops, flips and dropout are drawn alike, but each draws its own numbers. Each trainer has a
process to itself, so that the time of a run is that of a command, compilation included.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cases import Weights
from convjax import data
from convjax.allocator import keep_freed_memory
from convjax.config import Experiment, Model, Optimizer, UserError


class Start(NamedTuple):
    """What both begin with: weights, and the learning rate of every step."""

    weights: Weights
    rates: np.ndarray


class Curve(NamedTuple):
    """One run.

    seconds, accuracies: of every evaluation; the time of training up to it, evaluations left out.
    first_step: seconds of the first step, compilation included.
    steps: how many were taken.
    """

    seconds: list[float]
    accuracies: list[float]
    first_step: float
    steps: int


def start(config: Experiment) -> Start:
    """The first weights for the config's seed, and its schedule."""
    import jax
    import jax.numpy as jnp

    from benchmarks.weights import leaves_in_order
    from convjax.assemble import assemble
    from convjax.training.state import init_state

    checked(config)
    made = assemble(config)
    key = jax.random.key(config.seed)
    first = init_state(made.net, made.optimizer, key, made.spec, made.hyper)
    weights: Weights = {}
    for path, leaf in (*leaves_in_order(first.params), *leaves_in_order(first.state)):
        layer, _, kind = path.rpartition("/")
        weights.setdefault(layer, {})[kind] = np.array(leaf)
    factors = made.schedule(jnp.arange(made.plan.steps))
    return Start(weights, config.optimizer.learning_rate * np.asarray(factors))


def checked(config: Experiment) -> None:
    """Raises a UserError unless the config is one that both can train."""
    chosen = config.optimizer
    usual = Optimizer("adamw", chosen.learning_rate, chosen.weight_decay, schedule=chosen.schedule)
    if config.model != Model("small") or chosen != usual:
        raise UserError(
            f"{config.name}: PyTorch's side knows the model small with adamw and its usual "
            "arguments; give a config of these"
        )
    for part in config.augment.parts:
        if not _PART.fullmatch(part):
            raise UserError(f"{config.name}: PyTorch's side knows crop(N) and flip, not {part!r}")


class Convjax:
    """convjax, as `python -m experiments.train` does it."""

    def __init__(self, config: Experiment, begin: Start):
        keep_freed_memory()
        import jax

        from convjax.assemble import assemble
        from convjax.training import feed
        from convjax.training.loss import LOSSES
        from convjax.training.state import init_state
        from convjax.training.step import make_eval_step, make_step, normalise

        self.config, self.made = config, assemble(config)
        train, mapper, plan = self.made.train, self.made.mapper, self.made.plan
        self.prepare = normalise(*train.statistics())
        step = make_step(
            self.made.net,
            self.made.optimizer,
            LOSSES[config.loss.name],
            prepare=self.prepare,
            change=self.made.change,
            epoch=plan.epoch,
            axis=mapper.axis,
        )
        self.feed = feed.training(
            train, feed.Order(config.seed, train.size, plan.batch_size), mapper
        )
        self.step = mapper.compile(self.feed.program(step), donate=True)
        judge = make_eval_step(self.made.net, prepare=self.prepare, axis=mapper.axis)
        self.eval_step = mapper.compile(judge)
        self.hyper = mapper.replicate(self.made.hyper)
        key = jax.random.key(config.seed)
        first = init_state(self.made.net, self.made.optimizer, key, self.made.spec, self.made.hyper)
        self.state = mapper.place(first)

    def logits(self, count: int) -> np.ndarray:
        """Logits of the first test images before training, in inference."""
        import jax

        from convjax.layer import Context

        @jax.jit
        def predict(images: jax.Array) -> jax.Array:
            model = (self.state.params, self.state.state)
            return self.made.net.apply(*model, self.prepare(images), Context())[0]

        source: Any = self.made.judged["test"].source
        return np.asarray(predict(source.images[:count]))

    def run(self, evaluations: int) -> Curve:
        """Trains, with so many evaluations an epoch."""
        import jax

        return timed(
            self.made.plan.steps,
            self.made.plan.epoch,
            evaluations,
            self._take_step,
            lambda: jax.block_until_ready(self.state),
            self._judge,
        )

    def _take_step(self, number: int) -> None:
        batch, *rest = self.feed.take(number, 1)
        self.state, _ = self.step(self.state, batch, self.hyper, *rest)

    def _judge(self) -> float:
        from convjax.training.evaluate import evaluate
        from convjax.training.feed import evaluation

        model = (self.state.params, self.state.state)
        size, test = self.config.eval_batch_size, self.made.judged["test"]
        metrics = evaluate(self.eval_step, model, evaluation(test, size, self.made.mapper))
        return metrics.correct / metrics.count


class Torch:
    """PyTorch, channels-last, with its fused AdamW."""

    def __init__(self, config: Experiment, begin: Start):
        import torch

        from benchmarks.rivals import torch_

        checked(config)
        self.config, self.rates = config, begin.rates
        self.train = data.load(config.data.name, config.data.train, config.data.dir)
        self.test = data.load(config.data.name, config.data.test, config.data.dir)
        self.draw = torch.Generator().manual_seed(config.seed)
        self.mean, self.std = data.channel_statistics(self.train.images)
        size = self.train.images.shape[1] // 8
        model = torch_.small(len(self.train.classes), size, self.train.images.shape[-1])
        torch_.load(model, begin.weights, (size, size, 128))
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        kernels = [each for each in model.parameters() if each.ndim > 1]
        others = [each for each in model.parameters() if each.ndim == 1]
        decay = config.optimizer.weight_decay
        groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0}]
        self.optimizer = torch.optim.AdamW(groups, fused=True)

    def logits(self, count: int) -> np.ndarray:
        """Logits of the first test images before training, in inference."""
        return self._predict(self.test.images[:count]).numpy()

    def run(self, evaluations: int) -> Curve:
        """Trains, with so many evaluations an epoch."""
        epoch = data.steps_per_epoch(len(self.train.labels), self.config.batch_size)
        steps = len(self.rates)
        return timed(steps, epoch, evaluations, self._take_step, lambda: None, self._judge)

    def _take_step(self, number: int) -> None:
        import torch
        from torch.nn import functional as F

        size = len(self.train.labels)
        epoch, place = divmod(number, data.steps_per_epoch(size, self.config.batch_size))
        seed, batch_size = self.config.seed, self.config.batch_size
        indices = data.batch_indices(seed, epoch, place, size, batch_size)
        images, labels = self.train.images[indices], self.train.labels[indices]
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(self._prepared(self._changed(images)))
        smoothing = self.config.loss.label_smoothing
        target = torch.from_numpy(labels).long()
        F.cross_entropy(logits, target, label_smoothing=smoothing).backward()
        self.optimizer.step()

    def _judge(self) -> float:
        size, count = self.config.eval_batch_size, len(self.test.labels)
        correct = 0
        for first in range(0, count, size):
            best = self._predict(self.test.images[first : first + size]).argmax(1).numpy()
            correct += int((best == self.test.labels[first : first + size]).sum())
        return correct / count

    def _predict(self, images: np.ndarray) -> Any:
        import torch

        self.model.eval()
        with torch.inference_mode():
            return self.model(self._prepared(images))

    def _changed(self, images: np.ndarray) -> Any:
        """The images with the parts of the config's augmentation applied, in order."""
        import torch

        pixels = torch.from_numpy(images)
        count, height, width, _ = pixels.shape
        for part in self.config.augment.parts:
            if part == "flip":
                mirrored = torch.rand(count, generator=self.draw) < 0.5
                pixels[mirrored] = pixels[mirrored].flip(2)
                continue
            border = int(part[len("crop(") : -1])
            padded = torch.nn.functional.pad(pixels, (0, 0, border, border, border, border))
            top, left = torch.randint(0, 2 * border + 1, (2, count), generator=self.draw)
            rows = top[:, None] + torch.arange(height)
            columns = left[:, None] + torch.arange(width)
            each = torch.arange(count)[:, None, None]
            pixels = padded[each, rows[:, :, None], columns[:, None, :]]
        return pixels

    def _prepared(self, images: Any) -> Any:
        """Normalised images, channels first and in memory channels last: a view of them as read."""
        import torch

        pixels = torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.from_numpy(each).view(1, -1, 1, 1) for each in (self.mean, self.std))
        return (pixels - mean) / std


_PART = re.compile(r"flip|crop\(\d+\)")
TRAINERS = {"convjax": "Convjax", "PyTorch channels-last": "Torch"}


def timed(
    steps: int,
    epoch: int,
    evaluations: int,
    take_step: Callable[[int], None],
    wait: Callable[[], Any],
    judge: Callable[[], float],
) -> Curve:
    """Takes the steps; the clock stands still while accuracy is measured.

    epoch: steps of an epoch, in which there are so many evaluations.
    wait: waits until the steps taken are computed.
    """
    every = max(epoch // evaluations, 1)
    seconds, accuracies, spent, first = [], [], 0.0, 0.0
    begin = time.perf_counter()
    for number in range(steps):
        take_step(number)
        if number == 0:
            wait()
            first = time.perf_counter() - begin
        if (number + 1) % every == 0 or number + 1 == steps:
            wait()
            spent += time.perf_counter() - begin
            seconds.append(spent)
            accuracies.append(judge())
            begin = time.perf_counter()
    return Curve(seconds, accuracies, first, steps)
