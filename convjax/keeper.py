"""What a run keeps of itself on the disk, and goes on from: checkpoints, and the best model.

    with Keeper(log, config, plan.steps) as keeper:
        state, kept = keeper.begin(mapper.spec(state), lambda: mapper.place(state))
        keeper.save(state, kept)

A best model stays until the checkpoint that knows of a better one is on the disk: a run that is
killed goes on from the one before, with the best of then.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from convjax.config import Experiment, UserError, digest
from convjax.runlog import RunError, RunLog
from convjax.training.choose import Best
from convjax.training.fit import Left
from convjax.training.metrics import Metrics
from convjax.training.state import TrainState

if TYPE_CHECKING:
    from convjax.checkpoint import Checkpoints  # It loads Orbax.


class Kept(NamedTuple):
    """What a run goes on from, beside its state.

    step: how many were taken.
    seconds: for how long it had trained.
    left: what was left undone.
    best: the best evaluation until then.
    lines: of the metrics until then.
    """

    step: int = 0
    seconds: float = 0.0
    left: Left = Left()
    best: Best = Best()
    lines: int = 0


class Keeper:
    """The checkpoints of a run and its best model, in its folder; use it in a `with`.

    steps: at which training ends.
    best: the checkpoints of best models, where the config asks for them.
    """

    best: Checkpoints

    def __init__(self, log: RunLog, config: Experiment, steps: int):
        self._log, self._config, self._steps = log, config, steps
        self._digest, self._best_saved = digest(config), -1
        # What evaluations are compared by; others cannot be compared with them.
        self._best_of = [config.checkpoint.best, config.stop.metric, config.data.valid]
        self._saved, self._noted = False, bool(log.record().get("saved"))
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Keeper:
        from convjax.checkpoint import Checkpoints

        how: dict[str, Any] = {"config": self._digest, "tell": self._tell}
        self._checkpoints = self._open.enter_context(
            Checkpoints(
                self._log.checkpoints,
                keep=self._config.checkpoint.keep,
                background=jax.process_count() == 1,
                **how,
            )
        )
        if self._config.checkpoint.best is not None:
            self.best = self._open.enter_context(Checkpoints(self._log.best, **how))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)

    def begin(self, spec: Any, fresh: Callable[[], TrainState]) -> tuple[TrainState, Kept]:
        """The state of the newest checkpoint, or a fresh one, and what was kept beside it.

        spec: shapes and shardings of the state.

        Raises:
            UserError: if there is one that the config cannot go on from, or none is left.
        """
        step = self._checkpoints.newest()
        if step is None and self._noted:
            raise UserError(
                f"no good checkpoint is left in {self._log.checkpoints} of a run that had saved "
                f"some: bring one back, or move {self._log.folder} away to begin anew"
            )
        if step is None:
            self._forget(lambda _: True)
            return fresh(), Kept()
        if step > self._steps:
            raise UserError(
                f"{self._log.folder} has taken {step} steps, and the config ends after "
                f"{self._steps}: give more epochs, or another --workdir"
            )
        known = self._checkpoints.manifest(step).config
        if known not in (self._digest, *self._log.record().get("configs", ())):
            raise UserError(
                f"checkpoint {step} in {self._log.checkpoints} is of a config that this run "
                "never had: move it away"
            )
        state, extra = self._checkpoints.restore(spec, step)
        left = Left(Metrics(*extra["since_log"]), extra["owes"])
        best = Best(*extra["best"]) if extra["best_of"] == self._best_of else Best()
        # They come once more.
        self._forget(lambda each: each > step or (left.owes and each == step))
        if self._config.checkpoint.best and best.step >= 0 and self.best.newest() != best.step:
            self._tell(
                f"the best model, of step {best.step}, is lost: the best is that from now on"
            )
            best = Best()
        self._best_saved = best.step
        self._forget(lambda each: each != best.step)
        return state, Kept(step, extra["seconds"], left, best, extra["lines"])

    def save(self, state: TrainState, kept: Kept) -> None:
        """Saves a checkpoint, once all that is known of its steps is on the disk."""
        if kept.left.owes:
            # What an evaluation told before it was broken off comes once more.
            with contextlib.suppress(
                RunError
            ):  # A line is damaged, which is told at the next start.
                self._log.cut(kept.step, owes=True)
        self._log.sync()
        self.wait()
        extra = {
            "seconds": kept.seconds,
            "since_log": list(kept.left.since_log),
            "owes": kept.left.owes,
            "best": list(kept.best),
            "best_of": self._best_of,
            "lines": self._log.lines,
        }
        self._checkpoints.save(kept.step, state, extra)
        self._best_saved, self._saved = kept.best.step, True

    def check(self) -> None:
        """Raises the error of a save that has failed meanwhile."""
        if self._checkpoints.check():
            self._note_saved()

    def wait(self) -> None:
        """Waits until what was saved is on the disk, after which only its best model stays."""
        self._checkpoints.wait()
        self._note_saved()
        self._forget(lambda step: step < self._best_saved)

    def last_good(self) -> str:
        """Where the run would go on, as text."""
        self.wait()
        steps = self._checkpoints.steps()
        if not steps:
            return f"nothing was saved yet in {self._log.folder}"
        where = f"step {steps[-1]} of {self._steps} in {self._log.folder}"
        return f"the last good checkpoint is {where}"

    def _note_saved(self) -> None:
        """Writes down that there is a checkpoint, so that it is missed when there is none."""
        if self._saved and not self._noted:
            self._log.note(saved=True)
            self._noted = True

    def _forget(self, which: Callable[[int], bool]) -> None:
        """Takes these best models away."""
        if self._config.checkpoint.best is None:
            return
        for step in self.best.steps():
            if which(step):
                self.best.delete(step)

    def _tell(self, text: str) -> None:
        """Tells of what was lost, and writes it down."""
        print(f"warning: {text}", file=sys.stderr)
        self._log.note(damaged=[*self._log.record().get("damaged", ()), text])
