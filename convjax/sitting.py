"""One sitting of a run: from its last checkpoint, or from the beginning, to its end.

    with opened(log, config) as todo:           # nobody else trains in the folder meanwhile
        if todo:
            drive(Sitting(...).steps(), take_steps)

It knows what happens between steps. Who takes these, and by which programs, is for others to say:
`convjax.session` for a run by itself, `convjax.sweep.members` for many at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from convjax import distributed, interrupts, runlog, tree, writers
from convjax.assemble import START_IMAGES, Assembled
from convjax.beginning import begin
from convjax.config import TOLD, Experiment, UserError, differences, read_json, to_dict
from convjax.interrupts import Interrupted, Interrupts
from convjax.judge import Judge
from convjax.keeper import Keeper, Kept
from convjax.layer import Params
from convjax.runlog import RunError, RunLog, line_of
from convjax.saved import begin_from
from convjax.training import watch
from convjax.training.fit import Events, Fitting, Left, fitting
from convjax.training.metrics import Metrics, means
from convjax.training.state import TrainState, init_state, memory_of
from convjax.training.step import normalise

# (step, {"test": {"loss": ..., "accuracy": ...}, ...}) -> why the run is to end here, or None
Report = Callable[[int, Mapping[str, Mapping[str, Any]]], str | None]


class Diverged(UserError):
    """A run whose numbers are not finite any more."""


class Pruned(UserError):
    """A run that was ended because others do better."""


class Sitting:
    """A run while it trains, but for its steps.

    out: where evaluations are told.
    start: when it began, by `time.perf_counter`.
    interrupts: which signals have come.
    pixels: mean and standard deviation of the channels of train.
    report: is told of each evaluation, and may end the run.
    """

    shows = True  # whether there is a progress bar

    def __init__(
        self,
        experiment: Assembled,
        log: RunLog,
        out: TextIO,
        start: float,
        interrupts: Interrupts,
        pixels: tuple[np.ndarray, np.ndarray],
        report: Report | None = None,
    ):
        self.experiment, self.config, self.plan = experiment, experiment.config, experiment.plan
        self.mapper, self.log, self.out, self.start = experiment.mapper, log, out, start
        self.interrupts, self.pixels, self.report = interrupts, pixels, report
        self.relative_rate = jax.jit(experiment.schedule)
        self.prepare = normalise(*pixels, self.config.precision)
        self.judge = Judge(experiment, self.prepare, log, out, self.seconds, interrupts)

    def steps(self) -> Fitting:
        """Trains to the end of the plan and writes down how it went, waiting for each step."""
        config = self.config
        # Before the compiler is busy, for which the small programs of this would have to wait.
        state = self.drawn()
        with contextlib.ExitStack() as rest:
            self.open(rest, state)
            # It loads Orbax, while the step is compiled.
            self.keeper = rest.enter_context(Keeper(self.log, config, self.plan.steps))
            rest.enter_context(self._told_where())
            if config.checkpoint.best is not None:
                self.judge.kept = self.keeper.best
            with self.interrupts.held():  # Orbax's threads complain about what is broken off.
                state, kept = self.keeper.begin(self.mapper.spec(state), lambda: self._fresh(state))
            self.interrupts.check()
            # As though this sitting had begun that much earlier.
            self.start -= kept.seconds
            self.judge.best = kept.best
            before = self.log.metrics()
            self._begin(kept)
            rest.enter_context(writers.telling(self.log, self.config, before))
            if not self.judge.enough():
                state = yield from self._fit(state, kept.left)
            state = self.whole(state)
            self.keeper.wait()
            self.interrupts.check()
            finals = self.judge.conclude(state)
            model = {"params": state.params, "state": state.state}
            of_model = tree.digest(self.mapper.replicate(model))
        results = {"skipped": int(watch_of(state).skipped), **finals, "digest": of_model}
        self.log.note(status="finished", end=runlog.now(), seconds=self.seconds(), **results)

    # -- What whoever takes the steps may say otherwise --------------------------------------------

    def open(self, rest: contextlib.ExitStack, state: TrainState) -> None:
        """Has what is needed compiled, the judge's step too, and closed with the rest."""

    def at_once(self) -> int:
        """The most steps that are taken by one call."""
        return 1

    def whole(self, state: Any) -> TrainState:
        """The state that is meant by what came back from steps."""
        return state

    def shown(self) -> dict[str, float]:
        """What else a line of training says, such as the norm of the newest gradient."""
        return {}

    # -- What happens between steps ----------------------------------------------------------------

    def on_log(self, number: int, metrics: Metrics, rate: float | None) -> None:
        """Writes a line of the metrics of training."""
        factor = float(self.relative_rate(number - 1))
        learning_rate = self.config.optimizer.learning_rate * factor
        line = line_of(number, self.plan.epoch, "train", means(metrics)) | {
            "learning_rate": learning_rate,
            "skipped": metrics.skipped,
            **self.shown(),
        }
        self.log.log(line | {"images_per_second": rate, "seconds": self.seconds()})

    def on_evaluate(self, number: int, state: Any) -> bool:
        """Evaluates, and says whether that is enough; raises Pruned where the report says so."""
        self.judge.evaluate(number, self.whole(state))
        if self.report is not None:
            why = self.report(number, self.judge.results(number))
            if why is not None and number < self.plan.steps:
                raise Pruned(why)
        return self.judge.enough()

    def on_save(self, number: int, state: Any, left: Left) -> None:
        """Saves a checkpoint, but in a row of bad steps, whose parameters are those of before."""
        state = self.whole(state)
        if watch_of(state).in_a_row and number < self.plan.steps:
            return
        self.keeper.save(state, Kept(number, self.seconds(), left, self.judge.best))

    def on_skipped(self, number: int, state: Any) -> None:
        """Ends a run of which too many steps in a row were skipped."""
        state = self.whole(state)
        seen = watch_of(state)
        if watch.diverged(seen, self.config.stop.bad_steps):
            names = watch.names(state.params, state.state)
            raise Diverged(f"{watch.report(seen, names)}; {self.keeper.last_good()}")

    def seconds(self) -> float:
        """How long the run has trained, in all sittings."""
        return time.perf_counter() - self.start

    # -- What these are made of --------------------------------------------------------------------

    def drawn(self) -> TrainState:
        """The state before the first step, as the seed has it: nothing is fine-tuned yet."""
        config, experiment = self.config, self.experiment
        return init_state(
            *(experiment.net, experiment.optimizer, jax.random.key(config.seed)),
            *(experiment.spec, experiment.hyper),
            averaged=config.average.decay is not None,
            scaled=config.precision == "float16",
            begin=self._from_images if experiment.begin is not None else None,
        )

    def _fresh(self, state: TrainState) -> TrainState:
        """The state before the first step, on the devices."""
        start = self.config.start
        fine_tuned = start.run is not None or start.weights is not None
        return self.mapper.place(self._fine_tuned(state) if fine_tuned else state)

    def _fit(self, state: TrainState, left: Left) -> Fitting:
        events = Events(self.on_log, self.on_evaluate, self.on_save, self.on_skipped)
        plan, signals, shows = self.plan, self.interrupts, self.shows
        return (yield from fitting(state, plan, events, left, self.at_once, signals, shows=shows))

    @contextlib.contextmanager
    def _told_where(self) -> Iterator[None]:
        """Has a signal's exception say where the run goes on."""
        try:
            yield
        except Interrupted as error:
            text = f"{self.keeper.last_good()}; the same command goes on"
            raise Interrupted(error.number, text) from None

    def _begin(self, kept: Kept) -> None:
        """Tells and writes down what is about to be trained."""
        self.first = kept.step
        if kept.step:
            text = f"going on at step {kept.step} of {self.plan.steps} in {self.log.folder}"
            print(text, file=self.out)
        distributed.lead(
            lambda: begin(self.log, self.experiment, self.pixels, kept), "begin the run"
        )

    def _fine_tuned(self, state: TrainState) -> TrainState:
        """The first state with the model of another run; its optimizer remembers nothing."""
        model = begin_from(self.config.start, (state.params, state.state))
        # An optimizer may remember parameters, as one that looks ahead does.
        opt = memory_of(self.experiment.optimizer, self.experiment.hyper, model[0])
        average = None if state.average is None else jax.tree.map(jnp.copy, model)
        return state._replace(params=model[0], state=model[1], opt=opt, average=average)

    def _from_images(self, params: Params) -> Params:
        """What the config's function makes of the parameters and of training images."""
        assert self.experiment.begin is not None
        images = self.prepare(jnp.asarray(self.experiment.train.sample(START_IMAGES)))
        return jax.jit(self.experiment.begin)(params, images.astype(jnp.float32))


def watch_of(state: TrainState) -> watch.Watch:
    """The watch of a run, which has one always."""
    assert state.watch is not None
    return state.watch


# -- The folder ------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(log: RunLog, config: Experiment, override: bool = False) -> Iterator[bool]:
    """Keeps others out of the folder of a run; gives whether there is something left to train.

    What ends the run within it is written down, with the reason, before it goes on.

    Raises:
        UserError: as `finished` does; if another process has the folder.
    """
    with _owned(log):
        # By the process that owned it a moment ago.
        if finished(log, config, override):
            yield False
            return
        distributed.barrier("the folder of the run was looked at")
        if not log.exists():
            log.create(to_dict(config))
        with _status_of(log):
            yield True


def finished(log: RunLog, config: Experiment, override: bool = False) -> bool:
    """Whether the folder holds a finished run of this config.

    Raises:
        UserError: if it holds something else than a run, or a run of another config that is not to
            be overridden.
    """
    if not log.exists():
        if not log.is_free():
            raise UserError(f"{log.folder} is not a run and not empty: give another --workdir")
        return False
    differing = differences(read_json(log.config_file), config)
    differing = {path: pair for path, pair in differing.items() if path not in TOLD}
    if differing and not override:
        listed = ", ".join(
            f"{path} was {old!r}, now {new!r}" for path, (old, new) in differing.items()
        )
        raise UserError(
            f"{log.folder} is a run of another config ({listed}): give another --workdir, or the "
            "config that it has, or --override to go on from its last checkpoint with the new one"
        )
    record = log.record()
    return not differing and record.get("status") == "finished" and "final" in record


@contextlib.contextmanager
def _owned(log: RunLog) -> Iterator[None]:
    """Keeps all other processes out of the folder of the run, but those that train together."""
    with contextlib.ExitStack() as held:
        distributed.lead(lambda: held.enter_context(log.owned()), f"own {log.folder}")
        yield


@contextlib.contextmanager
def _status_of(log: RunLog) -> Iterator[None]:
    """Writes down that a run was interrupted or failed, and why, before the error goes on."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        status = next(name for kind, name in _STATUS.items() if isinstance(error, kind))
        known = isinstance(error, UserError | interrupts.Interrupted)
        text = " ".join((f"{error}" if known else f"{type(error).__name__}: {error}").split())
        with contextlib.suppress(RunError):  # The disk may be full, which then is the error.
            # A finished run that could not go on, by another config, is finished still.
            if log.record().get("status") != "finished":
                log.note(status=status, end=runlog.now(), error=text)
        raise


_STATUS = {
    KeyboardInterrupt: "interrupted",
    Diverged: "diverged",
    Pruned: "pruned",
    Exception: "failed",
}
