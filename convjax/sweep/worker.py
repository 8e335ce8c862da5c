"""A process that trains the trials of a sweep, until whoever started it is gone.

    python -m convjax.sweep.worker CORES TRUSTED ENGINE

CORES are such as 0,1; TRUSTED is JSON, for `convjax.names.trust_only`. ENGINE is `processes`, by
which trials are runs one after another, or `vectorised`, by which those that can share a program
do; `vectorised=8` has up to 8 of them at once whatever pays.

It reads two lines of JSON: the config of a trial that may come, for which it gets ready, or null;
and a `Job`, which may be long in coming. It ends when its standard input does, with what it is at
saved.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from convjax.config import from_dict
from convjax.flags import guard
from convjax.names import trust_only
from convjax.sweep import processes
from convjax.sweep.pruner import Pruning
from convjax.sweep.store import Claim, Store
from convjax.sweep.trial import Outcome, cause_of

if TYPE_CHECKING:
    from convjax.sitting import Report

_PARTING = 60.0  # seconds in which what is under way is saved
_MOMENT = 0.1  # seconds after which a worker without a trial looks for one again


class Job(NamedTuple):
    """What a worker works on.

    folder: of the record. name: of the worker. out, err: the files of what it prints.
    """

    folder: str
    sweep: int
    name: str
    out: str
    err: str


def main(argv: list[str]) -> None:
    """Works for the sweep that its standard input names."""
    _, cores, trusted, engine = argv
    if (names := json.loads(trusted)) is not None:
        trust_only(names)
    everywhere = processes.cores()
    if hasattr(os, "sched_setaffinity"):  # Before JAX counts them.
        os.sched_setaffinity(0, map(int, cores.split(",")))
    places = int(engine.partition("=")[2] or 0) or None
    with contextlib.ExitStack() as rest:
        config, told = json.loads(sys.stdin.readline()), io.StringIO()
        with contextlib.redirect_stdout(told):
            if engine == "processes":
                from convjax import run  # noqa: F401 - which takes a second

                ready = None
            else:
                from convjax.sweep.together import ready_for

                ready = rest.enter_context(ready_for(config, places, everywhere))
        if not (line := sys.stdin.readline()):
            return
        job = Job(**json.loads(line))
        for number, path in ((1, job.out), (2, job.err)):
            with open(path, "ab") as file:
                os.dup2(file.fileno(), number)
        print(told.getvalue(), end="", flush=True)
        store = rest.enter_context(Store(job.folder))
        pruning = Pruning(store, job.sweep, store.definition(job.sweep))
        work: Callable[[Claim], bool] = lambda claim: train_alone(claim, pruning)  # noqa: E731
        if ready is not None:
            from convjax.sweep.together import Together

            together = Together(store, job.sweep, job.name, pruning, places, ready)
            work = rest.enter_context(together).train
        _work(store, job, work)


def _work(store: Store, job: Job, work: Callable[[Claim], bool]) -> None:
    """Claims trials until the sweep has ended, or what `work` says of one ends the worker."""
    ended, working = threading.Event(), threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended, working), daemon=True).start()
    while not ended.is_set():
        claim = store.claim(job.sweep, job.name, closes=False)
        if claim is None:
            ended.wait(_MOMENT)
            continue
        working.set()
        try:
            if work(claim):
                return  # What took all memory may have kept some of it.
        except KeyboardInterrupt:
            if ended.is_set():
                return  # It was asked for.
            raise
        working.clear()


def train_alone(claim: Claim, pruning: Pruning) -> bool:
    """Trains a trial, and has the claim note what comes of it; whether it ran out of memory."""
    outcome = None

    def report(step: int, results: Any) -> str | None:
        return pruning.report(claim, step, results)

    with (
        attempted(claim) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            claim.finish(trained(claim.trial.config, claim.folder, report))
        except Exception as error:
            outcome, _ = cause_of(error)
            raise
    return outcome == Outcome.OUT_OF_MEMORY


@contextlib.contextmanager
def attempted(claim: Claim) -> Iterator[TextIO]:
    """Opens the log of an attempt, and writes down what ends it; an error goes no further.

    Raises:
        StoreError: if the record cannot be written.
    """
    from convjax.sitting import Pruned
    from convjax.sweep.database import StoreError

    try:
        with claim, open(claim.log, "w", buffering=1, encoding="utf-8") as log:
            try:
                yield log
            except Pruned as why:
                print(f"pruned: {why}", file=log)
                claim.fail(Outcome.PRUNED, str(why), results_of(claim.folder))
            except BaseException:
                traceback.print_exc(file=log)
                raise
    except StoreError:
        raise
    except Exception:
        return  # It is written down.


def trained(
    config: dict[str, Any], folder: str | os.PathLike[str], report: Report | None = None
) -> dict[str, Any]:
    """Trains a config, as `to_dict` gives it, as a run in a folder; returns its results.

    Raises:
        Pruned: where the report has ended it; what the run raises.
    """
    from convjax import compiler, run
    from convjax.allocator import keep_freed_memory

    keep_freed_memory()
    compiler.keep_programs()
    run.train(from_dict(config), folder, report=report)
    return results_of(folder)


def results_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The results of a run: those of its end, if it came there, and the last line of each split."""
    from convjax.runlog import RunLog

    log = RunLog(Path(folder))
    record = log.record()
    known = ("final", "seconds", "digest")
    finals = {key: value for key, value in record.items() if key.startswith(known)}
    return finals | {"last": {line["split"]: line for line in log.metrics()}}


def _wait_for_end(ended: threading.Event, working: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    ended.set()
    working.wait()
    # The trial under way is saved by this; one that hangs in the depths of a library never is.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PARTING)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    ended_with = guard(main, sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    # All is on the disk, and the sweep waits: to take Python and XLA apart takes a while.
    os._exit(ended_with)
