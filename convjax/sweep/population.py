"""Population-based training: runs that train at once, of which the worst go on from the best.

    population = Population(["optimizer.learning_rate=log(1e-4, 1e-1)"], config, members=16)
    print(launch(population, "sweeps/rates"))

So the numbers that are varied change while the members train: what comes of it is a trained network
and a schedule of each number (Jaderberg et al., 2017). In the folder:

    population.json     what was asked for, how it stands, and what came of it
    population.jsonl    a line for each member and evaluation: numbers, score, whom it goes on from
    results.csv         how each member stands
    checkpoints/        all members, their numbers and keys; the same command goes on from there
    best/               the best member as a run, with `schedule.json`, the way that it came
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from convjax import compiler, interrupts, runlog
from convjax.allocator import keep_freed_memory
from convjax.assemble import assemble
from convjax.config import Experiment, UserError, to_dict
from convjax.ownership import NAME as OWNER
from convjax.runlog import RunError, RunLog, closing_line
from convjax.sweep import objective as objectives
from convjax.sweep.evolution import SHARE
from convjax.sweep.generations import Generations
from convjax.sweep.group import Group, can_share
from convjax.sweep.levers import Levers, distributions_of, middle
from convjax.sweep.objective import Objective
from convjax.sweep.space import Space, check, described, shown, space_of

OBJECTIVE = "max valid accuracy"
_JUDGED = ("valid", "valid_average", "test", "test_average")


@dataclass
class Population:
    """What is trained."""

    vary: Any
    """What `convjax.sweep.space.space_of` takes; each path is a number that a step takes."""
    config: Experiment = field(default_factory=Experiment)
    """What all members share; member n has the seed config.seed + n."""
    members: int = 16
    """How many train at once."""
    exploit_every: float | None = None
    """Epochs after which the worst go on from the best; None does so at each evaluation."""
    objective: str = OBJECTIVE
    """What `convjax.sweep.objective.parse` reads, of the images that the best are chosen by."""


def launch(
    population: Population, folder: str | os.PathLike[str], *, out: TextIO | None = None
) -> str:
    """Trains a population, saves its best member as a run, and returns the closing line.

    The same population on the same folder goes on at its last checkpoint, to the same result to
    the bit as though it had never stopped; one that is finished is not trained again. SIGTERM and
    Ctrl-C save the last finished step.

    out: where evaluations are told, by default standard output.

    Raises:
        UserError: if it cannot be trained, before anything is: a path that no step takes as an
            array, a config without config.data.valid; if the folder holds something else, or
            another process works on it; if all members diverge; if the disk is full.
        Interrupted: after SIGTERM and Ctrl-C.
    """
    begun = time.perf_counter()
    keep_freed_memory()
    compiler.keep_programs()
    space, objective = _checked(population)
    definition = _definition(population, space, objective)
    log = _Log(folder)
    if _finished(log, definition):
        return _closing(log.record()["result"], population, objective, log.folder)
    group, levers = _group(population, space)
    with interrupts.handled() as signals, _opened(log, definition) as todo:
        if todo:
            _check_data(log, group)
            log.note(status="running", error=None)
            with Generations(
                group,
                levers,
                log,
                population.config,
                members=population.members,
                every=_exploit_every(population, group),
                objective=objective,
                signals=signals,
                begun=begun,
                out=out,
            ) as generations:
                result = generations.run()
            log.note(status="finished", end=runlog.now(), result=result)
    return _closing(log.record()["result"], population, objective, log.folder)


def plan(population: Population) -> str:
    """What would be trained, as text; UserError if it cannot be."""
    space, objective = _checked(population)
    group, levers = _group(population, space)
    steps, epoch = group.experiment.plan.steps, group.experiment.plan.epoch
    every = _exploit_every(population, group)
    times, worst = (steps - 1) // every, max(population.members // SHARE, 1)
    return "\n".join(
        [
            f"a population of {population.members} members, {steps} steps each in one program, on "
            f"{len(group.devices)} {group.devices[0].platform}",
            f"{times} times, every {every / epoch:g} epochs, {worst} of them go on from the best "
            f"{worst} by {objective}",
            *(f"  {path}" for path in levers.paths),
            *_warnings(objective, times),
        ]
    )


# -- What can be trained ---------------------------------------------------------------------------


def _checked(population: Population) -> tuple[Space, Objective]:
    """The space and the objective, as far as they can be known to do without data."""
    config = population.config
    if population.members < 2:
        raise UserError(f"--population={population.members}: give 2 members or more")
    if population.exploit_every is not None and not population.exploit_every > 0:
        raise UserError(f"--exploit_every={population.exploit_every:g}: give more than 0 epochs")
    objective = objectives.parse(population.objective)
    if objective.split not in _JUDGED:
        raise UserError(
            f"--objective={population.objective!r}: the members of a population are compared while "
            f"they train: give one of {', '.join(_JUDGED)}"
        )
    if objective.split.startswith("valid") and not config.data.valid:
        raise UserError(
            "a population chooses its best again and again, which is not for test images: hold "
            "some back, --config.data.train='train[:90%]' --config.data.valid='train[90%:]'; or "
            "say --objective='max test accuracy', and its result on them is too good"
        )
    objective.check(config)
    if not can_share(config):
        raise UserError(
            "the members of a population train in one program, with images in memory: leave out "
            "config.parallel and config.data.view"
        )
    for name, value in (
        ("config.stop.patience", config.stop.patience),
        ("config.checkpoint.best", config.checkpoint.best),
    ):
        if value:
            raise UserError(
                f"{name} is {value!r}: it is about one run, and the members of a population train "
                "to the end together, of which the best one is kept: leave it out"
            )
    space = space_of(population.vary)
    check(space, config, population.members)
    return space, objective


def _group(population: Population, space: Space) -> tuple[Group, Levers]:
    """The programs of the members, over as many devices as can share them evenly."""
    import jax

    from convjax.sweep.numbers import liftable

    distributions = distributions_of(space)
    experiment = assemble(middle(population.config, distributions))
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if population.members % n == 0)
    lifted = liftable(experiment.config, experiment.train)
    group = Group(experiment, lifted, devices[:count])
    return group, Levers(group, distributions)


def _exploit_every(population: Population, group: Group) -> int:
    """Steps between two times that the worst go on from the best."""
    known = group.experiment.plan
    if population.exploit_every is None:
        return known.eval_every
    return max(round(population.exploit_every * known.epoch), 1)


def _warnings(objective: Objective, times: int) -> Iterator[str]:
    if objective.split.startswith("test"):
        yield f"the best are chosen by test images, {times + 1} times: the result is too good"
    if not times:
        yield "nobody goes on from another: give fewer epochs as --exploit_every, or more in all"


# -- The folder ------------------------------------------------------------------------------------


class _Log(RunLog):
    """The files of a population in its folder."""

    def __init__(self, folder: str | os.PathLike[str]):
        super().__init__(folder)
        self.config_file = self.run_file = self.folder / "population.json"
        self.metrics_file = self.folder / "population.jsonl"
        self.best = self.folder / "best"

    def is_free(self) -> bool:
        """Whether the folder is not there, or holds nothing."""
        if not self.folder.exists():
            return True
        left = {runlog.unfinished_of(self.run_file).name, OWNER}
        return self.folder.is_dir() and {each.name for each in self.folder.iterdir()} <= left


@contextlib.contextmanager
def _opened(log: _Log, definition: dict[str, Any]) -> Iterator[bool]:
    """Owns the folder, and writes down what ends this; gives whether there is something to train.

    Raises:
        UserError: as `_finished` does; if another process has the folder.
    """
    with log.owned():
        # By the process that owned it a moment ago.
        if _finished(log, definition):
            yield False
            return
        if not log.exists():
            log.create({"definition": definition, "status": "running", "start": runlog.now()})
        try:
            yield True
        except (KeyboardInterrupt, Exception) as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            known = isinstance(error, UserError | interrupts.Interrupted)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            with contextlib.suppress(RunError):  # The disk may be full, which then is the error.
                log.note(status=status, end=runlog.now(), error=" ".join(text.split()))
            raise


def _finished(log: _Log, definition: dict[str, Any]) -> bool:
    """Whether the folder holds this population, finished.

    Raises:
        UserError: if it holds something else.
    """
    if not log.exists():
        if not log.is_free():
            raise UserError(f"{log.folder} is no population and not empty: give another --workdir")
        return False
    record = log.record()
    if changed := _changed(record["definition"], definition):
        raise UserError(f"{log.folder} is another population ({changed}): give another --workdir")
    return record["status"] == "finished"


def _definition(population: Population, space: Space, objective: Objective) -> dict[str, Any]:
    every = population.exploit_every
    return {
        "config": to_dict(population.config),
        "space": described(space),
        "members": population.members,
        "exploit_every": every if every is None else float(every),
        "objective": str(objective),
    }


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs of two definitions, as text; empty if nothing does."""
    now = json.loads(json.dumps(now))
    return ", ".join(f"another {name}" for name in now if before.get(name) != now[name])


def _check_data(log: _Log, group: Group) -> None:
    """Notes the data that it begins with; UserError if it has begun with others."""
    base = group.experiment
    images = {"train": base.train.size} | {name: each.size for name, each in base.judged.items()}
    pixels = [each.tolist() for each in group.pixels]
    record = log.record()
    before = record.get("images", images), record.get("pixels", pixels)
    # Other machines may round sums otherwise.
    if before[0] != images or not np.allclose(before[1], pixels, rtol=1e-4, atol=1e-6):
        raise UserError(
            f"the data have changed since {log.folder} began: bring back what there was, or give "
            "another --workdir"
        )
    log.note(images=images, pixels=pixels)


def _closing(
    result: dict[str, Any], population: Population, objective: Objective, folder: Path
) -> str:
    final, seconds = result["final"], result["seconds"]
    return (
        f"{objective} {result['score']:.4f} of {population.members} members, at the end with "
        f"{shown(result['numbers'])}; "
        f"{closing_line(final['split'], final, seconds, folder / 'best')}"
    )
