"""One run in several processes, on one host or many, each with devices of its own.

start("10.0.0.1:8476", num_processes=2, process_id=0)     # before anything else of JAX
...                                                       # the same program in each process
if leads():
    print("done")
stop()
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from convjax.config import UserError
from convjax.interrupts import Interrupted

_MEETING = 300  # seconds until all processes are to be there
_PARTING = 10  # seconds for which a process that ends waits for the others


@contextlib.contextmanager
def together(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """What is done between `start` and `stop`; after an error this process ends without the others.

    It ends then with the status of a launcher: 130 after Ctrl-C, 2 after a UserError, 1 otherwise.
    A SIGTERM that `check` has told all of them of ends all together.
    """
    start(coordinator, num_processes, process_id)
    try:
        yield
    except Interrupted:
        stop()
        raise
    except BaseException as error:
        if jax.distributed.is_initialized():
            kinds = {KeyboardInterrupt: 130, UserError: 2}
            found = [status for kind, status in kinds.items() if isinstance(error, kind)]
            # Before JAX, whose own farewell waits for the others, who wait for this process.
            atexit.register(_leave, *found or [1])
        raise
    stop()


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Joins this process to the others of the run, and waits up to 5 minutes until all are there.

    Without arguments: where Slurm (`srun`) or Open MPI has started several processes, or on the
    host of a Cloud TPU, JAX finds out the rest; else this process is the only one, and nothing
    happens. On the CPU, processes speak with each other through Gloo.

    SIGTERM of any process is known to all by `check`. Ctrl-C ends a process at once; the others
    learn of it within JAX's 100 seconds, and end.

    coordinator: "HOST:PORT" of process 0, where the port is free; the same for each process.
    num_processes: how many there are.
    process_id: the number of this one, from 0.

    Raises:
        UserError: for some of the three without the others, for one that is out of range, and where
            process 0 cannot listen at the address or the others find nobody there.
        RuntimeError: if JAX has been used already, of JAX itself.
    """
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3 and not launched(environment):
        return
    if missing and len(missing) < 3:
        there = ", ".join(f"{name}={given[name]}" for name in given if name not in missing)
        raise UserError(f"{there} without {' and '.join(missing)}: give all three, or none")
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check(coordinator, num_processes, process_id)
    jax.config.update("jax_enable_preemption_service", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=_MEETING,
        shutdown_timeout_seconds=_PARTING,
    )
    if jax.process_count() > 1 and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # One process cannot save alone: it may as well end at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check(step: int) -> None:
    """Raises Interrupted, in all processes at the same step, once one of them was sent SIGTERM.

    step: how many were taken; each process asks at the same ones, in order.
    """
    if multihost_utils.reached_preemption_sync_point(step):
        raise Interrupted(signal.SIGTERM)


def lead(work: Callable[[], Any], what: str) -> None:
    """Has the first process do something while the others wait; all of them fail if it does.

    what: is being done, as the error of the others calls it.

    Raises:
        UserError: in the other processes, where the first has failed.
    """
    if jax.process_count() == 1:
        work()
        return
    failure: Exception | None = None
    if leads():
        try:
            work()
        except Exception as error:
            failure = error
    failed = multihost_utils.broadcast_one_to_all(np.int32(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise UserError(f"the first process could not {what}: its error says why")


def leads() -> bool:
    """Whether this is the process that writes logs and speaks: the first, or the only one."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here, and on every device; the name is the same in each."""
    multihost_utils.sync_global_devices(name)


def stop() -> None:
    """Ends the run together with the other processes; without any, nothing happens."""
    if jax.distributed.is_initialized():
        barrier("the end")
        jax.distributed.shutdown()


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether JAX finds out by itself which processes there are, and whether to ask it.

    Of Slurm and Open MPI that is where more than one is started together, so that several runs may
    share an allocation; of a Cloud TPU always.

    >>> srun = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    >>> launched(srun), launched({"SLURM_NTASKS": "2"}), launched({})
    (True, False, False)
    """
    for count, needed in (
        # Without a step, this is the script that starts the processes, and not yet one of them.
        ("SLURM_NTASKS", ("SLURM_STEP_NODELIST", "SLURM_PROCID")),
        ("OMPI_COMM_WORLD_SIZE", ("OMPI_MCA_orte_hnp_uri",)),
    ):
        if int(environment.get(count, 1)) > 1 and all(each in environment for each in needed):
            return True
    # JAX sets the second, when it is imported, where there are no chips.
    return "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator={coordinator}: give HOST:PORT of process 0, such as 10.0.0.1:8476"
        )
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: give 1 or more")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id}: give a number from 0 to {num_processes - 1}, as "
            f"--num_processes={num_processes}"
        )
    if process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:  # JAX would crash.
            raise UserError(
                f"--coordinator={coordinator}: process 0 cannot listen there ({error.strerror}): "
                "give a port that is free on its host"
            ) from error
    else:
        _find(host.strip("[]"), int(port), coordinator)


def _find(host: str, port: int, coordinator: str) -> None:
    """Waits until process 0 listens; JAX would abort if it never does."""
    end = time.monotonic() + _MEETING
    while True:
        try:
            return socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"--coordinator={coordinator}: nobody listens there "
                    f"({error.strerror or error}): start process 0 on that host, with the same "
                    "address"
                ) from error
            time.sleep(0.2)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
