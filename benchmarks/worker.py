"""A process that does what it is told: imports, threads and memory of competitors do not mix.

    worker = Worker("benchmarks.contestant:Contestant", "linen", "lenet", 128, {}, cores=[0, 1])
    worker.call("build", weights)
    seconds = worker.call("train", 0.5)
    worker.close()

A call waits for its answer, so that of many workers one computes at a time.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

# No cache between runs, no more memory of a GPU than is needed, nothing said but what matters.
ENVIRONMENT = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "PYTHONWARNINGS": "ignore::UserWarning:torch._dynamo.pgo",  # that its cache is disabled
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class WorkerError(Exception):
    """What went wrong in a worker, in one line."""


class Worker:
    """An object in a process of its own, whose methods are called from here.

    target: "module:name" of a class, or of a function that returns the object.
    cores: the numbers of the cores that the process may use; it has as many threads.
    environment: variables that it has beside ours.

    Raises:
        WorkerError: if the object cannot be made; so does `call`, if the method raises or the
            process ends.
    """

    def __init__(
        self,
        target: str,
        *arguments: Any,
        cores: Sequence[int],
        environment: Mapping[str, str] = {},
    ):
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        threads = str(len(cores))
        variables = {**ENVIRONMENT, "OMP_NUM_THREADS": threads, **environment}
        inside = (theirs, target, arguments, list(cores), variables)
        self._process = spawn.Process(target=_serve, args=inside, daemon=False)
        self._process.start()
        theirs.close()
        self._answer()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid or 0

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns."""
        try:
            self._pipe.send((method, arguments))
        except (BrokenPipeError, OSError):
            raise WorkerError(self._how_it_ended()) from None
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        try:
            good, value = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(self._how_it_ended()) from None
        if not good:
            raise WorkerError(value)
        return value

    def _how_it_ended(self) -> str:
        self._process.join(10)
        status = self._process.exitcode
        hint = ": is there enough memory?" if status == -9 else ""
        return f"the process ended with status {status}{hint}"


def alone(
    target: str,
    *arguments: Any,
    cores: Sequence[int],
    environment: Mapping[str, str] = {},
) -> Any:
    """What a function returns in a process that lives no longer than that."""
    worker = Worker("benchmarks.worker:Caller", target, cores=cores, environment=environment)
    try:
        return worker.call("call", *arguments)
    finally:
        worker.close()


class Caller:
    """An object whose one method is the function "module:name"."""

    def __init__(self, target: str):
        self.call = _imported(target)


def _serve(
    pipe: Connection,
    target: str,
    arguments: tuple[Any, ...],
    cores: list[int],
    environment: dict[str, str],
) -> None:
    """The life of a worker: until the other end of the pipe is closed."""
    os.environ.update(environment)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    made: list[Any] = []
    _reply(pipe, lambda: made.append(_imported(target)(*arguments)))
    while made:
        try:
            method, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        _reply(pipe, lambda: getattr(made[0], method)(*arguments))  # noqa: B023


def _reply(pipe: Connection, work: Any) -> None:
    try:
        answer = True, work()
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().splitlines()[:1]
        answer = False, ": ".join([type(error).__name__, *first])
    pipe.send(answer)


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
