"""What a trial is, how an attempt at it can end, and why it did.

cause_of(MemoryError())         # (Outcome.OUT_OF_MEMORY, "MemoryError")
cause_of(process.returncode)    # (Outcome.KILLED, "segmentation fault (SIGSEGV)")
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from convjax.config import UserError
from convjax.interrupts import Interrupted
from convjax.names import nearest
from convjax.sweep.database import FULL


class Trial(NamedTuple):
    """A point of a sweep's space with a seed.

    digest: of the resolved config, 64 hex digits: the trial's name, whatever sweep asks for it.
    point: dotted path to value, of what the sweep varies. seed: that of the config.
    config: the resolved config, as `convjax.config.to_dict` gives it.
    number: its place in the order of the sweep.
    """

    digest: str
    point: dict[str, Any]
    seed: int
    config: dict[str, Any]
    number: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.digest[:16]


class Outcome(StrEnum):
    """How an attempt at a trial ended.

    KILLED: by a signal of anybody but the sweep itself, which INTERRUPTED it.
    DISK_FULL: no room for what it has to write, and so none for the trials after it.
    """

    FINISHED = "finished"
    FAILED = "failed"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    HUNG = "hung"
    KILLED = "killed"
    PRUNED = "pruned"
    INTERRUPTED = "interrupted"
    DISK_FULL = "disk_full"


def outcomes(words: Sequence[str]) -> list[Outcome]:
    """The outcomes of these names; UserError, with the nearest right one, for what is none."""
    names = [str(each) for each in Outcome if each != Outcome.FINISHED]
    for word in words:
        if word not in names:
            raise UserError(f"--retry={','.join(words)}: {word!r}: {nearest(word, names)}")
    return [Outcome(word) for word in words]


class Attempt(NamedTuple):
    """An attempt at a trial; times are seconds since 1970, and None before there is one.

    number: 1 for the first. worker, host, process: who made it.
    heartbeat: when its run had last written a metric, once it has ended. log: for what it tells.
    """

    number: int
    worker: str
    host: str
    process: int
    began: float
    ended: float | None
    heartbeat: float | None
    outcome: Outcome | None
    cause: str | None
    log: Path


class Row(NamedTuple):
    """A trial of a sweep as it stands.

    state: 'waiting', 'running', or the Outcome with which it ended.
    result: of its last attempt, None without one.
    """

    trial: Trial
    state: str
    result: Any
    attempts: list[Attempt]


# What may have come from outside, such as from a neighbour that took all memory: worth another try.
AGAIN = (Outcome.KILLED, Outcome.OUT_OF_MEMORY, Outcome.HUNG)
# What says nothing of the trial: such an attempt does not count.
NO_FAULT = (Outcome.INTERRUPTED, Outcome.DISK_FULL)


def cause_of(end: BaseException | int, *, asked: bool = True) -> tuple[Outcome, str]:
    """How an attempt ended, and its cause in one line.

    end: what it raised; or how its process ended, as `subprocess` has it: an exit status, or a
        signal's number, negative.
    asked: whether the sweep may have asked it to end. If not, the signal for that has killed it,
        whether or not it has saved.

    >>> cause_of(-9)
    (<Outcome.KILLED: 'killed'>, 'killed (SIGKILL): out of memory?')
    """
    if isinstance(end, SystemExit) and isinstance(end.code, int):
        end = end.code
    outcome, cause = (
        _cause_of_status(end) if isinstance(end, int) else (_outcome_of(end), _line(end))
    )
    killed = outcome == Outcome.INTERRUPTED and not asked
    return Outcome.KILLED if killed else outcome, cause


def _outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, KeyboardInterrupt):
        return Outcome.INTERRUPTED
    # Errors of layers and of loaders are raised from those that caused them.
    for each in _chain(error):
        # By name: JAX is loaded by those who raise these, and is not for whoever reads a record.
        kinds = {kind.__name__ for kind in type(each).__mro__}
        if "Diverged" in kinds:
            return Outcome.DIVERGED
        if isinstance(each, MemoryError) or ("JaxRuntimeError" in kinds and _is_full(str(each))):
            return Outcome.OUT_OF_MEMORY
        if getattr(each, "errno", None) in FULL or any(text in str(each) for text in _NO_ROOM):
            return Outcome.DISK_FULL
    return Outcome.FAILED


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_full(text: str) -> bool:
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def _line(error: BaseException) -> str:
    known = isinstance(error, UserError | Interrupted) and str(error)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).removesuffix(":")


# TensorStore, which writes checkpoints, raises errors of no kind.
_NO_ROOM = [os.strerror(number) for number in FULL]
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def _cause_of_status(status: int) -> tuple[Outcome, str]:
    if status == 0:
        return Outcome.FAILED, "its process ended without a result"
    # A launcher that was asked to end has saved, and exits as a shell says it: 130 or 143.
    if -status in _INTERRUPTS or status - 128 in _INTERRUPTS:
        return Outcome.INTERRUPTED, f"ended by {signal.Signals(abs(status) % 128).name}"
    if status > 0:
        return Outcome.FAILED, f"its process ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # A real-time signal.
        return Outcome.KILLED, f"ended by signal {-status}"
    # The kernel ends by this who takes the last of the memory; so does a person.
    hint = ": out of memory?" if name == "SIGKILL" else ""
    return Outcome.KILLED, f"{(signal.strsignal(-status) or 'ended').lower()} ({name}){hint}"
