"""From a config to a trained run in a folder: the one file that knows everything below it.

    print(train(Experiment(epochs=5), "runs/mine"))          # the same again goes on, or is done
    print(evaluate("runs/mine"))

What a run leaves in its folder is described in `convjax.runlog`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from convjax import distributed, interrupts, tree
from convjax.assemble import assemble, describe, load, network, spec_of
from convjax.config import Experiment, UserError, read_json, validate
from convjax.runlog import Followed, RunLog, closing_line
from convjax.saved import saved_model
from convjax.session import Session
from convjax.sitting import Report, finished, opened
from convjax.training import feed, parallel
from convjax.training.evaluate import batch_size_for
from convjax.training.evaluate import evaluate as evaluate_on
from convjax.training.metrics import means
from convjax.training.step import make_eval_step, normalise

Workdir = str | os.PathLike[str]


def train(
    config: Experiment,
    workdir: Workdir | None = None,
    *,
    dry_run: bool = False,
    override: bool = False,
    debug_nans: bool = False,
    out: TextIO | None = None,
    report: Report | None = None,
) -> str:
    """Trains what the config says, evaluates on the test split and returns the closing line.

        test accuracy 0.9012 (1802/2000), loss 0.2801, 41.2 s, runs/mine

    The seconds are those of the training with its evaluations and compilation, over all sessions.
    The same config on the same folder goes on at its last checkpoint, to the same result as though
    it had never stopped; where the run is finished, the line is that of its record. SIGTERM and
    Ctrl-C save the last finished step before they end the training.

    workdir: the run's folder; by default a new one, `runs/NAME-TIME`.
    dry_run: prints shapes, parameters, config and plan, and trains and writes nothing.
    override: goes on from the last checkpoint though the run is one of another config.
    debug_nans: ends at the first number that is not finite, and names the layer that it is from;
        every step is waited for.
    out: where evaluations are told, by default standard output.
    report: is told of each evaluation, `(step, {"test": {"loss": ..., "accuracy": ...}, ...})`; it
        may give a reason why the run is to end there, which then is Pruned.

    Raises:
        UserError: if the config cannot be run; if the folder holds something else than a run, or
            a run of another config, be it only of more epochs: their schedule is another one; if
            another process trains in it; if it diverges; if the disk is full.
        Interrupted: after SIGTERM and Ctrl-C; it is a KeyboardInterrupt.
    """
    start = time.perf_counter()
    leads = distributed.leads()
    told: TextIO = sys.stdout if out is None else out
    validate(config)
    if debug_nans and jax.process_count() > 1:
        raise UserError("--debug_nans takes a step once more in one process: start only one")
    if workdir is None and jax.process_count() > 1 and not dry_run:
        raise UserError("give --workdir=DIR: several processes share one folder")
    log = None if workdir is None else (RunLog if leads else Followed)(workdir)
    if log and not dry_run and finished(log, config, override):
        return _closing_of(log)
    experiment = assemble(config)
    if dry_run:
        print(describe(experiment), file=told)
        return "dry run: nothing was trained, nothing was written"
    log = log or RunLog(_new_folder(config.name))
    # Of several processes no one saves alone: `distributed.check` tells all of them of a signal.
    alone = jax.process_count() == 1
    handled = interrupts.handled() if alone else contextlib.nullcontext(interrupts.Interrupts())
    with handled as signals, opened(log, config, override) as todo:
        if todo:
            with open(os.devnull, "w") as nowhere:
                out = told if leads else nowhere
                Session(experiment, log, out, start, signals, debug_nans, report).run()
            distributed.barrier("the run is finished")
    return _closing_of(log)


def evaluate(workdir: Workdir, split: str | None = None, model: str = "newest") -> str:
    """Evaluates a model of a run on a split of its data; returns the closing line.

    The seconds are those of the evaluation; the loss is the cross-entropy, whatever was trained on.

    split: of the data set; by default that which the run was tested on.
    model: `newest` or `average` of the newest checkpoint, or the `best` that the run has kept.

    Raises:
        UserError: if the folder holds no run with that model, or the data have no such split.
    """
    start = time.perf_counter()
    log = RunLog(workdir)
    if not log.exists():
        raise UserError(f"{log.folder} holds no run: it has no {log.config_file.name}")
    config = read_json(log.config_file)
    split = config.data.test if split is None else split
    images = load(config, split)
    net = network(config, images)
    mapper = parallel.make(config.parallel)
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec_of(images, 1))
    try:
        found = tree.merge({"params": params, "state": state}, saved_model(log.folder, model))
    except ValueError as error:
        raise UserError(f"the checkpoint in {log.folder} is of another network: {error}") from error
    pixels = log.record().get("pixels", {})
    if not _is_normal(pixels, images.shape[-1]):
        raise UserError(f"{log.run_file} does not say how pixels were normalised: train it again")
    prepare = normalise(pixels["mean"], pixels["std"], config.precision)
    step = mapper.compile(make_eval_step(net, prepare=prepare, axis=mapper.axis))
    size = batch_size_for(config.eval_batch_size, len(mapper.devices), images.size)
    metrics = evaluate_on(
        step, mapper.place((found["params"], found["state"])), feed.evaluation(images, size, mapper)
    )
    name = split if model == "newest" else f"{split} {model}"
    return closing_line(name, means(metrics), time.perf_counter() - start, log.folder)


def _is_normal(pixels: Any, channels: int) -> bool:
    """Whether this is a mean and a deviation of each channel."""
    try:
        both = np.array([pixels["mean"], pixels["std"]], np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    return both.shape == (2, channels) and bool(np.isfinite(both).all() and (both[1] >= 0).all())


def _closing_of(log: RunLog) -> str:
    """The closing line of a finished run."""
    record = log.record()
    final = record["final"]
    return closing_line(final["split"], final, record["seconds"], log.folder)


def _new_folder(name: str) -> Path:
    """A new folder of its own below `runs`, named by the time in UTC."""
    stem = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise UserError(f"runs holds 999 folders named {stem}: give --workdir")
