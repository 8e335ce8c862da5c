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
from typing import TextIO

import jax

from convjax import distributed, interrupts
from convjax.assemble import assemble, describe
from convjax.config import Experiment, UserError, validate
from convjax.insight.evaluation import text as evaluation_text
from convjax.insight.evaluation.evaluate import Wanted
from convjax.insight.evaluation.evaluate import evaluate as evaluation_of
from convjax.insight.evaluation.evaluate import write as write_evaluation
from convjax.insight.report.ending import try_report, try_report_apart
from convjax.interrupts import Interrupted
from convjax.runlog import Followed, RunLog, closing_line
from convjax.session import Session
from convjax.sitting import Diverged, Report, finished, opened
from convjax.trained import trained
from convjax.training import feed, parallel
from convjax.training.evaluate import batch_size_for
from convjax.training.evaluate import evaluate as evaluate_on
from convjax.training.metrics import means
from convjax.training.step import make_eval_step

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
    profile: int = 0,
    page: bool = False,
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
    profile: profiles so many steps and tells where their time went; docs/inspect.md.
    page: makes the run's report at the end, `report.html`, also where it has diverged; of an
        interrupted run it tells how to make it. That it cannot be made is told, and nothing more.

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
    if profile < 0:
        raise UserError(f"--profile={profile}: give the number of steps to profile, from 0 on")
    if debug_nans and jax.process_count() > 1:
        raise UserError("--debug_nans takes a step once more in one process: start only one")
    if workdir is None and jax.process_count() > 1 and not dry_run:
        raise UserError("give --workdir=DIR: several processes share one folder")
    log = None if workdir is None else (RunLog if leads else Followed)(workdir)
    if log and not dry_run and finished(log, config, override):
        if profile and leads:
            print("no step was profiled: the run has ended already", file=told)
        return _closing_of(log)
    experiment = assemble(config)
    if dry_run:
        print(describe(experiment), file=told)
        return "dry run: nothing was trained, nothing was written"
    log = log or RunLog(_new_folder(config.name))
    # Of several processes no one saves alone: `distributed.check` tells all of them of a signal.
    alone = jax.process_count() == 1
    handled = interrupts.handled() if alone else contextlib.nullcontext(interrupts.Interrupts())
    todo, tells = False, page and leads
    try:
        with handled as signals, opened(log, config, override) as todo:
            if todo:
                with open(os.devnull, "w") as nowhere:
                    out = told if leads else nowhere
                    Session(experiment, log, out, start, signals, debug_nans, report, profile).run()
                distributed.barrier("the run is finished")
    except Diverged:  # A page is worth most where a run went wrong.
        if tells:
            # Who does not wait for it is to see, all the same, that the run has diverged.
            with contextlib.suppress(KeyboardInterrupt):
                _write_page(log.folder, told)
        raise
    except Interrupted:  # Whoever has ended it does not wait for long.
        if tells and log.exists():
            print(f"for its page: python -m experiments.report --workdir={log.folder}", file=told)
        raise
    del experiment  # Its page opens the data anew.
    if todo and tells:
        _write_page(log.folder, told)
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
    found = trained(workdir, model, split)
    config, images = found.config, found.split(split)
    mapper = parallel.make(config.parallel)
    step = mapper.compile(make_eval_step(found.net, prepare=found.prepare, axis=mapper.axis))
    size = batch_size_for(config.eval_batch_size, len(mapper.devices), images.size)
    metrics = evaluate_on(
        step, mapper.place((found.params, found.state)), feed.evaluation(images, size, mapper)
    )
    split = config.data.test if split is None else split
    name = split if model == "newest" else f"{split} {model}"
    return closing_line(name, means(metrics), time.perf_counter() - start, found.log.folder)


def evaluate_deeply(
    workdir: Workdir, wanted: Wanted, model: str = "newest", *, out: TextIO | None = None
) -> str:
    """Looks at a model of a run from all sides, tells what it sees, and returns the closing line.

    What it sees is written into the run's folder, too: see `convjax.insight.evaluation.evaluate`.

    wanted: what is looked at, and on which split.
    out: where it is told, by default standard output.

    Raises:
        UserError: as `evaluate` does, and for what of `wanted` cannot be had.
    """
    start = time.perf_counter()
    told: TextIO = sys.stdout if out is None else out
    found = trained(workdir, model, wanted.split)
    evaluation = evaluation_of(found, wanted, told)
    result = evaluation.result
    print(evaluation_text.text(result), file=told)
    print(f"written to {write_evaluation(found, evaluation)}, with pictures beside it", file=told)
    means = {"accuracy": result["accuracy"]["value"], "loss": result["loss"]["value"]}
    counts = {"correct": result["correct"], "count": result["images"]}
    split = result["split"] if model == "newest" else f"{result['split']} {model}"
    return closing_line(split, means | counts, time.perf_counter() - start, found.log.folder)


def _write_page(folder: Path, out: TextIO) -> None:
    """The report of a run that has ended and has left its folder to others."""
    if jax.process_count() == 1:
        try_report(folder, out)
    else:  # A checkpoint is read by all processes together, and the others are done.
        try_report_apart(folder, out)


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
