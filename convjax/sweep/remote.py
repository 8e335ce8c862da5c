"""The far end of a sweep: an attempt at a trial, on a machine that another one has sent it to.

    ended = attempt(order)          # in a task of Ray, or a job of Slurm

It trains in a process of its own (`python -m convjax.sweep.remote`), so that what ends that one is
known here by its signal, and what ends this one ends that too. The note that came before the order
lies in the shared folder: what it says is obeyed while the process trains.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from filelock import FileLock, Timeout

from convjax import interrupts
from convjax.flags import leave
from convjax.names import trust_only
from convjax.sweep.trial import Outcome, cause_of
from convjax.sweep.worker import trained

PARTING = 60.0  # seconds in which a trial that is to end is saved
_MOMENT = 1.0  # seconds between two looks at the note
_SIGKILL_OF_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Order(NamedTuple):
    """An attempt that is to be made; all folders and files are those that every machine sees.

    token: that of the note, while this attempt is the one that is to be made.
    config: that of the trial. folder: for its run. log: for what the attempt tells.
    note: the file that says whether it is to go on.
    trusted: for `convjax.names.trust_only`, None for all.
    place: the working folder, where it is there. environment: what is set beside the machine's.
    cores: how many of the machine's to take; None for all that this process may use.
    """

    token: str
    config: dict[str, Any]
    folder: str
    log: str
    note: str
    trusted: list[str] | None
    place: str
    environment: dict[str, str]
    cores: int | None


class Ended(NamedTuple):
    """How an attempt ended: as `Outcome` has it, why, and with what result."""

    outcome: str
    cause: str | None
    result: Any = None


def attempt(order: Order, asked: Callable[[], str | None] = lambda: None) -> Ended:
    """Makes an attempt; whatever comes of it is returned, and nothing is raised.

    asked: gives why it is to end, once it is; asked every second.
    """
    try:
        return _made(order, asked)
    except Exception as error:
        return Ended(*cause_of(error))


def told(order: Order) -> str | None:
    """Why the attempt is to end, as its note says; None while it is to go on.

    Raises:
        OSError, ValueError: if the note cannot be read, as may be for a moment.
    """
    note = json.loads(Path(order.note).read_text("utf-8"))
    if note["token"] != order.token:
        return "another attempt at the trial was begun"
    return note["end"]


def _made(order: Order, asked: Callable[[], str | None]) -> Ended:
    host = socket.gethostname()
    with contextlib.ExitStack() as held:
        try:
            if why := told(order):
                return Ended(Outcome.INTERRUPTED, why)
            log = held.enter_context(open(order.log, "ab", buffering=0))
        except OSError as error:
            text = f"{host} cannot use {error.filename} ({error.strerror}): give a --workdir on"
            return Ended(Outcome.INTERRUPTED, f"{text} a file system that all machines see")
        log.write(f"on {host}, process {os.getpid()}\n".encode())
        cores = held.enter_context(_free_cores(order.cores))
        answer = held.enter_context(tempfile.TemporaryFile())
        process = held.enter_context(_started(order, log, answer))
        assert process.stdin is not None
        words = {**order._asdict(), "cores": cores, "parent": os.getpid()}
        process.stdin.write(json.dumps(words).encode() + b"\n")
        process.stdin.flush()
        was_asked = _wait(process, lambda: asked() or _told_if_readable(order))
        answer.seek(0)
        text = answer.read()
    if not text:
        return Ended(*cause_of(process.returncode, asked=was_asked))
    return Ended(*json.loads(text))


def _started(order: Order, log: IO[bytes], answer: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "convjax.sweep.remote"],
        stdin=subprocess.PIPE,
        stdout=answer,
        stderr=log,
        cwd=order.place if os.path.isdir(order.place) else None,
        env=os.environ | order.environment,
        # What a scheduler sends to a group of processes is this one's to hand on.
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], asked: Callable[[], str | None]) -> bool:
    """Waits until it has ended; has it end when that is asked for; whether that was so."""
    end = None
    while process.poll() is None:
        if end is None and asked():
            end = time.monotonic() + PARTING
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"end\n")
                process.stdin.flush()
        if end is not None and time.monotonic() > end:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_MOMENT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # What it has started, and left.
    return end is not None


def _told_if_readable(order: Order) -> str | None:
    # A network file system may fail for a moment, which is no reason to end.
    with contextlib.suppress(OSError, ValueError):
        return told(order)
    return None


@contextlib.contextmanager
def _free_cores(count: int | None) -> Iterator[list[int] | None]:
    """So many cores that no other attempt of this user has; None if there are not so many."""
    if count is None or not hasattr(os, "sched_getaffinity"):
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"convjax-cores-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for core in sorted(os.sched_getaffinity(0)):
            if len(found) == count:
                break
            with contextlib.suppress(Timeout):
                held.enter_context(FileLock(folder / f"{core}.lock").acquire(timeout=0))
                found.append(core)
        yield found if len(found) == count else None


# -- In the process that trains --------------------------------------------------------------------


def main() -> None:
    """Trains what standard input says, and writes how it ended to standard output."""
    order = json.loads(sys.stdin.readline())
    _end_with(order["parent"])
    _hear_only_ctrl_c()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print goes to the log.
    if order["cores"]:  # Before JAX counts them.
        os.sched_setaffinity(0, order["cores"])
    if order["trusted"] is not None:
        trust_only(order["trusted"])
    with interrupts.handled():
        threading.Thread(target=_obey, daemon=True).start()
        ended = _trained(order)
    with answer:
        json.dump(ended, answer)
    leave(128 + signal.SIGINT if ended.outcome == Outcome.INTERRUPTED else 0)


def _trained(order: dict[str, Any]) -> Ended:
    try:
        return Ended(Outcome.FINISHED, None, trained(order["config"], order["folder"]))
    except BaseException as error:
        traceback.print_exc()
        return Ended(*cause_of(error))


def _obey() -> None:
    """Ends this process: in good order if it is told to, at once if whoever started it is gone."""
    if sys.stdin.readline():
        os.kill(os.getpid(), signal.SIGINT)
    else:
        os._exit(128 + signal.SIGKILL)


def _end_with(parent: int) -> None:
    """Has the kernel end this process with that one, be it in the depths of a library."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGKILL_OF_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)


def _hear_only_ctrl_c() -> None:
    """Leaves one signal, which `_obey` sends: a second one would end the process unsaved.

    Slurm may send its own to all processes of a job, and Ray starts its own with some blocked.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if __name__ == "__main__":
    main()
