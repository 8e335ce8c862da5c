"""Processes that work on a sweep, each with its share of this machine's cores and GPUs.

with Workers(store, sweep, count=4) as workers:
    while store.counts(sweep).get("waiting"):
        workers.look_after()                # closes what died, restarts it, ends what hangs
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from convjax.config import UserError
from convjax.names import trusted
from convjax.sweep.store import Store
from convjax.sweep.trial import Attempt, Outcome, Row, cause_of

_DEV = Path("/dev")
_PARTING = 70.0  # seconds in which a worker that is to end does
_STILLBORN = 3  # workers in a row that end before they take a trial


class Begun(NamedTuple):
    """A worker that is not told yet what to work on."""

    cores: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def begun(
    shares: Iterable[Mapping[str, str]], engine: str, config: dict[str, Any]
) -> Iterator[list[Begun]]:
    """Workers that get ready for such a trial, for `Workers`; none that it has left is left after.

    shares: what each has, as `shares` gives it.
    """
    found: list[Begun] = []
    try:
        for share in shares:
            nowhere = subprocess.DEVNULL
            found.append(Begun(share["cores"], _start(share, engine, config, nowhere, nowhere)))
        yield found
    finally:
        for each in found:
            _kill(each.process)
            assert each.process.stdin is not None
            with contextlib.suppress(OSError):
                each.process.stdin.close()


class Workers:
    """So many processes; use it in a `with`, after which none is left.

    ready: workers that have begun already, which are taken out of it.
    hang_after: seconds without a new line of metrics after which a trial is taken to hang.
    engine: what the workers are told about how to train, as `convjax.sweep.worker` knows it.
    all_gpus: whether a worker has its part of all GPUs, and not one alone.
    told: is told what workers print, line by line; what else there is lies in logs/workers.err.
    """

    def __init__(
        self,
        store: Store,
        sweep: int,
        count: int,
        hang_after: float,
        engine: str = "processes",
        *,
        all_gpus: bool = False,
        told: Callable[[str], None] = print,
        ready: list[Begun] | None = None,
    ):
        self._ready = [] if ready is None else ready
        self._store, self._sweep, self._hang_after = store, sweep, hang_after
        self._engine, self._told = engine, told
        logs = store.folder / "logs"
        logs.mkdir(exist_ok=True)
        # Files and no pipes: a worker may go on to save its run when nobody reads any more.
        self._out, self._err = logs / "workers.txt", logs / "workers.err"
        self._heard = self._out.stat().st_size if self._out.exists() else 0
        self._shares = list(shares(count, all_gpus=all_gpus))
        self._running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self._stillborn = 0
        self._mark = None
        self._under_way: dict[int, Row] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for _, process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()
        end = time.monotonic() + _PARTING
        for name, process in self._running.values():
            try:
                process.wait(max(end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                _kill(process)
                self._store.lost(name, Outcome.INTERRUPTED, f"did not end in {_PARTING:.0f} s")
            else:
                _kill(process)
                self._store.lost(name, *_parted(process.returncode))
        self._hear()

    def look_after(self) -> None:
        """Starts what is missing, notes what died and why, and ends what hangs.

        Raises:
            UserError: if workers end as they begin.
        """
        self._hear()
        for place, share in enumerate(self._shares):
            name, process = self._running.get(place, ("", None))
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                assert process.stdin is not None
                process.stdin.close()
                _kill(process)
                lost = self._store.lost(name, *cause_of(process.returncode, asked=False))
                # One that ran out of memory has closed its trial, and ends with 0.
                self._stillborn = self._stillborn + 1 if process.returncode and not lost else 0
                if self._stillborn == _STILLBORN:
                    raise UserError(
                        f"{_STILLBORN} workers in a row ended before they took a trial, the last "
                        f"with {cause_of(process.returncode)[1]}: {self._err} says why"
                    )
            self._running[place] = self._started(share)
        self._store.close_killed(but=[name for name, _ in self._running.values()])
        self._end_hanging()

    def _started(self, share: dict[str, str]) -> tuple[str, subprocess.Popen[bytes]]:
        for each in self._ready:
            if each.cores == share["cores"]:
                self._ready.remove(each)
                return self._told_what(each.process)
        with open(self._out, "ab") as out, open(self._err, "ab") as err:
            return self._told_what(_start(share, self._engine, None, out, err))

    def _told_what(self, process: subprocess.Popen[bytes]) -> tuple[str, subprocess.Popen[bytes]]:
        """A worker with its name, once it knows what to work on."""
        name = uuid.uuid4().hex
        files = {"out": str(self._out), "err": str(self._err)}
        folder = str(self._store.folder)
        _write(process, {"folder": folder, "sweep": self._sweep, "name": name, **files})
        return name, process

    def _hear(self) -> None:
        """Tells the whole lines that workers have printed since the last time."""
        with contextlib.suppress(FileNotFoundError), open(self._out, "rb") as file:
            file.seek(self._heard)
            lines = file.read().splitlines(keepends=True)
            for line in lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]:
                self._heard += len(line)
                self._told(line.decode(errors="replace").rstrip())

    def _end_hanging(self) -> None:
        under_way = self._open()
        for place, (worker, process) in list(self._running.items()):
            attempts = under_way.get(worker)
            if not attempts:
                continue
            quiet = time.time() - max(self._last_sign(*each) for each in attempts)
            if quiet > self._hang_after:
                assert process.stdin is not None
                process.stdin.close()
                _kill(process)
                del self._running[place]
                self._hung(worker, attempts, f"no line of metrics in {quiet:.0f} seconds")

    def _hung(self, worker: str, attempts: list[tuple[str, Attempt]], cause: str) -> None:
        """Closes what a worker that hung was at when it was ended."""
        left = self._open().get(worker, [])
        if {attempt.log for _, attempt in left} & {attempt.log for _, attempt in attempts}:
            self._store.lost(worker, Outcome.HUNG, cause)
        else:
            # It had gone on in the last moment, and what it has begun since is not to blame.
            cause = "its worker was ended for another trial, which seemed to hang"
            self._store.lost(worker, Outcome.INTERRUPTED, cause)

    def _open(self) -> dict[str, list[tuple[str, Attempt]]]:
        """The attempts under way of each worker, with the digests of their trials."""
        changed, self._mark = self._store.changes(self._sweep, self._mark)
        for row in changed:
            self._under_way.pop(row.trial.number, None)
            if row.state == "running":
                self._under_way[row.trial.number] = row
        found: dict[str, list[tuple[str, Attempt]]] = {}
        for row in self._under_way.values():
            for attempt in row.attempts:
                if attempt.outcome is None:
                    found.setdefault(attempt.worker, []).append((row.trial.digest, attempt))
        return found

    def _last_sign(self, digest: str, attempt: Attempt) -> float:
        """When an attempt had begun, or had last written a line of metrics."""
        with contextlib.suppress(FileNotFoundError):
            metrics = self._store.folder_of(digest) / "metrics.jsonl"
            return max(metrics.stat().st_mtime, attempt.began)
        return attempt.began


def _parted(status: int) -> tuple[Outcome, str]:
    """How the attempts of a worker ended that was asked to end."""
    return (Outcome.INTERRUPTED, "ended with the sweep") if status == 0 else cause_of(status)


def _start(
    share: Mapping[str, str], engine: str, config: dict[str, Any] | None, out: Any, err: Any
) -> subprocess.Popen[bytes]:
    """A worker that gets ready for trials of a config."""
    known = trusted()
    names = json.dumps(None if known is None else sorted(known))
    process = subprocess.Popen(
        [sys.executable, "-m", "convjax.sweep.worker", share["cores"], names, engine],
        bufsize=0,  # What one that has ended was not told is not kept for it.
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=err,
        env=os.environ | environment_of(share),
        # A Ctrl-C is this process's to hand on; and what a worker starts can end with it.
        start_new_session=True,
    )
    _write(process, config)
    return process


def _write(process: subprocess.Popen[bytes], line: Any) -> None:
    """Tells a process a line of JSON; that it has ended is seen later."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(line).encode() + b"\n")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it has started, if anything of it is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def shares(count: int, *, all_gpus: bool = False) -> Iterator[dict[str, str]]:
    """What each of so many workers has: `cores`, `gpus` of NVIDIA, and `memory` of a shared GPU.

    Cores are divided. So are GPUs with all_gpus; without, each worker has one. `memory` is the
    share of a GPU's that each of several workers takes who have to share it, or "".
    """
    of_all, there = cores(), gpus()
    for worker in range(count):
        own = of_all[worker::count] or [of_all[worker % len(of_all)]]
        one = worker % len(there) if there else 0
        together = len(range(one, count, len(there))) if there else 0
        divided = there[worker::count] if all_gpus else []
        yield {
            "cores": ",".join(map(str, own)),
            "gpus": ",".join(divided or there[one : one + 1]),
            "memory": f"{_OF_A_GPU / together:.3f}" if together > 1 else "",
        }


def environment_of(share: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a process has its share; what is set already about memory stays."""
    variables = {"CUDA_VISIBLE_DEVICES": share["gpus"]} if share["gpus"] else {}
    if share["memory"] and not any(name in os.environ for name in _MEMORY):
        variables["XLA_CLIENT_MEM_FRACTION"] = share["memory"]
    return variables


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def has_accelerators() -> bool:
    """Whether JAX may find something else than the CPU: GPUs of NVIDIA or AMD, or TPUs."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    found = (
        each for pattern in ("kfd", "accel[0-9]*", "vfio/[0-9]*") for each in _DEV.glob(pattern)
    )
    return bool(gpus()) or any(found)


def gpus() -> list[str]:
    """The GPUs of NVIDIA that this process may use."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [each for each in told.split(",") if each]
    found = _DEV.glob("nvidia[0-9]*")
    return sorted((each.name.removeprefix("nvidia") for each in found), key=int)


_OF_A_GPU = 0.9  # that JAX takes in all: each process has some beside what it asks for
_MEMORY = (
    *("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR"),
)
