"""Attempts as jobs of Slurm, through submitit.

tasks = SlurmTasks("sweeps/mine/slurm", {"partition": "gpu", "time": 120}, cpus=4, gpus=1)
job = tasks.send(order)
tasks.ended(job)                        # None while it waits or runs
tasks.found("4711")                     # a job that an earlier process had sent

A job goes on though the process that has sent it is gone. Before its time is up, or when it is to
make room for another, Slurm says so by a signal, and the trial is saved.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convjax.config import UserError
from convjax.names import nearest
from convjax.sweep.remote import Ended, Order, attempt
from convjax.sweep.trial import Outcome

_MINUTES = 240  # of each job; one that needs longer goes on in another
_LAG = 20.0  # seconds that a file may take from one machine to another
_UNKNOWN = 120.0  # seconds for which Slurm may not know of a job that it has just been given
_MOMENT = 1.0  # seconds between two looks at a job

# https://slurm.schedmd.com/sacct.html#SECTION_JOB-STATE-CODES; the rest goes on.
# An attempt that is made leaves a result, whatever comes of it: what left none was ended.
_ENDS = {
    "BOOT_FAIL": Outcome.KILLED,
    "CANCELLED": Outcome.KILLED,
    "COMPLETED": Outcome.KILLED,
    "DEADLINE": Outcome.KILLED,
    "FAILED": Outcome.KILLED,
    "NODE_FAIL": Outcome.KILLED,
    "OUT_OF_MEMORY": Outcome.OUT_OF_MEMORY,
    "PREEMPTED": Outcome.INTERRUPTED,
    "REVOKED": Outcome.KILLED,
    "TIMEOUT": Outcome.KILLED,
    "UNKNOWN": Outcome.KILLED,
}


@dataclass
class SlurmJob:
    """A job, and what was seen of it: the state in which it seems to have ended, and since when."""

    job: Any
    state: str = ""
    since: float = 0.0
    looked: float = -_MOMENT
    killed: bool = False


class SlurmTasks:
    """Jobs that are sent from this machine.

    folder: for their scripts and results, seen by all machines.
    wanted: options of sbatch, as submitit has them: partition, account, time (minutes), mem,
        constraint, setup (commands, separated by semicolons) ...
    cpus, gpus: of each job.

    Raises:
        UserError: if there is no Slurm here, or no such option.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, Any], cpus: int, gpus: int):
        import submitit

        try:
            self._executor = submitit.SlurmExecutor(folder.absolute())
        except RuntimeError as error:
            raise UserError(
                f"--engine=slurm: {error}: start the sweep where sbatch and srun are found"
            ) from error
        self._job_class = submitit.SlurmJob
        known = submitit.SlurmExecutor._valid_parameters() - {"nodes", "ntasks_per_node"}
        for name in wanted:
            if name not in known:
                hint = nearest(name, known)
                raise UserError(f"--slurm={name}={wanted[name]}: no such option: {hint}")
        given = {"time": _MINUTES, "job_name": "convjax", "cpus_per_task": cpus, **wanted}
        if gpus and not given.keys() & {"gpus_per_task", "gres"}:
            given["gpus_per_node"] = gpus
        if isinstance(given.get("setup"), str):
            given["setup"] = [each.strip() for each in given["setup"].split(";")]
        # From Slurm 22.05 on, srun does not take what sbatch was given.
        given.setdefault("srun_args", [f"--cpus-per-task={given['cpus_per_task']}"])
        self._executor.update_parameters(**given)

    def send(self, order: Order) -> SlurmJob:
        """The job that makes this attempt, once there is room for it.

        Raises:
            UserError: if Slurm does not take it.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return SlurmJob(self._executor.submit(job, order))
        except (FailedJobError, FailedSubmissionError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"sbatch took no job: {text}: see --slurm") from error

    def ended(self, sent: SlurmJob) -> Ended | None:
        """How it has ended; None while it has not."""
        if time.monotonic() - sent.looked < _MOMENT:
            return None
        sent.looked = time.monotonic()
        sent.job.done()  # It has the network file system look again.
        there = sent.job.paths.result_pickle.exists()
        result = _result(sent.job) if there else None
        if result is not None and result.outcome != Outcome.KILLED:
            return result
        mode = "force" if there or sent.killed else "standard"
        # The first word of such as "CANCELLED by 1000".
        [state, *_] = self._job_class.watcher.get_state(sent.job.job_id, mode).split()
        if state != sent.state:
            sent.state, sent.since = state, time.monotonic()
        known = time.monotonic() - sent.since
        if result is not None:
            # The kernel has ended the process that trained: Slurm knows why, a moment later.
            if state == "OUT_OF_MEMORY":
                return result._replace(outcome=Outcome.OUT_OF_MEMORY)
            return result if state in _ENDS or known > _LAG else None
        lag = _UNKNOWN if state == "UNKNOWN" else 0 if sent.killed else _LAG
        if state not in _ENDS or known < lag:
            return None
        return Ended(_ENDS[state], f"job {sent.job.job_id}: {_MEANT.get(state, state)}")

    def kill(self, sent: SlurmJob) -> None:
        """Ends it at once, but for the half minute that Slurm gives it."""
        if not sent.killed:
            sent.job.cancel(check=False)
            sent.killed = True

    def job_of(self, sent: SlurmJob) -> str:
        """Its number, by which another process finds it."""
        return sent.job.job_id

    def found(self, job: str) -> SlurmJob:
        """The job of this number."""
        return SlurmJob(self._job_class(self._executor.folder, job))

    def close(self) -> None:
        """Nothing: jobs are ended one by one."""


def job(order: Order) -> Ended:
    """Makes an attempt, within a job."""
    heard: list[str] = []

    def hear(number: int, _: Any) -> None:
        heard.append(signal.Signals(number).name)

    early = "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    for each in (signal.SIGTERM, signal.SIGINT, getattr(signal, early)):
        signal.signal(each, hear)
    ended = attempt(order, lambda: heard[0] if heard else None)
    if heard and ended.outcome == Outcome.INTERRUPTED:
        number = os.environ.get("SLURM_JOB_ID", "")
        return ended._replace(cause=f"Slurm ended job {number} ({heard[0]})")
    return ended


def _result(sent: Any) -> Ended:
    """What a job has left, which is there."""
    error = sent.exception()
    if error is None:
        return Ended(*sent.result())
    # It has the traceback between two ruled lines.
    [*_, trace] = re.split(r"-{10,}\n", str(error))[:2]
    return Ended(Outcome.FAILED, f"job {sent.job_id}: {trace.strip().splitlines()[-1]}")


_MEANT = {
    "CANCELLED": "cancelled",
    "COMPLETED": "it ended without a result",
    "FAILED": "its process was ended, or failed to begin (FAILED)",
    "NODE_FAIL": "its node failed (NODE_FAIL)",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "it made room for another (PREEMPTED)",
    "TIMEOUT": "its time was up before it was saved (TIMEOUT)",
    "UNKNOWN": "Slurm does not know it",
}
