"""A sweep from its definition to its results: asks for points, has their trials run, and tells.

    print(launch(Sweep(["optimizer.learning_rate=log(1e-4, 1e-1)"], trials=20), "sweeps/rates"))

The same again goes on where it stopped: what is finished stays, what was killed goes on from its
own checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, TextIO

from convjax import interrupts
from convjax.config import Experiment, UserError, to_dict
from convjax.ownership import owned
from convjax.sweep import objective as objectives
from convjax.sweep import pruner as pruners
from convjax.sweep import sampler as samplers
from convjax.sweep.coordinator import BY_RESULTS, Parts, Run
from convjax.sweep.display import display_on
from convjax.sweep.distributions import SpaceError
from convjax.sweep.engines import Engine
from convjax.sweep.processes import Begun, environment_of
from convjax.sweep.rehearsal import rehearse
from convjax.sweep.sampler import Told
from convjax.sweep.space import (
    Space,
    Sweep,
    check,
    corners,
    described,
    grid,
    resolve,
    shown,
    space_of,
)
from convjax.sweep.store import Store
from convjax.sweep.trial import Outcome

_MOMENT = 0.2  # seconds between two looks at the record
_FEW = 20  # points of which a plan tells


class NothingFinished(UserError):
    """A sweep without a result; the message is its closing line."""


def launch(
    sweep: Sweep,
    folder: str | os.PathLike[str],
    *,
    engine: str | Engine = "auto",
    workers: int | None = None,
    hang_after: float = 3600.0,
    fail_fast: bool = False,
    retry: Collection[Outcome] = (),
    out: TextIO | None = None,
) -> str:
    """Runs all trials of a sweep; returns the closing line.

    folder: of the record and of all runs. Another sweep over it, of the same trials or more, takes
        what is there.
    engine: a name of `convjax.sweep.engines`, with `workers` and `hang_after` as an Engine has
        them; or one itself, without these.
    fail_fast: ends the sweep at the first trial that fails or diverges, of those run now.
    retry: the outcomes of trials that are run once more.
    out: where results are told as they come; by default a table on the terminal, or lines on
        standard output.

    Raises:
        UserError: if the sweep cannot be run, before anything is; if another process runs one in
            the folder; with fail_fast; NothingFinished, if no trial has.
    """
    begun, since = time.monotonic(), time.time()
    if not isinstance(engine, Engine):
        engine = Engine(engine, workers, hang_after)
    parts = _parts(sweep, engine)
    if (Path(folder) / "population.json").exists():
        raise UserError(f"{folder} is of a population: give another --workdir")
    engine = engine.of(parts.points * sweep.seeds, sweep.config.parallel)
    with contextlib.ExitStack() as held:
        held.enter_context(interrupts.handled())
        ready: list[Begun] = []
        if not _has_run(folder, parts.definition):
            # They get ready meanwhile, and train nothing before it is known that all can be.
            ready = held.enter_context(engine.begin(_one_of(sweep, parts)))
            _rehearse(sweep, parts, engine)
        store = held.enter_context(Store(folder))
        held.enter_context(owned(store.folder))
        number = store.sweep(parts.definition)
        # An earlier launch was killed with all of its workers, which is no fault of their trials.
        store.close_killed(Outcome.INTERRUPTED)
        store.retry(number, retry)
        display = held.enter_context(display_on(out))
        if idle := engine.idle(sweep.config.parallel):
            display.note(idle)
        run = Run(sweep, parts, store, number, engine, display)
        try:
            with engine.start(store, number, sweep.config, display.note, ready) as pool:
                try:
                    while not run.is_done():
                        pool.look_after()
                        run.tell()
                        store.check_room(since)
                        _check(run, fail_fast)
                        time.sleep(_MOMENT)
                    run.tell()
                    _check(run, fail_fast)  # Of the last one, too.
                except KeyboardInterrupt:
                    display.note("what is under way is saved; a second signal ends it at once")
                    raise
        finally:
            run.end()
        run.write_page()
        line = f"{run.summary()}, {time.monotonic() - begun:.1f} s, {store.folder}"
    if not run.finished:
        raise NothingFinished(line)
    return line


def _check(run: Run, fail_fast: bool) -> None:
    if fail_fast and run.bad:
        raise UserError(f"--fail_fast: {run.bad}")


def plan(sweep: Sweep, engine: str | Engine = "auto") -> str:
    """What a sweep would run, as text; UserError if it cannot be run."""
    engine = engine if isinstance(engine, Engine) else Engine(engine)
    parts = _parts(sweep, engine)
    engine = engine.of(parts.points * sweep.seeds, sweep.config.parallel)
    _rehearse(sweep, parts, engine)
    asked: list[Told] = []
    while len(asked) < min(parts.points, _FEW):
        point = parts.sampler.ask(len(asked), asked)
        if point is None:
            break
        asked.append(Told(point))
    points = parts.points
    pruned = f", pruned by {sweep.pruner}" if sweep.pruner else ""
    by_results = sweep.sampler in BY_RESULTS
    return "\n".join(
        [
            f"{points} points by {sweep.sampler}, {sweep.seeds} seeds each: "
            f"{points * sweep.seeds} trials, {parts.objective}{pruned}",
            engine.described(sweep.config.parallel),
            *(["points as they are while no result is known:"] if by_results else []),
            *(f"  {shown(each.point)}" for each in asked),
            *([f"  and {points - len(asked)} more"] if points > len(asked) else []),
        ]
    )


def report(folder: str | None) -> Path:
    """Writes `sweep.html` of the record in a folder, and returns its path."""
    if folder is None:
        raise UserError("--report: give --workdir=DIR, the folder of a sweep")
    from convjax.sweep.report import write_page

    return write_page(folder)


def _parts(sweep: Sweep, engine: Engine) -> Parts:
    engine.check()
    for number, name in ((sweep.seeds, "seeds"), (sweep.trials, "trials")):
        if number is not None and number < 1:
            raise UserError(f"--{name}={number}: give 1 or more")
    samplers.check_name(sweep.sampler)
    if sweep.trials is None and sweep.sampler != "grid":
        raise UserError(f"--trials is missing: give a number of points for {sweep.sampler}")
    space, objective = space_of(sweep.vary), objectives.parse(sweep.objective)
    objective.check(sweep.config)
    check(space, sweep.config, sweep.seeds)
    sampler = samplers.make(sweep.sampler, space, sweep.config.seed, objective.direction)
    sizes = [each for each in (sweep.trials, _size(space)) if each is not None]
    definition = {
        "config": to_dict(sweep.config),
        "space": described(space),
        "sampler": sweep.sampler,
        "pruner": sweep.pruner,
        "seeds": sweep.seeds,
        "objective": str(objective),
    }
    pruners.check(definition)
    return Parts(space, objective, sampler, min(sizes), definition)


def _size(space: Space) -> int | None:
    """How many points a space has; None for endless ones."""
    try:
        return len(grid(space))
    except SpaceError:
        return None


def _has_run(folder: str | os.PathLike[str], definition: dict[str, Any]) -> bool:
    """Whether a trial of this sweep has finished there, by which its networks can be built."""
    if not (Path(folder) / "sweep.db").is_file():
        return False
    with Store(folder) as store:
        return any(
            json.dumps(each, sort_keys=True) == json.dumps(definition, sort_keys=True)
            and "finished" in store.counts(number)
            for number, each in store.sweeps().items()
        )


def _one_of(sweep: Sweep, parts: Parts) -> Experiment:
    """The config of one of the trials."""
    return resolve(sweep.config, corners(parts.space)[0], sweep.config.seed)


def _rehearse(sweep: Sweep, parts: Parts, engine: Engine) -> None:
    """Builds a few of the networks; of a cluster only its machines know whether they can be."""
    if engine.is_here:
        share = engine.shares(sweep.config.parallel)[0]
        rehearse(parts.space, sweep.config, environment_of(share))
