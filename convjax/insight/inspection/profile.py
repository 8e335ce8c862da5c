"""Where the time of training goes: a few steps under JAX's profiler, told layer by layer.

    with Profiler(10, experiment, log, out, work) as profiler:
        take, step = profiler.around(feed.take, step)     # what training calls from now on

The profile itself lies in the run's folder, for TensorBoard, XProf or Perfetto. What is told is
read from it by `convjax.insight.inspection.trace`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

import jax
from tqdm import tqdm

from convjax.assemble import Assembled
from convjax.compiler import Program
from convjax.insight.inspection.operations import operations
from convjax.insight.inspection.program import traced
from convjax.insight.inspection.trace import times_of, told
from convjax.runlog import RunLog

FOLDER = "profile"
WARM = 2  # calls before the first that counts: of the first ones some wait for memory and caches


class Profiler:
    """Profiles `steps` steps of a run, once it is warm, and tells where their time went.

    Within these steps each one is waited for, so that the time which a step spends waiting for its
    images is not hidden behind the one before.

    work: multiply-adds of one step; asked for once, at the end.
    """

    def __init__(
        self,
        steps: int,
        experiment: Assembled,
        log: RunLog,
        out: TextIO,
        work: Callable[[], int],
    ):
        self.steps, self.experiment, self.log, self.out = steps, experiment, log, out
        self.work, self.folder = work, log.folder / FOLDER
        self.calls = self.taken = self.count = self.first = 0
        self.waited = self.seconds = 0.0
        self.running = self.done = False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *exception: object) -> None:
        failed = exception[0] is not None
        if self.running:  # The run has ended first, or was ended.
            if self._stop() and self.taken and not failed:
                self._tell()
        elif not self.done and not failed:
            text = f"no step was profiled: a run has to take more than {WARM} calls of its step"
            tqdm.write(text, file=self.out)

    def around(
        self, take: Callable[[int, int], Any], step: Program
    ) -> tuple[Callable[[int, int], Any], Any]:
        """The same two functions, which are profiled when they are called in turn."""

        def taking(first: int, count: int) -> Any:
            if self.calls == WARM and not self.done and not self.running:
                self._start(first)
            begun = time.perf_counter()
            batch = take(first, count)
            if self.running:
                self.waited += time.perf_counter() - begun
                self.seconds += time.perf_counter() - begun
            self.count = count
            return batch

        self.step = step
        return taking, _Step(self)

    def called(self, arguments: tuple[Any, ...]) -> Any:
        """Takes a step."""
        self.calls += 1
        if not self.running:
            made = self.step(*arguments)
            if self.calls == WARM:
                jax.block_until_ready(made)
            return made
        begun = time.perf_counter()
        made = self.step(*arguments)
        jax.block_until_ready(made)
        self.seconds += time.perf_counter() - begun
        self.taken += self.count
        if self.taken >= self.steps and self._stop():
            self._tell()
        return made

    def _start(self, first: int) -> None:
        self.first, self.running = first, True
        self.before = {*self.folder.rglob("*.xplane.pb")}
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # It would slow down what it watches.
        jax.profiler.start_trace(self.folder, profiler_options=options)

    def _stop(self) -> bool:
        """Ends the profile; gives whether it could be written."""
        self.running, self.done = False, True
        try:
            jax.profiler.stop_trace()
        except jax.errors.JaxRuntimeError as error:  # The disk is full, for instance.
            # A run is worth more than its profile.
            tqdm.write(f"warning: there is no profile in {self.folder}: {error}", file=self.out)
            return False
        return True

    def _tell(self) -> None:
        (file,) = {*self.folder.rglob("*.xplane.pb")} - self.before
        call = self.step.compiled().call
        paths = traced(self.experiment.net, _one(self.experiment.spec)).parts
        times = times_of(file, operations(call.as_text()), frozenset(paths), self.taken)
        work, memory = self.work(), _memory(call)
        found = {
            "steps": self.taken,
            "first": self.first + 1,
            "seconds_per_step": self.seconds / self.taken,
            "multiply_adds_per_step": work,
            "multiply_adds_per_second": work * self.taken / self.seconds,
            "memory_bytes": memory,
            "waiting_share": self.waited / self.seconds,
            "layers": {
                path: [times.forward.get(path, 0.0), times.backward.get(path, 0.0)]
                for path in times.dearest(len(paths))
            },
            "rest": times.rest,
        }
        self.log.note(profile=found)
        tqdm.write(told(found, str(self.folder)), file=self.out)
        self.out.flush()


class _Step:
    """The program of a step, whose calls a profiler watches."""

    def __init__(self, profiler: Profiler):
        self.compiled = profiler.step.compiled
        self._profiler = profiler

    def __call__(self, *arguments: Any) -> Any:
        """What the program gives."""
        return self._profiler.called(arguments)


def _memory(call: Any) -> int:
    """The most bytes that the program has at once on a device: operands, results and in between."""
    memory = call.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _one(spec: Any) -> Any:
    """The spec of a batch of one."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), spec)
