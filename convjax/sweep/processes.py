"""Processes that work on a sweep, each with its share of this machine's cores, or a GPU of its own.

with Workers(store, sweep, count=4) as workers:
    while store.counts(sweep).get("waiting"):
        workers.look_after()                # closes what died, restarts it, ends what hangs
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from convjax.config import UserError
from convjax.names import trusted
from convjax.sweep.store import Store
from convjax.sweep.trial import Outcome, cause_of

_PARTING = 70.0  # seconds in which a worker that is to end does
_STILLBORN = 3  # workers in a row that end before they take a trial


class Workers:
    """So many processes; use it in a `with`, after which none is left.

    hang_after: seconds without a new line of metrics after which a trial is taken to hang.
    """

    def __init__(self, store: Store, sweep: int, count: int, hang_after: float):
        self._store, self._sweep, self._hang_after = store, sweep, hang_after
        self._shares = list(shares(count))
        self._running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self._stillborn = 0

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
                process.kill()
                process.wait()
                self._store.lost(name, Outcome.INTERRUPTED, f"did not end in {_PARTING:.0f} s")
            self._store.lost(name, *cause_of(process.returncode))

    def look_after(self) -> None:
        """Starts what is missing, notes what died and why, and ends what hangs.

        Raises:
            UserError: if workers end as they begin.
        """
        for place, share in enumerate(self._shares):
            name, process = self._running.get(place, ("", None))
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                assert process.stdin is not None
                process.stdin.close()
                lost = self._store.lost(name, *cause_of(process.returncode))
                # One that ran out of memory has closed its trial, and ends with 0.
                self._stillborn = self._stillborn + 1 if process.returncode and not lost else 0
                if self._stillborn == _STILLBORN:
                    raise UserError(
                        f"{_STILLBORN} workers in a row ended before they took a trial, the last "
                        f"with {cause_of(process.returncode)[1]}: what they told stands above"
                    )
            self._running[place] = self._started(share)
        self._store.close_killed(but=[name for name, _ in self._running.values()])
        self._end_hanging()

    def _started(self, share: dict[str, str]) -> tuple[str, subprocess.Popen[bytes]]:
        name = uuid.uuid4().hex
        known = trusted()
        names = json.dumps(None if known is None else sorted(known))
        words = [str(self._store.folder), str(self._sweep), name, share["cores"], names]
        process = subprocess.Popen(
            [sys.executable, "-m", "convjax.sweep.worker", *words],
            stdin=subprocess.PIPE,
            env=os.environ | {key: value for key, value in share.items() if key.isupper()},
            # A Ctrl-C is this process's to hand on.
            start_new_session=True,
        )
        return name, process

    def _end_hanging(self) -> None:
        now = time.time()
        by_name = dict(self._running.values())
        for row in self._store.rows(self._sweep):
            for attempt in row.attempts:
                process = by_name.get(attempt.worker)
                if attempt.outcome is not None or process is None:
                    continue
                metrics = self._store.folder_of(row.trial.digest) / "metrics.jsonl"
                last = metrics.stat().st_mtime if metrics.exists() else 0.0
                quiet = now - max(last, attempt.began)
                if quiet > self._hang_after:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    cause = f"no line of metrics in {quiet:.0f} seconds"
                    self._store.lost(attempt.worker, Outcome.HUNG, cause)


def shares(count: int) -> Iterator[dict[str, str]]:
    """What each of so many workers has: `cores`, and of GPUs `CUDA_VISIBLE_DEVICES`."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    gpus = _gpus()
    for worker in range(count):
        own = cores[worker::count] or [cores[worker % len(cores)]]
        share = {"cores": ",".join(map(str, own))}
        if gpus:
            share["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
        yield share


def _gpus() -> list[str]:
    """The GPUs of NVIDIA that this process may use."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [each for each in told.split(",") if each]
    found = Path("/dev").glob("nvidia[0-9]*")
    return sorted(each.name.removeprefix("nvidia") for each in found)
