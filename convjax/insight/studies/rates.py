"""Which learning rate a config can take: its own step at rates that rise until the loss does.

    found = find_rate(config, "runs/mine")              # writes find_lr.json and find_lr.png there
    found.steepest, found.tenth                         # two suggestions

Smith, Cyclical learning rates for training neural networks, 2017, in the form of fastai: one rate
a step, each by the same factor above the last. The rate is an argument of the compiled step, so
that it is compiled once.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from convjax import durable
from convjax.assemble import Assembled, assemble
from convjax.config import (
    TOLD,
    Experiment,
    UserError,
    differences,
    from_dict,
    read_json,
    to_dict,
    validate,
)
from convjax.insight.studies import figures
from convjax.interrupts import Interrupts
from convjax.runlog import BEFORE, RunError, RunLog, write_json
from convjax.session import step_of
from convjax.sitting import Sitting
from convjax.training import feed as feeds
from convjax.training.feed import Order
from convjax.training.state import TrainState

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
DIVERGED = 4.0  # times the smallest loss, as fastai has it


class Rates(NamedTuple):
    """A loss for each learning rate.

    rates: float `[steps]`, rising. losses: the mean loss of the batch before the step at each.
    smoothed: the same without the noise of batches.
    steepest: where the smoothed loss falls fastest by the logarithm of the rate. tenth: a tenth of
        the rate where it is least. Both are None where the loss does not fall by more than noise.
    diverged: whether the loss rose, or was not finite, before the highest rate was reached.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float | None
    tenth: float | None
    diverged: bool


def find_rate(
    config: Experiment,
    workdir: str | os.PathLike[str] | None = None,
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    steps: int = STEPS,
    out: TextIO | None = None,
) -> Rates:
    """Trains from the config's beginning at rates from `lowest` to `highest`; keeps nothing of it.

    The optimizer, batches, augmentation, loss and precision are the config's; its schedule and its
    warm-up are left out. It ends where the loss is four times its smallest, or not finite.

    workdir: where `find_lr.json` and `find_lr.png` go, a run's folder or one to be; None writes
        nothing. Neither file makes the folder that of a run, nor keeps a run from beginning there.
    out: where it is told, by default standard output.

    Raises:
        UserError: if the config cannot be run; if the folder holds something else, or a run of
            another config; where there are several processes; if the first loss is not finite.
        ValueError: for rates that do not rise, or fewer than 10 steps.
    """
    begun = time.perf_counter()
    if not 0 < lowest < highest < math.inf or steps < 10:
        raise ValueError(
            f"rates from {lowest} to {highest} in {steps} steps: give 0 < lowest < highest, and 10 "
            "steps or more"
        )
    if jax.process_count() > 1:
        raise UserError("--find_lr runs in one process: start only one")
    validate(config)
    log = None if workdir is None else _folder(RunLog(workdir), config)
    experiment = assemble(_constant(config))
    told = sys.stdout if out is None else out
    rates = lowest * (highest / lowest) ** (np.arange(steps) / (steps - 1))
    with contextlib.closing(_losses(experiment, rates, told)) as losses:
        seen, diverged = _until_diverged(tqdm(losses, "find_lr", steps, **_BAR))
    if not len(seen):
        raise UserError("the first loss is not finite: see --debug_nans")
    found = suggest(rates[: len(seen)], seen)._replace(diverged=diverged)
    print(text(found), file=told)
    if log is None:
        print("nothing was written: give --workdir=DIR to keep the curve", file=told)
    else:
        _write(log, config, found, time.perf_counter() - begun)
        print(f"written to {log.folder / BEFORE[0]} and {log.folder / BEFORE[1]}", file=told)
    return found


def suggest(rates: np.ndarray, losses: np.ndarray) -> Rates:
    """What the losses at rising rates say; `diverged` is left False.

    The smoothing is a Gaussian over neighbouring steps, which does not lag behind as a running mean
    would. Losses above twice the first ones count as that: they are over all bounds.
    """
    first = float(np.median(losses[:5]))
    bounded = np.minimum(losses, 2 * first if first > 0 else losses.max())
    smoothed = _smooth(bounded, max(len(losses) / 33, 1.0))
    least = int(np.argmin(smoothed))
    # The deviation of a loss about its neighbours, by the median: divergence is no noise.
    noise = float(np.median(np.abs(np.diff(bounded)))) / (0.6745 * math.sqrt(2))
    if least < 2 or smoothed[0] - smoothed[least] <= 2 * noise:
        return Rates(rates, losses, smoothed, None, None, False)
    slope = np.gradient(smoothed, np.log(rates))[: least + 1]
    steepest = float(rates[np.argmin(slope)])
    return Rates(rates, losses, smoothed, steepest, float(rates[least]) / 10, False)


def text(found: Rates) -> str:
    """What was found, as lines that can be copied to a command."""
    last = f"{len(found.rates)} steps, at rates from {found.rates[0]:.2g} to {found.rates[-1]:.2g}"
    ended = "where the loss diverged" if found.diverged else "and the loss did not diverge"
    lines = [f"{last}, {ended}"]
    if found.steepest is None or found.tenth is None:
        least = f"the loss fell by no more than noise: from {found.smoothed[0]:.4f}"
        return "\n".join([*lines, f"{least} to {found.smoothed.min():.4f}; nothing is suggested"])
    for name, rate in (
        ("where the loss falls steepest", found.steepest),
        ("a tenth of where it is least", found.tenth),
    ):
        lines.append(f"{name}:".ljust(31) + f"--config.optimizer.learning_rate={rate:.2g}")
    return "\n".join(lines)


# -- What it is made of ----------------------------------------------------------------------------

_BAR: dict[str, Any] = {"disable": None, "file": sys.stderr, "unit": " steps", "leave": False}


class _Beginning(Sitting):
    """What a run of the config would begin with."""

    def state(self) -> TrainState:
        """The state before the first step, on the devices, fine-tuned where the config says so."""
        return self._fresh(self.drawn())


def _losses(experiment: Assembled, rates: np.ndarray, out: TextIO) -> Generator[float, None, None]:
    """The mean loss of the batch of each step, taken at these rates; NaN of a step was skipped."""
    config, mapper, plan = experiment.config, experiment.mapper, experiment.plan
    pixels = experiment.train.statistics()
    # Of a folder, nothing is asked: nothing is written down of these steps.
    nowhere, start = RunLog(os.devnull), time.perf_counter()
    beginning = _Beginning(experiment, nowhere, out, start, Interrupts(), pixels)
    order = Order(config.seed, experiment.train.size, plan.batch_size)
    with contextlib.ExitStack() as opened:
        feed = feeds.training(experiment.train, order, mapper, 1)
        opened.callback(feed.close)
        step = step_of(experiment, beginning.prepare, axis=mapper.axis)
        program = mapper.compile(feed.program(step), donate=True)
        state = beginning.state()
        for number, rate in enumerate(rates):
            hyper = experiment.hyper._replace(learning_rate=jnp.float32(rate))
            batch, *rest = feed.take(number, 1)
            state, metrics = program(state, batch, mapper.replicate(hyper), *rest)
            count = int(metrics.count)
            yield float(metrics.loss) / count if count else math.nan


def _until_diverged(losses: Iterable[float]) -> tuple[np.ndarray, bool]:
    """The losses until one is not finite, or a running mean of them is far above its smallest."""
    seen: list[float] = []
    total = weight = 0.0
    best = math.inf
    for loss in losses:
        if not math.isfinite(loss):
            return np.array(seen), True
        seen.append(loss)
        total, weight = 0.8 * total + loss, 0.8 * weight + 1
        best = min(best, total / weight)
        if total / weight > DIVERGED * best:
            return np.array(seen), True
    return np.array(seen), False


def _constant(config: Experiment) -> Experiment:
    """The config without its schedule."""
    config = from_dict(to_dict(config))
    chosen = config.optimizer
    chosen.schedule, chosen.schedule_args = "constant", {}
    chosen.warmup_epochs, chosen.warmup_steps, chosen.warmup_start = 0.0, 0, None
    chosen.final_factor = 0.0
    return config


def _folder(log: RunLog, config: Experiment) -> RunLog:
    """The folder, once it is known that what is found belongs there."""
    if log.exists():
        differing = differences(read_json(log.config_file), config)
        rest = [path for path in differing if path not in (*TOLD, "optimizer.learning_rate")]
        if rest:
            raise UserError(
                f"{log.folder} is a run of another config, which differs in {', '.join(rest)}: "
                "give another --workdir, or the config that it has"
            )
    elif not log.is_free():
        raise UserError(f"{log.folder} is not a run and not empty: give another --workdir")
    try:
        log.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritten(log.folder, error) from error
    return log


def _write(log: RunLog, config: Experiment, found: Rates, seconds: float) -> None:
    values = {
        name: each.tolist() if isinstance(each, np.ndarray) else each
        for name, each in found._asdict().items()
    }
    picture = figures.rates(found, config.name)
    try:
        durable.replace(log.folder / BEFORE[1], picture)
        values |= {"seconds": seconds, "config": to_dict(config)}
        write_json(log.folder / BEFORE[0], values)
    except OSError as error:
        raise _unwritten(log.folder, error) from error


def _unwritten(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder} cannot be written ({error.strerror}): give another --workdir")


def _smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Means of neighbours, by a Gaussian of that many places."""
    apart = (np.arange(len(values))[:, None] - np.arange(len(values))) / width
    weights = np.exp(-apart * apart / 2)
    return weights @ values / weights.sum(1)
