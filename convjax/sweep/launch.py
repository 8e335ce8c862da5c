"""A sweep from its definition to its results: asks for points, has their trials run, and tells.

    print(launch(Sweep(["optimizer.learning_rate=log(1e-4, 1e-1)"], trials=20), "sweeps/rates"))

The same again goes on where it stopped: what is finished stays, what was killed goes on from its
own checkpoint.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Collection, Sequence
from typing import TextIO

from convjax import interrupts
from convjax.config import UserError, digest, to_dict
from convjax.ownership import owned
from convjax.sweep import objective as objectives
from convjax.sweep import sampler as samplers
from convjax.sweep.objective import Objective
from convjax.sweep.processes import Workers
from convjax.sweep.sampler import Sampler, Told
from convjax.sweep.space import Point, Space, Sweep, check, described, resolve, shown, space_of
from convjax.sweep.store import Store
from convjax.sweep.table import best, by_point, value_of, write_csv
from convjax.sweep.trial import Outcome, Row, Trial

_MOMENT = 0.2  # seconds between two looks at the record
_BAD = ("failed", "diverged", "out_of_memory", "hung", "killed")


def launch(
    sweep: Sweep,
    folder: str | os.PathLike[str],
    *,
    workers: int = 1,
    hang_after: float = 3600.0,
    fail_fast: bool = False,
    retry: Collection[Outcome] = (),
    out: TextIO | None = None,
) -> str:
    """Runs all trials of a sweep in processes of this machine; returns the closing line.

    folder: of the record and of all runs. Another sweep over it, of the same trials or more, takes
        what is there.
    hang_after: seconds without a new line of metrics after which a trial is taken to hang.
    fail_fast: ends the sweep at the first trial that fails or diverges, of those run now.
    retry: the outcomes of trials that are run once more.
    out: where results are told as they come, by default standard output.

    Raises:
        UserError: if the sweep cannot be run, before anything is; if another process runs one in
            the folder; with fail_fast.
    """
    begun = time.monotonic()
    told = sys.stdout if out is None else out
    parts = _parts(sweep)
    with interrupts.handled(), Store(folder) as store, owned(store.folder):
        run = _Run(sweep, parts, store, told)
        # An earlier launch was killed with all of its workers, which is no fault of their trials.
        store.close_killed(Outcome.INTERRUPTED)
        store.retry(run.number, retry)
        try:
            with Workers(store, run.number, workers, hang_after) as pool:
                while not run.is_done(ahead=workers):
                    pool.look_after()
                    run.tell()
                    if fail_fast and (bad := run.first_bad()):
                        raise UserError(f"--fail_fast: {bad}")
                    time.sleep(_MOMENT)
        finally:
            run.end()
        return f"{run.summary()}, {time.monotonic() - begun:.1f} s, {store.folder}"


def plan(sweep: Sweep) -> str:
    """What a sweep would run, as text; UserError if it cannot be run."""
    _, objective, sampler = _parts(sweep)
    asked: list[Told] = []
    for number in itertools.count() if sweep.trials is None else range(sweep.trials):
        point = sampler.ask(number, asked)
        if point is None:
            break
        asked.append(Told(point))
    lines = [f"  {shown(each.point)}" for each in asked[:20]]
    more = [f"  and {len(asked) - 20} more"] if len(asked) > 20 else []
    trials = len(asked) * sweep.seeds
    first = f"{len(asked)} points by {sweep.sampler}, {sweep.seeds} seeds each: {trials} trials"
    about = "as long as no result is known" if sweep.sampler in ("tpe", "cmaes", "gp") else ""
    return "\n".join([f"{first}, {objective} {about}".rstrip(), *lines, *more])


class _Run:
    """A sweep while it runs."""

    def __init__(self, sweep: Sweep, parts: _Parts, store: Store, out: TextIO):
        self.sweep, self.store, self.out = sweep, store, out
        space, self.objective, self.sampler = parts
        self.all_asked = False
        self.number = store.sweep(
            {
                "config": to_dict(sweep.config),
                "space": described(space),
                "sampler": sweep.sampler,
                "seeds": sweep.seeds,
                "objective": str(self.objective),
            }
        )
        self.rows = self.store.rows(self.number)
        self.before = {row.trial.digest for row in self.rows if _is_over(row)}
        self.ended = set(self.before)
        if self.ended:
            text = f"going on with {len(self.ended)} of {len(self.rows)} trials done"
            print(f"{text} in {self.store.folder}", file=self.out, flush=True)

    def is_done(self, ahead: int) -> bool:
        """Asks for points until enough trials wait; whether there is nothing left to do."""
        self.rows = self.store.rows(self.number)
        while not self.all_asked:
            waiting = sum(row.state == "waiting" for row in self.rows)
            if waiting >= ahead:
                break
            self._ask()
        return self.all_asked and all(map(_is_over, self.rows))

    def _ask(self) -> None:
        """Adds the trials of one more point."""
        seeds = self.sweep.seeds
        told = [each.told for each in by_point(self.rows, seeds, self.objective)]
        number = len(told)
        enough = self.sweep.trials is not None and number >= self.sweep.trials
        point = None if enough else self.sampler.ask(number, told)
        if point is None:
            self.all_asked = True
            return
        self.store.add(self.number, self._trials(point, number))
        self.rows = self.store.rows(self.number)

    def _trials(self, point: Point, number: int) -> Sequence[Trial]:
        config, seeds = self.sweep.config, self.sweep.seeds
        found = []
        for seed in range(config.seed, config.seed + seeds):
            resolved = resolve(config, point, seed)
            place = number * seeds + seed - config.seed
            found.append(Trial(digest(resolved), point, seed, to_dict(resolved), place))
        return found

    def tell(self) -> None:
        """Tells of each trial that has ended since the last time, and writes the table."""
        over = [row for row in self.rows if _is_over(row) and row.trial.digest not in self.ended]
        for row in over:
            self.ended.add(row.trial.digest)
            what = _what(row, self.objective)
            where = f"{shown(row.trial.point)}, seed {row.trial.seed}"
            count = f"{len(self.ended)}/{len(self.rows)}"
            print(f"{count} {row.trial.name} {what} at {where}", file=self.out, flush=True)
        if over:
            write_csv(self.store, self.rows, self.objective)

    def end(self) -> None:
        """Tells and writes how it stands, once no worker is left."""
        self.rows = self.store.rows(self.number)
        self.tell()
        write_csv(self.store, self.rows, self.objective)

    def first_bad(self) -> str | None:
        """The first trial that failed in this launch, with its cause; None if there is none."""
        now = (row for row in self.rows if row.trial.digest not in self.before)
        bad = next((row for row in now if row.state in ("failed", "diverged")), None)
        return bad and f"{bad.trial.name} {_what(bad, self.objective)}; its log is {_log(bad)}"

    def summary(self) -> str:
        """The closing line, but for time and folder."""
        results = by_point(self.rows, self.sweep.seeds, self.objective)
        found = best(results, self.objective)
        states = [row.state for row in self.rows]
        bad = [f"{states.count(state)} {state}" for state in _BAD if state in states]
        count = f"{len(results)} points x {self.sweep.seeds} seeds"
        return ", ".join([f"{self.objective} {found or 'of no trial'}", count, *bad])


_Parts = tuple[Space, Objective, Sampler]


def _parts(sweep: Sweep) -> _Parts:
    """Space, objective and sampler of a sweep, once they are known to be right."""
    samplers.check_name(sweep.sampler)
    if sweep.trials is None and sweep.sampler != "grid":
        raise UserError(f"--trials is missing: give a number of points for {sweep.sampler}")
    space, objective = space_of(sweep.vary), objectives.parse(sweep.objective)
    objective.check(sweep.config)
    check(space, sweep.config, sweep.seeds)
    seed, direction = sweep.config.seed, objective.direction
    return space, objective, samplers.make(sweep.sampler, space, seed, direction)


def _is_over(row: Row) -> bool:
    return row.state not in ("waiting", "running")


def _what(row: Row, objective: Objective) -> str:
    value = value_of(row, objective)
    if row.state == "finished" and value is not None:
        return f"{objective.split} {objective.metric} {value:.4f}"
    cause = row.attempts[-1].cause if row.attempts else None
    return f"{row.state}: {cause}" if cause else row.state


def _log(row: Row) -> str:
    return str(row.attempts[-1].log) if row.attempts else "not there"
