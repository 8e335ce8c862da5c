"""From a config to a trained run in a folder: the one file that knows everything below it.

    print(train(Experiment(epochs=5), "runs/mine"))          # the same again goes on, or is done
    print(evaluate("runs/mine"))

What a run leaves in its folder is described in `convjax.runlog`.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import jax
from tqdm import tqdm

from convjax import data, runlog, tree
from convjax.assemble import Assembled, assemble, describe, load, network, spec_of
from convjax.compiler import Compiler, Program, spec_on
from convjax.config import Experiment, UserError, differences, read_json, to_dict, validate
from convjax.data import Dataset
from convjax.runlog import RunLog
from convjax.training import parallel
from convjax.training.evaluate import batch_size_for
from convjax.training.evaluate import evaluate as evaluate_on
from convjax.training.feed import Images, fetch, settle
from convjax.training.fit import Events, Plan, fit
from convjax.training.loss import LOSSES
from convjax.training.metrics import Metrics, means
from convjax.training.state import TrainState, init_state
from convjax.training.step import Batch, Prepare, make_eval_step, make_step, normalise

Workdir = str | os.PathLike[str]


def train(
    config: Experiment,
    workdir: Workdir | None = None,
    *,
    dry_run: bool = False,
    out: TextIO | None = None,
) -> str:
    """Trains what the config says, evaluates on the test split and returns the closing line.

        test accuracy 0.9012 (1802/2000), loss 0.2801, 41.2 s, runs/mine

    The seconds are those of the training with its evaluations and compilation, over all sessions.
    The same config on the same folder goes on at its last checkpoint, to the same result as though
    it had never stopped; where the run is finished, the line is that of its record.

    workdir: the run's folder; by default a new one, `runs/NAME-TIME`.
    dry_run: prints shapes, parameters, config and plan, and trains and writes nothing.
    out: where evaluations are told, by default standard output.

    Raises:
        UserError: if the config cannot be run; if the folder holds something else than a run, or
            a run of another config, be it only of more epochs: their schedule is another one.
    """
    start = time.perf_counter()
    told: TextIO = sys.stdout if out is None else out
    validate(config)
    log = None if workdir is None else RunLog(workdir)
    if log and not dry_run and _begun(log, config) and log.record().get("status") == "finished":
        return _closing_of(log.record(), log.folder)
    experiment = assemble(config)
    if dry_run:
        print(describe(experiment), file=told)
        return "dry run: nothing was trained, nothing was written"
    log = log or RunLog(_new_folder(config.name))
    if not log.exists():
        log.create(to_dict(config))
    with _status_of(log):
        return _train(experiment, log, start, told)


def evaluate(workdir: Workdir, split: str = "test") -> str:
    """Evaluates the newest checkpoint of a run on a split of its data; returns the closing line.

    The seconds are those of the evaluation.

    Raises:
        UserError: if the folder holds no run with a checkpoint, or the data have no such split.
    """
    start = time.perf_counter()
    log = RunLog(workdir)
    if not log.exists():
        raise UserError(f"{log.folder} holds no run: it has no {log.config_file.name}")
    if not log.checkpoints.is_dir():
        raise UserError(f"{log.folder} has no checkpoint yet: train it first")
    from convjax.checkpoint import Checkpoints

    config = read_json(log.config_file)
    images = load(config, split)
    net = network(config, images)
    mapper = parallel.make(config.parallel)
    with Checkpoints(log.checkpoints) as checkpoints:
        params, state = jax.eval_shape(net.init, jax.random.key(0), spec_of(images, 1))
        like = {"params": params, "state": state}
        saved, _ = checkpoints.restore(like, drop=("step", "opt/*", "key"))
    pixels = log.record().get("pixels")
    if pixels is None:
        raise UserError(f"{log.run_file} does not say how pixels were normalised: train it again")
    prepare = normalise(pixels["mean"], pixels["std"])
    step = make_eval_step(net, LOSSES[config.loss.name], prepare=prepare, axis=mapper.axis)
    metrics = evaluate_on(
        mapper.compile(step),
        mapper,
        mapper.replicate((saved["params"], saved["state"])),
        settle(Images(images.images, images.labels), mapper),
        config.eval_batch_size,
    )
    return closing_line(split, means(metrics), time.perf_counter() - start, log.folder)


def closing_line(split: str, result: Mapping[str, Any], seconds: float, workdir: Workdir) -> str:
    """The one line that a run ends with.

    result: loss, accuracy, correct and count; a loss that is no number may be None, as in JSON.

    >>> closing_line("test", means(Metrics(560.2, 1802, 2000)), 41.23, "runs/mine")
    'test accuracy 0.9010 (1802/2000), loss 0.2801, 41.2 s, runs/mine'
    """
    loss = math.nan if result["loss"] is None else result["loss"]
    return (
        f"{split} accuracy {result['accuracy']:.4f} ({result['correct']}/{result['count']}), "
        f"loss {loss:.4f}, {seconds:.1f} s, {workdir}"
    )


def _train(experiment: Assembled, log: RunLog, start: float, out: TextIO) -> str:
    """Trains from the last checkpoint, or from the beginning, to the end."""
    config, train, test, net, spec, mapper, plan, factor, optimizer, hyper = experiment
    mean, std = data.channel_statistics(train.images)
    numbers = mapper.replicate(hyper)
    images, test_images = (settle(Images(*each[:2]), mapper) for each in (train, test))
    evaluated: dict[int, Metrics] = {}
    relative_rate = jax.jit(factor)

    def take_step(number: int, state: TrainState) -> tuple[TrainState, Metrics]:
        epoch, place = divmod(number, plan.epoch)
        size = len(train.images)
        indices = data.batch_indices(config.seed, epoch, place, size, plan.batch_size)
        after = step(state, mapper.shard(fetch(images, indices)), numbers)
        if number == first:
            tell_compilation()
        return after

    def tell_compilation() -> None:
        compiled = {"train_step": step, "evaluation_step": eval_step}
        for name, program in compiled.items():
            _, took, kept = program.compiled()
            line = f"compiled the {name.replace('_', ' ')} in {took:.1f} s"
            tqdm.write(f"{line}, from the cache" if kept else line, file=out)
            out.flush()
        log.note(
            compiled={
                name: {
                    "seconds": program.compiled().seconds,
                    "from_cache": program.compiled().from_cache,
                }
                for name, program in compiled.items()
            }
        )

    def judge(state: TrainState) -> Metrics:
        model = (state.params, state.state)
        return evaluate_on(eval_step, mapper, model, test_images, config.eval_batch_size)

    def on_log(number: int, metrics: Metrics, rate: float | None) -> None:
        learning_rate = config.optimizer.learning_rate * float(relative_rate(number - 1))
        line = _line(number, plan, "train", metrics) | {"learning_rate": learning_rate}
        log.log(line | {"images_per_second": rate, "seconds": seconds()})

    def on_evaluate(number: int, state: TrainState) -> None:
        begun = time.perf_counter()
        metrics = evaluated[number] = judge(state)
        rate = metrics.count / (time.perf_counter() - begun)
        line = _line(number, plan, "test", metrics)
        log.log(line | {"images_per_second": rate, "seconds": seconds()})
        epoch = f"epoch {number / plan.epoch:g}"
        tqdm.write(closing_line("test", means(metrics), seconds(), epoch), file=out)

    def on_save(number: int, state: TrainState, since_log: Metrics) -> None:
        log.sync()
        extra = {"seconds": seconds(), "since_log": list(since_log)}
        checkpoints.save(number, state, extra)

    def seconds() -> float:
        return time.perf_counter() - start

    # Before the compiler is busy, for which the small programs of this would have to wait.
    state = init_state(net, optimizer, jax.random.key(config.seed), spec, hyper)
    with contextlib.ExitStack() as rest:
        compiler = rest.enter_context(Compiler())
        step, eval_step = _start_compiling(compiler, experiment, state, normalise(mean, std))
        from convjax.checkpoint import Checkpoints  # Loads Orbax, while the step is compiled.

        checkpoints = rest.enter_context(Checkpoints(log.checkpoints, keep=config.checkpoint.keep))
        extra: dict[str, Any] = {}
        if checkpoints.latest_step() is not None:
            state, extra = checkpoints.restore(state)
        start -= extra.get("seconds", 0.0)  # As though this session had begun that much earlier.
        first = int(state.step)
        if first:
            print(f"going on at step {first} of {plan.steps} in {log.folder}", file=out)
        log.cut(first)
        before = log.record()
        log.note(
            **runlog.environment(),
            status="running",
            start=before.get("start", runlog.now()),
            resumed=[*before.get("resumed", ()), *([first] if first else ())],
            end=None,
            error=None,
            pixels={"mean": mean.tolist(), "std": std.tolist()},
            classes=train.classes,
        )
        since_log = Metrics(*extra.get("since_log", ()))
        events = Events(on_log, on_evaluate, on_save)
        state = fit(mapper.replicate(state), take_step, plan, events, since_log)
        if plan.steps not in evaluated:  # It was stopped after its last save, before its end.
            evaluated[plan.steps] = judge(state)
    log.note(
        status="finished",
        end=runlog.now(),
        seconds=seconds(),
        final=_line(plan.steps, plan, "test", evaluated[plan.steps]),
        digest=tree.digest({"params": state.params, "state": state.state}),
    )
    return _closing_of(log.record(), log.folder)


def _start_compiling(
    compiler: Compiler, experiment: Assembled, state: TrainState, prepare: Prepare
) -> tuple[Program, Program]:
    """The train step and the evaluation step, which are being compiled."""
    config, train, _, net, _, mapper, plan, _, optimizer, hyper = experiment
    loss, whole = LOSSES[config.loss.name], spec_on((state, hyper), mapper.whole)
    step = make_step(net, optimizer, loss, prepare=prepare, axis=mapper.axis)
    batch = spec_on(_batch(train, plan.batch_size), mapper.split)
    program = compiler.start(mapper.compile(step, donate=True), whole[0], batch, whole[1])
    eval_step = make_eval_step(net, loss, prepare=prepare, axis=mapper.axis)
    size = batch_size_for(config.eval_batch_size, len(mapper.devices))
    batch = spec_on(_batch(train, size, masked=True), mapper.split)
    model = (whole[0].params, whole[0].state)
    return program, compiler.start(mapper.compile(eval_step), model, batch)


def _batch(images: Dataset, size: int, masked: bool = False) -> Batch:
    """The shapes of a batch of these images."""
    return Batch(
        jax.ShapeDtypeStruct((size, *images.images.shape[1:]), images.images.dtype),
        jax.ShapeDtypeStruct((size,), images.labels.dtype),
        jax.ShapeDtypeStruct((size,), bool) if masked else None,
    )


def _line(number: int, plan: Plan, split: str, metrics: Metrics) -> dict[str, Any]:
    """A line of the metric log, but for its times."""
    return {"step": number, "epoch": number / plan.epoch, "split": split, **means(metrics)}


def _closing_of(record: dict[str, Any], folder: Path) -> str:
    """The closing line of a finished run."""
    final = record["final"]
    return closing_line(final["split"], final, record["seconds"], folder)


def _begun(log: RunLog, config: Experiment) -> bool:
    """Whether the folder holds a run of this config already.

    Raises:
        UserError: if it holds a run of another config, or something else than a run.
    """
    if not log.exists():
        if not log.is_free():
            raise UserError(f"{log.folder} is not a run and not empty: give another --workdir")
        return False
    differing = differences(read_json(log.config_file), config)
    if differing:
        listed = ", ".join(
            f"{path} was {old!r}, now {new!r}" for path, (old, new) in differing.items()
        )
        raise UserError(
            f"{log.folder} is a run of another config ({listed}): "
            "give another --workdir, or the config that it has"
        )
    return True


def _new_folder(name: str) -> Path:
    """A new folder of its own below `runs`, named by the time in UTC."""
    stem = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise UserError(f"runs holds 999 folders named {stem}: give --workdir")


@contextlib.contextmanager
def _status_of(log: RunLog) -> Iterator[None]:
    """Writes down that a run was interrupted or failed, and why, before the error goes on."""
    try:
        yield
    except KeyboardInterrupt:
        log.note(status="interrupted", end=runlog.now())
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        log.note(status="failed", end=runlog.now(), error=text)
        raise
