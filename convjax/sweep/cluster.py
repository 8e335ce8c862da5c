"""A sweep on other machines: its trials are claimed here, and made there.

    with make("slurm", store, sweep, count=40, gpus=1, slurm={"partition": "gpu"}) as cluster:
        while store.counts(sweep).get("waiting"):
            cluster.look_after()            # sends trials, commits what came of them

The record stays on this machine's terms: no other process writes to it. The others see the folder
of the sweep, in which the runs lie, the logs, and for each trial that was sent a note:

    tasks/NAME.json         who is to make an attempt at it, as what job, and why it is to end

A task that finds another token in the note than its own, or an end, saves its run and ends; so two
never go on with one run for long, be there locks on the file system or not.
"""

from __future__ import annotations

import importlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from convjax import durable, interrupts
from convjax.config import UserError
from convjax.names import trusted
from convjax.sweep import remote
from convjax.sweep.remote import Ended, Order
from convjax.sweep.store import Claim, Store
from convjax.sweep.trial import Outcome
from convjax.sweep.worker import results_of

ENGINES = ("ray", "slurm")

_PARTING = remote.PARTING + 10  # seconds in which a task that is to end does
_MOMENT = 1.0  # seconds between two looks at what runs
_PAUSE = 10.0  # seconds after a task that could not be sent
_STILLBORN = 3  # tasks in a row that end before they begin
_PASSED_ON = ("CONVJAX_", "JAX_", "PYTHONPATH", "XLA_")


class Tasks(Protocol):
    """What runs attempts elsewhere: Ray or Slurm."""

    def send(self, order: Order, /) -> Any:
        """The task that makes this attempt; raises UserError if it is not taken."""
        ...

    def ended(self, task: Any, /) -> Ended | None:
        """How a task has ended; None while it has not."""
        ...

    def kill(self, task: Any, /) -> None:
        """Ends a task at once; `ended` says when it has."""
        ...

    def job_of(self, task: Any, /) -> str | None:
        """By what another process finds the task; None if it does not outlive this one."""
        ...

    def found(self, job: str, /) -> Any:
        """The task of which `job_of` has given this."""
        ...

    def close(self) -> None:
        """Lets go of what was taken to reach the machines."""
        ...


def make(
    name: str,
    store: Store,
    sweep: int,
    count: int,
    *,
    hang_after: float = 3600.0,
    cpus: int = 1,
    gpus: int = 0,
    address: str | None = None,
    slurm: Mapping[str, Any] | None = None,
) -> Cluster:
    """What has the trials of a sweep run by Ray or Slurm, as `processes.Workers` does here.

    name: ray or slurm. count: of trials that run or wait for a machine at once.
    hang_after: seconds without a new line of metrics after which a trial that was begun is taken to
        hang.
    cpus, gpus: of each trial.
    address: of a Ray cluster, see `convjax.sweep.cluster_ray`.
    slurm: options of sbatch, see `convjax.sweep.cluster_slurm`.

    Raises:
        UserError: if one of them is not installed or cannot be reached, or has no such option.
    """
    if name not in ENGINES:
        raise ValueError(f"{name!r} is no engine for clusters: give one of {', '.join(ENGINES)}")
    if cpus < 1 or gpus < 0:
        raise UserError(f"--cpus={cpus} --gpus={gpus}: give at least 1 and 0 for each trial")
    if name == "ray" and slurm:
        raise UserError(f"--slurm={next(iter(slurm))}: --engine=ray has no options of sbatch")
    if name == "slurm" and address is not None:
        raise UserError(f"--address={address} is that of a Ray cluster: give --engine=ray")
    _need({"ray": "ray", "slurm": "submitit"}[name], name)
    if name == "ray":
        from convjax.sweep.cluster_ray import RayTasks

        tasks: Tasks = RayTasks(address, cpus, gpus)
    else:
        from convjax.sweep.cluster_slurm import SlurmTasks

        tasks = SlurmTasks(store.folder / "slurm", slurm or {}, cpus, gpus)
    return Cluster(store, sweep, count, hang_after, tasks)


class Cluster:
    """So many tasks at once; use it in a `with`, after which none is left."""

    def __init__(self, store: Store, sweep: int, count: int, hang_after: float, tasks: Tasks):
        self._store, self._sweep, self._count, self._tasks = store, sweep, count, tasks
        self._hang_after = hang_after
        self._name = uuid.uuid4().hex
        self._notes = store.folder.absolute() / "tasks"
        self._pruning = _pruning(store, sweep)
        self._sent: dict[str, _Sent] = {}
        self._strays: dict[str, _Sent] = {}
        self._stillborn, self._any_began = 0, False
        self._next_look = self._next_send = 0.0

    def __enter__(self) -> Self:
        self._notes.mkdir(exist_ok=True)
        for file in self._notes.glob("*.json"):
            note = json.loads(file.read_text("utf-8"))
            if note["job"] is not None:
                self._strays[file.stem] = self._found(file, note)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            for sent in (*self._strays.values(), *self._sent.values()):
                sent.end("the sweep was ended")
                if not sent.begun():
                    self._tasks.kill(sent.task)
            end = time.monotonic() + _PARTING
            while self._sent and time.monotonic() < end:
                time.sleep(_MOMENT / 10)
                self._collect()
            for sent in list(self._sent.values()):
                self._tasks.kill(sent.task)
                ended = Ended(Outcome.INTERRUPTED, f"did not end in {_PARTING:.0f} s")
                self._close(sent, ended)
        finally:
            self._tasks.close()

    def look_after(self) -> None:
        """Commits what came of tasks, ends what hangs or is pruned, and sends what waits.

        Raises:
            UserError: if tasks end before they begin, or none is taken.
        """
        with interrupts.handled() as signals, signals.held():
            self._collect()
            if time.monotonic() > self._next_look:
                self._next_look = time.monotonic() + _MOMENT
                for sent in (*self._sent.values(), *self._strays.values()):
                    self._watch(sent)
            # Of a process that was killed: its tasks are no fault of their trials.
            self._store.close_killed(Outcome.INTERRUPTED, but=[self._name])
            signals.check()
            while len(self._sent) < self._count and time.monotonic() > self._next_send:
                claim = self._store.claim(self._sweep, self._name, closes=False)
                if claim is None:
                    break
                self._send(claim)
                signals.check()

    # What these are made of.

    def _collect(self) -> None:
        for sent in list(self._sent.values()):
            if ended := self._tasks.ended(sent.task):
                self._close(sent, ended)

    def _close(self, sent: _Sent, ended: Ended) -> None:
        """Commits how a task has ended, and has no note of it any more."""
        assert sent.claim is not None
        name, begun = sent.claim.trial.name, sent.begun()
        outcome, cause = Outcome(ended.outcome), ended.cause or ""
        # First: were a process killed in between, the next one would take an old job for its own.
        sent.note.unlink(missing_ok=True)
        del self._sent[name]
        with sent.claim as claim:
            if outcome == Outcome.FINISHED:
                claim.finish(ended.result)
            elif sent.verdict is not None:
                claim.fail(*sent.verdict, results_of(claim.folder) if sent.pruned else None)
            elif not begun:
                claim.fail(Outcome.INTERRUPTED, cause)
            else:
                claim.fail(outcome, cause, ended.result)
        self._count_stillborn(begun or sent.ends, cause)

    def _count_stillborn(self, begun: bool, cause: str) -> None:
        self._any_began |= begun
        self._stillborn = 0 if begun else self._stillborn + 1
        if self._stillborn == _STILLBORN:
            raise UserError(
                f"{_STILLBORN} tasks in a row ended before they began, the last so: {cause}"
            )

    def _watch(self, sent: _Sent) -> None:
        """Ends a task that hangs, or whose trial is to be pruned."""
        quiet = sent.quiet()
        if quiet > self._hang_after and sent.verdict is None:
            sent.verdict = (Outcome.HUNG, f"no line of metrics in {quiet:.0f} seconds")
            self._tasks.kill(sent.task)
        for line in sent.new_lines():
            if self._pruning is None or sent.claim is None or sent.ends:
                continue
            if why := self._pruning.report(sent.claim, line["step"], {line["split"]: line}):
                sent.verdict = (Outcome.PRUNED, why)
                sent.end(why)

    def _send(self, claim: Claim) -> None:
        """Has the trial run elsewhere, if no job that an earlier process sent does already."""
        note, log = self._notes / f"{claim.trial.name}.json", claim.log.absolute()
        if stray := self._strays.pop(claim.trial.name, None):
            log.write_text(f"job {self._tasks.job_of(stray.task)} goes on, and tells {stray.log}\n")
            stray.claim = claim
            self._sent[claim.trial.name] = stray
            return
        names = trusted()
        order = Order(
            token=uuid.uuid4().hex,
            config=claim.trial.config,
            folder=str(claim.folder.absolute()),
            log=str(log),
            note=str(note),
            trusted=None if names is None else sorted(names),
            place=os.getcwd(),
            environment={k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)},
            cores=None,
        )
        # What is killed before it has noted the job leaves one whose token the next one replaces.
        sent = _Sent(None, note, order.token, log, claim.folder / "metrics.jsonl", claim)
        sent.write()
        try:
            sent.task = self._tasks.send(order)
        except UserError as error:
            with claim:
                claim.fail(Outcome.INTERRUPTED, str(error))
                note.unlink(missing_ok=True)
            if not self._any_began and not self._sent:
                raise
            self._next_send = time.monotonic() + _PAUSE
            self._count_stillborn(bool(self._sent), str(error))
            return
        self._sent[claim.trial.name] = sent
        sent.job = self._tasks.job_of(sent.task)
        sent.write()

    def _found(self, file: Path, note: Mapping[str, Any]) -> _Sent:
        folder = self._store.folder / "trials" / file.stem
        return _Sent(
            self._tasks.found(note["job"]),
            *(file, note["token"], Path(note["log"]), folder / "metrics.jsonl"),
            job=note["job"],
            why=note["end"],
        )


@dataclass
class _Sent:
    """A task, and what its trial has told; claim is None while an earlier process's job has it."""

    task: Any
    note: Path
    token: str
    log: Path
    metrics: Path
    claim: Claim | None = None
    job: str | None = None
    why: str | None = None
    verdict: tuple[Outcome, str] | None = None
    _file: int = 0
    _read: int = 0
    _seen: Any = None
    _changed: float = 0.0

    @property
    def pruned(self) -> bool:
        """Whether its trial is to be pruned."""
        return self.verdict is not None and self.verdict[0] == Outcome.PRUNED

    @property
    def ends(self) -> bool:
        """Whether it was told to end."""
        return self.why is not None

    def begun(self) -> bool:
        """Whether it is known to have begun, and not to wait for a machine."""
        return self.log.exists()

    def end(self, why: str) -> None:
        """Tells the task to end."""
        self.why = why
        self.write()

    def write(self) -> None:
        """Writes the note."""
        note = {"token": self.token, "job": self.job, "end": self.why, "log": str(self.log)}
        durable.replace(self.note, json.dumps(note).encode())

    def quiet(self) -> float:
        """Seconds since the last line of metrics was seen, by this machine's clock."""
        found = self.metrics.stat() if self.metrics.exists() else None
        seen = self.begun(), found and (found.st_size, found.st_mtime_ns)
        if seen != self._seen:
            self._seen, self._changed = seen, time.monotonic()
        return time.monotonic() - self._changed if self.begun() else 0.0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics that are there since the last time."""
        if not self.metrics.exists():
            return
        with open(self.metrics, "rb") as file:
            # A run that goes on from a checkpoint has another file, without what came after it.
            which = os.fstat(file.fileno()).st_ino
            self._read = file.seek(self._read if which == self._file else 0)
            self._file = which
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        yield from map(json.loads, filter(None, whole.split(b"\n")))


def _pruning(store: Store, sweep: int) -> Any:
    """What says which trials are to be pruned; None for a sweep that prunes none."""
    definition = store.definition(sweep)
    if not definition.get("pruner"):
        return None
    from convjax.sweep.pruner import Pruning

    return Pruning(store, sweep, definition)


def _need(module: str, extra: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(
            f"--engine={extra} needs {module}: pip install 'convjax[{extra}]'"
        ) from None
