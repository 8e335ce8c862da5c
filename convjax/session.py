"""One sitting of a run: from its last checkpoint, or from the beginning, to its end.

    Session(experiment, log, out, start, interrupts).run()      # everything goes into its folder

It knows the programs and what they are fed; what they come to, `convjax.judge` tells and keeps.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, TextIO

import jax
import jax.numpy as jnp
from tqdm import tqdm

from convjax import distributed, runlog, tree
from convjax.assemble import START_IMAGES, Assembled
from convjax.beginning import begin
from convjax.compiler import Compiler, Program
from convjax.config import UserError
from convjax.insight import nans
from convjax.interrupts import Interrupted, Interrupts
from convjax.judge import Judge
from convjax.keeper import Keeper, Kept
from convjax.layer import Layer, Params
from convjax.runlog import RunLog, line_of
from convjax.saved import begin_from
from convjax.training import feed as feeds
from convjax.training import recipe, watch
from convjax.training.feed import Order
from convjax.training.fit import Events, Left, fit
from convjax.training.loss import LOSSES, Loss
from convjax.training.metrics import Metrics, means
from convjax.training.state import TrainState, init_state, memory_of
from convjax.training.step import make_step, normalise


class Diverged(UserError):
    """A run whose numbers are not finite any more."""


class Session:
    """A run while it trains.

    out: where evaluations are told.
    start: when it began, by `time.perf_counter`.
    interrupts: which signals have come.
    debug_nans: whether the first number that is not finite ends the run, with the layer's name.
    """

    def __init__(
        self,
        experiment: Assembled,
        log: RunLog,
        out: TextIO,
        start: float,
        interrupts: Interrupts,
        debug_nans: bool = False,
    ):
        self.experiment, self.config, self.plan = experiment, experiment.config, experiment.plan
        self.mapper, self.log, self.out, self.start = experiment.mapper, log, out, start
        self.interrupts, self.debug_nans = interrupts, debug_nans
        self.pixels = experiment.train.statistics()
        self.hyper = self.mapper.replicate(experiment.hyper)
        self.relative_rate = jax.jit(experiment.schedule)
        order = Order(self.config.seed, experiment.train.size, self.plan.batch_size)
        # No call goes beyond what is to be done after a step.
        periods = (self.plan.log_every, self.plan.eval_every, self.plan.save_every)
        at_once = min(self.config.steps_per_call, self.plan.steps, *periods)
        at_once = 1 if debug_nans else at_once
        self.feed = feeds.training(experiment.train, order, self.mapper, at_once)
        self.prepare = normalise(*self.pixels, self.config.precision)
        self.judge = Judge(experiment, self.prepare, log, out, self.seconds, interrupts)

    def run(self) -> None:
        """Trains to the end of the plan and writes down how it went."""
        config, experiment = self.config, self.experiment
        # Before the compiler is busy, for which the small programs of this would have to wait.
        state = init_state(
            *(experiment.net, experiment.optimizer, jax.random.key(config.seed)),
            *(experiment.spec, experiment.hyper),
            averaged=config.average.decay is not None,
            scaled=config.precision == "float16",
            begin=self._from_images if experiment.begin is not None else None,
        )
        with contextlib.ExitStack() as rest:
            rest.callback(self.feed.close)
            compiler = rest.enter_context(Compiler())
            self.step, self.judge.step = self._start_compiling(compiler, state)
            # It loads Orbax, while the step is compiled.
            self.keeper = rest.enter_context(Keeper(self.log, config, self.plan.steps))
            if config.checkpoint.best is not None:
                self.judge.kept = self.keeper.best
            with self.interrupts.held():  # Orbax's threads complain about what is broken off.
                state, kept = self.keeper.begin(self.mapper.spec(state), lambda: self._fresh(state))
            self.interrupts.check()
            # As though this sitting had begun that much earlier.
            self.start -= kept.seconds
            self.judge.best = kept.best
            self._begin(kept)
            if not self.judge.enough():
                state = self._fit(state, kept.left)
            self.keeper.wait()
            self.interrupts.check()
            finals = self.judge.conclude(state)
            model = {"params": state.params, "state": state.state}
            of_model = tree.digest(self.mapper.replicate(model))
        results = {"skipped": int(_watch_of(state).skipped), **finals, "digest": of_model}
        self.log.note(status="finished", end=runlog.now(), seconds=self.seconds(), **results)

    # -- Steps, and what happens between them ------------------------------------------------------

    def take_steps(self, first: int, count: int, state: TrainState) -> tuple[TrainState, Metrics]:
        """So many steps from the `first` on."""
        self.keeper.check()
        if jax.process_count() > 1:
            distributed.check(first)
        with self.interrupts.released():
            batch, *rest = self.feed.take(first, count)
            self.step.compiled()
        after = self.step(state, batch, self.hyper, *rest)
        if first == self.first:
            self._tell_compilation()
        # A loss scale that comes down skips steps, too, and is none of a row.
        if self.debug_nans and _watch_of(after[0]).in_a_row:
            self._blame(after[0], batch, *rest)
        return after

    def on_log(self, number: int, metrics: Metrics, rate: float | None) -> None:
        """Writes a line of the metrics of training."""
        factor = float(self.relative_rate(number - 1))
        learning_rate = self.config.optimizer.learning_rate * factor
        line = line_of(number, self.plan.epoch, "train", means(metrics)) | {
            "learning_rate": learning_rate,
            "skipped": metrics.skipped,
        }
        self.log.log(line | {"images_per_second": rate, "seconds": self.seconds()})

    def on_evaluate(self, number: int, state: TrainState) -> bool:
        """Evaluates, and says whether that is enough."""
        self.judge.evaluate(number, state)
        return self.judge.enough()

    def on_save(self, number: int, state: TrainState, left: Left) -> None:
        """Saves a checkpoint, but in a row of bad steps, whose parameters are those of before."""
        if _watch_of(state).in_a_row and number < self.plan.steps:
            return
        self.keeper.save(state, Kept(number, self.seconds(), left, self.judge.best))

    def on_skipped(self, number: int, state: TrainState) -> None:
        """Ends a run of which too many steps in a row were skipped."""
        seen = _watch_of(state)
        if watch.diverged(seen, self.config.stop.bad_steps):
            names = watch.names(state.params, state.state)
            raise Diverged(f"{watch.report(seen, names)}; {self.keeper.last_good()}")

    def seconds(self) -> float:
        """How long the run has trained, in all sittings."""
        return time.perf_counter() - self.start

    # -- What these are made of --------------------------------------------------------------------

    def _fresh(self, state: TrainState) -> TrainState:
        """The state before the first step, on the devices."""
        start = self.config.start
        fine_tuned = start.run is not None or start.weights is not None
        return self.mapper.place(self._fine_tuned(state) if fine_tuned else state)

    def _fit(self, state: TrainState, left: Left) -> TrainState:
        events = Events(self.on_log, self.on_evaluate, self.on_save, self.on_skipped)
        at_once = self.feed.at_once
        try:
            return fit(state, self.take_steps, self.plan, events, left, at_once, self.interrupts)
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

    def _start_compiling(self, compiler: Compiler, state: TrainState) -> tuple[Program, Program]:
        """The train step and the evaluation step, which are being compiled."""
        placed = self.mapper.spec(state)
        batch, *rest = self.feed.specs
        program = self._program(self.experiment.net, LOSSES[self.config.loss.name])
        compiled = self.mapper.compile(program, donate=True)
        step = compiler.start(compiled, placed, batch, self.hyper, *rest)
        model = (placed.params, placed.state)
        return step, compiler.start(self.judge.program(), model, self.judge.batch_spec())

    def _program(self, net: Layer, loss: Loss, *, mapped: bool = True) -> Callable[..., Any]:
        """What is compiled to take steps; not `mapped`, it is for one device."""
        config, plan = self.config, self.plan
        step = make_step(
            net,
            self.experiment.optimizer,
            loss,
            prepare=self.prepare,
            change=self.experiment.change,
            mix=self.experiment.mix,
            hold=recipe.held(config.optimizer),
            sharpen=recipe.sharpened(config.optimizer),
            parts=config.accumulate,
            average=recipe.followed(config.average, plan.steps, plan.epoch),
            epoch=plan.epoch,
            patience=config.stop.bad_steps,
            axis=self.mapper.axis if mapped else None,
        )
        return self.feed.program(step)

    def _blame(self, state: TrainState, batch: Any, *rest: Any) -> None:
        """Ends the run with the layer that made the numbers of the last step bad."""
        # The step changed nothing else: it can be taken once more.
        before = state._replace(step=state.step - 1)
        told = nans.blame(
            functools.partial(self._program, mapped=False),
            self.experiment.net,
            LOSSES[self.config.loss.name],
            *(before, batch, self.hyper, *rest),
        )
        raise Diverged(f"{told}; {self.keeper.last_good()}")

    def _tell_compilation(self) -> None:
        compiled = {"train_step": self.step, "evaluation_step": self.judge.step}
        taken = {name: program.compiled() for name, program in compiled.items()}
        for name, (_, took, kept) in taken.items():
            line = f"compiled the {name.replace('_', ' ')} in {took:.1f} s"
            tqdm.write(f"{line}, from the cache" if kept else line, file=self.out)
        self.out.flush()
        self.log.note(
            compiled={
                name: {"seconds": each.seconds, "from_cache": each.from_cache}
                for name, each in taken.items()
            }
        )


def _watch_of(state: TrainState) -> watch.Watch:
    assert state.watch is not None
    return state.watch
