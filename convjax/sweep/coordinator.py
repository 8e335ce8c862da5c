"""A sweep while it runs: which points are asked for next, what is told, and when it is done.

run = Run(sweep, parts, store, number, engine, display)
while not run.is_done():                    # asks for points until enough trials wait
    pool.look_after()
    run.tell()
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from convjax.config import UserError, digest, to_dict
from convjax.sweep.display import BAD, Display, outcome_of
from convjax.sweep.engines import Engine
from convjax.sweep.objective import Objective
from convjax.sweep.progress import Progress, is_over
from convjax.sweep.sampler import Sampler, Told
from convjax.sweep.space import Point, Space, Sweep, resolve
from convjax.sweep.store import Store
from convjax.sweep.table import write_csv
from convjax.sweep.trial import Row, Trial

BY_RESULTS = ("tpe", "cmaes", "gp")  # samplers that go by what came of the points before
_MOMENT = 0.2  # seconds that may go into asking at once
_WRITING = 0.05  # the share of the time that may go into writing the table


class Parts(NamedTuple):
    """What a sweep is made of, once it is known to be right.

    points: how many there will be.
    definition: what the record knows the sweep by.
    """

    space: Space
    objective: Objective
    sampler: Sampler
    points: int
    definition: dict[str, Any]


class Run:
    """A sweep while it runs.

    bad: the first trial that failed or diverged in this launch, with its cause.
    """

    def __init__(
        self,
        sweep: Sweep,
        parts: Parts,
        store: Store,
        number: int,
        engine: Engine,
        display: Display,
    ):
        self.sweep, self.parts, self.store, self.number = sweep, parts, store, number
        self.display, self.bad = display, None
        self.workers, self.ahead = engine.count(sweep.config.parallel), engine.ahead
        self.progress = Progress(store, number, sweep.seeds, parts.objective)
        self.all_asked = False
        self._ended = {row.trial.number for row in self.progress.rows if is_over(row)}
        self._news: list[Row] = []
        self._unwritten, self._next_table = False, 0.0
        if self._ended:
            done = f"{len(self._ended)} of {self.total} trials done"
            display.note(f"going on with {done} in {store.folder}")

    @property
    def total(self) -> int:
        """How many trials there are, or will be."""
        there = len(self.progress.results)
        points = there if self.all_asked else max(there, self.parts.points)
        return points * self.sweep.seeds

    @property
    def finished(self) -> int:
        """How many trials have a result."""
        return self.progress.counts()["finished"]

    def is_done(self) -> bool:
        """Asks for points until enough trials wait; whether there is nothing left to do."""
        self._look()
        while not self.all_asked and self.progress.counts()["waiting"] < self.ahead:
            self._ask()
            self._look()
        return self.all_asked and self.progress.over() == len(self.progress.rows)

    def tell(self) -> None:
        """Shows how it stands, and writes the table now and then."""
        self.display.show(self.progress, self.total, self.workers, self._news)
        self._unwritten |= bool(self._news)
        self._news = []
        if self._unwritten and time.monotonic() > self._next_table:
            self._write()

    def end(self) -> None:
        """Tells and writes how it stands, once no worker is left."""
        self._look()
        self.tell()
        self._write()

    def write_page(self) -> None:
        """Writes `sweep.html`; that a library is missing, or room on the disk, ends no sweep."""
        from convjax.sweep.report import write_page

        try:
            write_page(self.store.folder, self.number)
        except (UserError, OSError) as error:
            self.display.note(f"sweep.html cannot be written: {error}")

    def summary(self) -> str:
        """The closing line, but for time and folder."""
        counts, best = self.progress.counts(), self.progress.best()
        other = [f"{counts[state]} {state}" for state in ("pruned", *BAD) if counts[state]]
        count = f"{len(self.progress.results)} points x {self.sweep.seeds} seeds"
        return ", ".join([f"{self.parts.objective} {best or 'of no trial'}", count, *other])

    def _look(self) -> None:
        """Takes in what has changed."""
        for row in self.progress.update():
            place = row.trial.number
            if is_over(row) and place not in self._ended:
                self._ended.add(place)
                self._news.append(row)
                if row.state in ("failed", "diverged") and self.bad is None:
                    what = outcome_of(row, self.parts.objective)
                    log = row.attempts[-1].log if row.attempts else "not there"
                    self.bad = f"{row.trial.name} {what}; its log is {log}"

    def _ask(self) -> None:
        """Adds points for as many trials as are to wait; where no result is asked, for a moment."""
        told, trials = self.progress.told(), list[Trial]()
        wanted = self.ahead - self.progress.counts()["waiting"]
        begun = time.monotonic()
        in_haste = self.sweep.sampler in BY_RESULTS
        while len(trials) < wanted or not (in_haste or time.monotonic() - begun > _MOMENT):
            enough = self.sweep.trials is not None and len(told) >= self.sweep.trials
            point = None if enough else self.parts.sampler.ask(len(told), told)
            if point is None:
                self.all_asked = True
                break
            trials += self._trials(point, len(told))
            told.append(Told(point))
        self.store.add(self.number, trials)

    def _trials(self, point: Point, number: int) -> Iterator[Trial]:
        config, seeds = self.sweep.config, self.sweep.seeds
        for seed in range(config.seed, config.seed + seeds):
            resolved = resolve(config, point, seed)
            place = number * seeds + seed - config.seed
            yield Trial(digest(resolved), point, seed, to_dict(resolved), place)

    def _write(self) -> None:
        """Writes the table, at most for a small share of the time: it grows with the sweep."""
        begun = time.monotonic()
        try:
            write_csv(self.store, self.progress.rows, self.parts.objective)
        except OSError as error:  # What the record holds is there all the same.
            self.display.note(f"results.csv cannot be written ({error.strerror})")
        now = time.monotonic()
        self._unwritten, self._next_table = False, now + (now - begun) / _WRITING
