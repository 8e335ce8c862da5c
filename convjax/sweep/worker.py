"""A process that trains one trial of a sweep after another, until whoever started it is gone.

    python -m convjax.sweep.worker FOLDER SWEEP NAME CORES TRUSTED

CORES are such as 0,1; TRUSTED is JSON, for `convjax.names.trust_only`. It ends when its standard
input does, with the trial that it is at saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from convjax.config import from_dict
from convjax.flags import guard, leave
from convjax.names import trust_only
from convjax.sweep.store import Claim, Store
from convjax.sweep.trial import Outcome, cause_of

_PARTING = 60.0  # seconds in which the trial under way is saved
_MOMENT = 0.1  # seconds after which a worker without a trial looks for one again


def main(argv: list[str]) -> None:
    """Works for the sweep that `argv` names."""
    _, folder, sweep, name, cores, trusted = argv
    if (names := json.loads(trusted)) is not None:
        trust_only(names)
    if hasattr(os, "sched_setaffinity"):  # Before JAX counts them.
        os.sched_setaffinity(0, map(int, cores.split(",")))
    ended, working = threading.Event(), threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended, working), daemon=True).start()
    with Store(folder) as store:
        while not ended.is_set():
            claim = store.claim(int(sweep), name, closes=False)
            if claim is None:
                ended.wait(_MOMENT)
                continue
            working.set()
            if _work(claim):
                return  # What took all memory may have kept some of it.
            working.clear()


def _work(claim: Claim) -> bool:
    """Trains a trial, and has the claim note what comes of it; whether it ran out of memory."""
    try:
        with claim, open(claim.log, "w", buffering=1, encoding="utf-8") as log:
            try:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                    claim.finish(_trained(claim))
            except BaseException:
                traceback.print_exc(file=log)
                raise
    except Exception as error:
        return cause_of(error)[0] == Outcome.OUT_OF_MEMORY
    return False


def _trained(claim: Claim) -> dict[str, Any]:
    """The results of a trial: those of the end, and the last line of each split."""
    from convjax import compiler, run
    from convjax.allocator import keep_freed_memory
    from convjax.runlog import RunLog

    keep_freed_memory()
    compiler.keep_programs()
    run.train(from_dict(claim.trial.config), claim.folder)
    log = RunLog(claim.folder)
    record = log.record()
    finals = {key: value for key, value in record.items() if key.startswith("final")}
    last = {line["split"]: line for line in log.metrics()}
    return finals | {"last": last, "seconds": record["seconds"], "digest": record["digest"]}


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
    leave(guard(main, sys.argv))
