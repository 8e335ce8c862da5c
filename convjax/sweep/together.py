"""Trials of a sweep that train by one program, as far as they can share one.

    with Together(store, sweep, worker, pruning) as together:
        together.train(claim)           # it, and others like it for as long as there are any

Each trial is claimed, logged and committed by itself, and its run is a folder like any other.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Self, TextIO

from convjax import compiler, interrupts
from convjax.allocator import keep_freed_memory
from convjax.config import Experiment, from_dict
from convjax.runlog import RunLog
from convjax.sitting import opened
from convjax.sweep.group import can_share
from convjax.sweep.members import Member, Members
from convjax.sweep.places import Run
from convjax.sweep.pruner import Pruning
from convjax.sweep.store import Claim, Store
from convjax.sweep.trial import Outcome, Row, Trial, cause_of
from convjax.sweep.worker import attempted, results_of, train_alone
from convjax.training.fit import Fitting

_ENOUGH = 256  # trials to choose the next ones from
_LOOK = 1.0  # seconds in which they are looked for
_KEPT = 4  # structures whose programs and images stay in memory


@contextlib.contextmanager
def ready_for(
    config: dict[str, Any] | None, places: int | None, cores: Collection[int]
) -> Iterator[list[Members]]:
    """Has the programs of such trials compiled, before there is one; for `Together`.

    What goes wrong is told by the trial that meets it again.

    config: as `to_dict` gives it. places: as for Together. cores: which compile.
    """
    with interrupts.handled() as signals:
        keep_freed_memory()
        compiler.keep_programs()
        compiler.compile_on(cores)
        found: list[Members] = []
        with contextlib.suppress(Exception):
            if config is not None and can_share(from_dict(config)):
                members = Members(from_dict(config), signals, places=places)
                members.prepare()
                found.append(members)
        yield found


class Together:
    """Trains trials for a worker; use it in a `with`.

    places: how many at once; None measures how many pay.
    ready: what `ready_for` gives.
    """

    def __init__(
        self,
        store: Store,
        sweep: int,
        worker: str,
        pruning: Pruning,
        places: int | None = None,
        ready: Sequence[Members] = (),
    ):
        self._store, self._sweep, self._worker = store, sweep, worker
        self._pruning, self._asked = pruning, places
        self._members = list(ready)  # those used last come first
        self._open = contextlib.ExitStack()
        self._waiting: dict[int, Trial] = {}
        self._known: dict[Members, dict[str, bool]] = {}
        self._mark: int | None = None
        self._out_of_memory = False

    def __enter__(self) -> Self:
        keep_freed_memory()
        compiler.keep_programs()
        self._signals = self._open.enter_context(interrupts.handled())
        return self

    def __exit__(self, *exception: Any) -> None:
        for members in self._members:
            members.close()
        self._open.__exit__(*exception)

    def train(self, claim: Claim) -> bool:
        """Trains a trial, and those that wait and can share its program.

        Returns whether one of them ran out of memory, after which this process should end.

        Raises:
            Interrupted: after a signal, once all that train are saved.
        """
        config = from_dict(claim.trial.config)
        if not can_share(config) or self._is_suspect(claim):
            return train_alone(claim, self._pruning)
        with self._signals.held():
            try:
                members = self._members_for(config)
            except BaseException as error:
                with attempted(claim):
                    raise error
                return cause_of(error)[0] == Outcome.OUT_OF_MEMORY
            members.train(
                self._run(claim, config, members),
                lambda: self._next(members),
                lambda: len(self._like(members)),
            )
        self._signals.check()
        return self._out_of_memory

    def _members_for(self, config: Experiment) -> Members:
        """The runs that this one is like; UserError if its config cannot be run."""
        found = next((each for each in self._members if each.takes(config)), None)
        if found is None:
            found = Members(config, self._signals, places=self._asked)
        else:
            self._members.remove(found)
        self._members.insert(0, found)
        for members in self._members[_KEPT:]:
            members.close()
            self._known.pop(members, None)
        del self._members[_KEPT:]
        return found

    def _next(self, members: Members) -> Run | None:
        """A trial that waits and is like the others; None if there is none."""
        # After one has met the end of the memory, no other is to.
        like = [] if self._out_of_memory else self._like(members)
        claim = self._store.claim(self._sweep, self._worker, among=like, closes=False)
        return self._run(claim, from_dict(claim.trial.config), members) if claim else None

    def _like(self, members: Members) -> list[str]:
        """The digests of trials that wait and can share the program."""
        changed, self._mark = self._store.changes(self._sweep, self._mark)
        for row in changed:
            self._waiting.pop(row.trial.number, None)
            if row.state == "waiting" and not _has_ended_a_worker(row):
                self._waiting[row.trial.number] = row.trial
        found, end = [], time.monotonic() + _LOOK
        for trial in self._waiting.values():
            if self._is_like(trial, members):
                found.append(trial.digest)
            # To tell may take a tenth of a second, for which those that train stand still.
            if len(found) == _ENOUGH or (found and time.monotonic() > end):
                break
        return found

    def _is_like(self, trial: Trial, members: Members) -> bool:
        known = self._known.setdefault(members, {})
        if trial.digest not in known:
            known[trial.digest] = members.takes(from_dict(trial.config))
        return known[trial.digest]

    def _is_suspect(self, claim: Claim) -> bool:
        """Whether an earlier attempt has ended its process: no other is to suffer from it."""
        if claim.attempt == 1:
            return False
        rows = self._store.rows(self._sweep)
        return any(
            row.trial.digest == claim.trial.digest and _has_ended_a_worker(row) for row in rows
        )

    def _run(self, claim: Claim, config: Experiment, members: Members) -> Run:
        log = _Log()
        return Run(config, self._attempt(claim, config, members, log), log)

    def _attempt(self, claim: Claim, config: Experiment, members: Members, log: _Log) -> Fitting:
        """Trains the run of a claim, waiting for its steps, and commits what comes of it."""

        def report(step: int, results: Any) -> str | None:
            return self._pruning.report(claim, step, results)

        try:
            with attempted(claim) as log.file:
                try:
                    run = RunLog(claim.folder)
                    with opened(run, config) as todo:
                        if todo:
                            member = Member(members, config, run, log.file, self._signals, report)
                            yield from member.steps()
                    claim.finish(results_of(claim.folder))
                except Exception as error:
                    self._out_of_memory |= cause_of(error)[0] == Outcome.OUT_OF_MEMORY
                    raise
        except KeyboardInterrupt:
            return  # It is saved, and written down; the others are to be, too.


class _Log(io.TextIOBase):
    """The log of an attempt, once it is opened."""

    file: TextIO = sys.stderr

    def write(self, text: str) -> int:
        """Adds to it."""
        return self.file.write(text)


def _has_ended_a_worker(row: Row) -> bool:
    ends = (Outcome.KILLED, Outcome.OUT_OF_MEMORY, Outcome.HUNG)
    return any(attempt.outcome in ends for attempt in row.attempts)
