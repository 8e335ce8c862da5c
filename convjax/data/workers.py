"""Who decodes the batches of a stream: threads, and processes that share memory with this one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from typing import Any, NamedTuple

import numpy as np

from convjax.config import ConfigError


class Workers(NamedTuple):
    """Who decodes.

    processes: beside this one; 0 decodes here. Threads are enough until Python itself is what they
        wait for, at about ten cores; then give processes with four to eight threads each.
    threads: of each process; None shares the cores among the processes.
    """

    processes: int = 0
    threads: int | None = None


AHEAD = 2  # batches that each process has ready


def counts(workers: Workers) -> tuple[int, int]:
    """Processes, and threads of each. Raises ValueError where there are none to do the work."""
    processes, threads = workers
    if processes < 0 or (threads is not None and threads < 1):
        raise ValueError(f"{workers}: give 0 or more processes, and threads from 1")
    return processes, threads or max(cores() // max(processes, 1), 1)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- Memory that processes share -------------------------------------------------------------------
# Grain's own would take a copy, end a worker by SIGBUS where there is too little of it, and warn of
# leaks at the end of a program that still holds a batch.


def shared_folder(size: int, processes: int, threads: int) -> str:
    """A new folder for batches of so many bytes, in memory where the system has such a place.

    Raises ConfigError where it has too little room; a container often has no more than 64 MB.
    """
    memory = _MEMORY if os.path.isdir(_MEMORY) else None
    folder = tempfile.mkdtemp(prefix="convjax-", dir=memory)
    # Of each process, those that its threads are at, one more, one on its way, those that wait.
    need = size * (processes * (threads + 2 + AHEAD) + 2)
    if (free := shutil.disk_usage(folder).free) < need:
        os.rmdir(folder)
        raise ConfigError(
            f"{processes} processes need {need / 2**20:.0f} MiB in {os.path.dirname(folder)}, "
            f"which has {free / 2**20:.0f}: give it more (docker run --shm-size=8g), or decode "
            "with threads"
        )
    return folder


def new_memory(path: str, size: int) -> np.ndarray:
    """A new file of zeros as memory, uint8 `[size]`."""
    with open(path, "xb") as file:
        if hasattr(os, "posix_fallocate"):  # So that a lack of room is an error here,
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # and not, as with a file that has holes, a signal that ends the process.
            file.truncate(size)
    return np.memmap(path, np.uint8, "r+")


def taken_over(path: str) -> np.ndarray:
    """The memory of a file, which is gone once nobody holds it."""
    memory = np.memmap(path, np.uint8, "r+").view(np.ndarray)
    os.unlink(path)
    return memory


_MEMORY = "/dev/shm"  # Linux; elsewhere the folder of temporary files serves


# -- Beginning and end -----------------------------------------------------------------------------


def begin_worker(folder: str, number: int, count: int) -> None:
    """In a new process: it ends with its parent, and by no signal that is meant for that one."""
    # Control-C and a scheduler's SIGTERM reach all processes; the parent may want to save first.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()


def end(iterator: Any, folder: str | None) -> None:
    """Closes Grain's iterator, which ends its processes and threads, and removes the folder."""
    iterator.close()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _end_with(parent: Any, folder: str) -> None:
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
