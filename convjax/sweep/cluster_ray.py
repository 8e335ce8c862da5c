"""Attempts as tasks of Ray, on a cluster that is there or on this machine alone.

tasks = RayTasks("10.0.0.1:6379", cpus=4, gpus=1)
task = tasks.send(order)
tasks.ended(task)                       # None while it waits or runs

Ray ends the tasks of a process that is gone.
"""

from __future__ import annotations

import importlib
import os
import signal
from typing import Any

from convjax.config import UserError
from convjax.runlog import cores
from convjax.sweep.remote import Ended, Order, attempt
from convjax.sweep.trial import Outcome, cause_of

_STORE = 80 * 2**20  # bytes that Ray sets aside for data: orders are small, and this is its least

# By name, as Ray's own errors are many, and come and go with its versions.
_OUTCOMES = {
    "OutOfMemoryError": Outcome.OUT_OF_MEMORY,
    "RuntimeEnvSetupError": Outcome.FAILED,
    "TaskUnschedulableError": Outcome.FAILED,
    "RaySystemError": Outcome.FAILED,
}


class RayTasks:
    """A connection to Ray; one for each process.

    address: of a cluster's head, such as 10.0.0.1:6379, or ray://10.0.0.1:10001; "auto" for one
        that has a node here; by default that of RAY_ADDRESS, or Ray is started on this machine.
    cpus, gpus: of each task.

    Raises:
        UserError: if there is no such cluster; if this machine, where it is alone, has less.
    """

    def __init__(self, address: str | None, cpus: int, gpus: int):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray 2.60 says by this that it leaves CUDA_VISIBLE_DEVICES alone where a task has no GPU.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # By name: a type checker need not have it.
        ray = importlib.import_module("ray")
        self._ray, self._cpus, self._gpus = ray, cpus, gpus
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        # All that listens does so on the loopback alone.
        alone = {
            "num_cpus": cores(),
            "object_store_memory": _STORE,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
        # Ray takes SIGTERM for itself, and ends the process before it has ended its tasks.
        handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(where, log_to_driver=False, **(alone if where == "local" else {}))
        except (ConnectionError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise UserError(
                f"--address={where}: Ray cannot be reached there: {text}: start it on its head "
                "with `ray start --head`, and give that machine's HOST:6379"
            ) from error
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
        if where == "local":
            self._check()
        # A process for each: what one has taken, the next one does not miss.
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        self._task = ray.remote(max_calls=1, max_retries=0, **options)(attempt)

    def send(self, order: Order) -> Any:
        """The task that makes this attempt, once there is room for it."""
        return self._task.remote(order._replace(cores=self._cpus))

    def ended(self, task: Any) -> Ended | None:
        """How it has ended; None while it has not."""
        if not self._ray.wait([task], timeout=0)[0]:
            return None
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            return Ended(*cause_of(error.cause))
        except self._ray.exceptions.RayError as error:
            kind = type(error).__name__
            text = " ".join(str(error).split("\n\n")[0].split())
            return Ended(_OUTCOMES.get(kind, Outcome.KILLED), f"{kind}: {text}")

    def kill(self, task: Any) -> None:
        """Ends it at once."""
        self._ray.cancel(task, force=True)

    def job_of(self, task: Any) -> str | None:
        """None: no task outlives the process that has sent it."""
        return None

    def found(self, job: str) -> Any:
        """Never asked for, as `job_of` names none."""
        raise KeyError(job)

    def close(self) -> None:
        """Leaves the cluster; ends it where it was started for this process."""
        self._ray.shutdown()

    def _check(self) -> None:
        there = self._ray.cluster_resources()
        for name, wanted in (("CPU", self._cpus), ("GPU", self._gpus)):
            if wanted > there.get(name, 0):
                found = f"{there.get(name, 0):g}"
                self.close()
                raise UserError(
                    f"--{name.lower()}s={wanted} of each trial, and this machine has {found}: "
                    "give fewer, or the --address of a cluster"
                )
