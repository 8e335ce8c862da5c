"""A run by itself: its programs, compiled in the background, and the steps that they take.

Session(experiment, log, out, start, interrupts).run()      # everything goes into its folder
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from convjax import distributed, tree
from convjax.assemble import Assembled
from convjax.compiler import Compiler
from convjax.insight import nans
from convjax.insight.features import MOST_FEATURES, first_kernel
from convjax.insight.inspection import cost
from convjax.insight.inspection.profile import Profiler
from convjax.interrupts import Interrupts
from convjax.layer import Layer, Params, plan
from convjax.runlog import RunLog
from convjax.sitting import Diverged, Report, Sitting, watch_of
from convjax.training import feed as feeds
from convjax.training import recipe, seen
from convjax.training.feed import Order
from convjax.training.fit import Fitting, Left, drive
from convjax.training.loss import LOSSES, Loss
from convjax.training.metrics import Metrics
from convjax.training.seen import Seen
from convjax.training.state import TrainState
from convjax.training.step import Prepare, Step, make_step


class Session(Sitting):
    """A run that takes its own steps; see `Sitting`.

    debug_nans: whether the first number that is not finite ends the run, with the layer's name.
    profile: how many steps are profiled; see `convjax.insight.inspection.profile`.
    """

    def __init__(
        self,
        experiment: Assembled,
        log: RunLog,
        out: TextIO,
        start: float,
        interrupts: Interrupts,
        debug_nans: bool = False,
        report: Report | None = None,
        profile: int = 0,
    ):
        pixels = experiment.train.statistics()
        super().__init__(experiment, log, out, start, interrupts, pixels, report)
        self.debug_nans, self.profile = debug_nans, profile
        self.hyper = self.mapper.replicate(experiment.hyper)
        order = Order(self.config.seed, experiment.train.size, self.plan.batch_size)
        # No call goes beyond what is to be done after a step.
        periods = (self.plan.log_every, self.plan.eval_every, self.plan.save_every)
        at_once = min(self.config.steps_per_call, self.plan.steps, *periods)
        self.feed = feeds.training(
            experiment.train, order, self.mapper, 1 if debug_nans else at_once
        )
        self._seen: Seen | None = None  # of the newest step of this sitting
        calls = plan(experiment.net, experiment.spec).makers
        self._places = {path: place for place, path in enumerate(calls)}

    def run(self) -> None:
        """Trains to the end of the plan and writes down how it went."""
        drive(self.steps(), self.take_steps)

    def open(self, rest: contextlib.ExitStack, state: TrainState) -> None:
        """Starts to compile the train step and the evaluation step."""
        rest.callback(self.feed.close)
        compiler = rest.enter_context(Compiler())
        placed = self.mapper.spec(state)
        batch, *more = self.feed.specs
        step = step_of(self.experiment, self.prepare, axis=self.mapper.axis, show=seen.show)
        program = self.feed.program(step, lambda state: (seen.none(state.params),))
        compiled = self.mapper.compile(program, donate=True)
        self.step = compiler.start(compiled, placed, batch, self.hyper, *more)
        model = (placed.params, placed.state)
        self.judge.step = compiler.start(self.judge.program(), model, self.judge.batch_spec())
        if self.profile and distributed.leads():

            def work() -> int:
                whole = self.feed.program(step_of(self.experiment, self.prepare))
                jaxpr = jax.make_jaxpr(whole)(placed, batch, self.hyper, *more)
                return cost.multiply_adds(jaxpr)

            profiler = Profiler(self.profile, self.experiment, self.log, self.out, work)
            take, self.step = rest.enter_context(profiler).around(self.feed.take, self.step)
            self.feed = self.feed._replace(take=take)

    def at_once(self) -> int:
        """As many as the feed gives batches for."""
        return self.feed.at_once

    def take_steps(self, first: int, count: int, state: TrainState) -> tuple[TrainState, Metrics]:
        """So many steps from the `first` on."""
        self.keeper.check()
        if jax.process_count() > 1:
            distributed.check(first)
        with self.interrupts.released():
            batch, *rest = self.feed.take(first, count)
            self.step.compiled()
        after, metrics, self._seen = self.step(state, batch, self.hyper, *rest)
        if first == self.first:
            self._tell_compilation()
        # A loss scale that comes down skips steps, too, and is none of a row.
        if self.debug_nans and watch_of(after).in_a_row:
            self._blame(after, batch, *rest)
        return after, metrics

    def shown(self) -> dict[str, float]:
        """The norm of the newest gradient, if this sitting has taken a step."""
        return {} if self._seen is None else {"gradient_norm": seen.norm(self._seen)}

    def on_evaluate(self, number: int, state: Any) -> bool:
        """Evaluates, once it is written down how weights and gradients are spread."""
        # An evaluation that was broken off and comes again has its line already.
        if self._seen is not None:
            self._log_distributions(number, seen.spread(self._weights(state.params), self._seen))
        return super().on_evaluate(number, state)

    def _fit(self, state: TrainState, left: Left) -> Fitting:
        if not self.first:
            self._note_beginning(state.params)
        return (yield from super()._fit(state, left))

    def _note_beginning(self, params: Params) -> None:
        """Keeps what the weights are like before the first step, and the first features."""
        weights = self._weights(params)
        self._log_distributions(0, seen.spread(weights))
        path = first_kernel(self.experiment.net, self.experiment.spec)
        if path is not None:
            self.log.note_beginning({path.replace("/", "."): weights[path][..., :MOST_FEATURES]})

    def _weights(self, params: Params) -> dict[str, np.ndarray]:
        """All parameters by path, on the host."""
        leaves = tree.leaves(params)
        if jax.process_count() > 1:  # They may be spread over all.
            leaves = {path: self.mapper.replicate(leaf) for path, leaf in leaves.items()}
        return {path: np.asarray(leaf) for path, leaf in leaves.items()}

    def _log_distributions(self, number: int, leaves: Mapping[str, Any]) -> None:
        ordered = {path: leaves[path] for path in sorted(leaves, key=self._place_of)}
        line = {"step": number, "epoch": number / self.plan.epoch, "leaves": ordered}
        self.log.log_distributions(line)

    def _place_of(self, path: str) -> int:
        """When the layer of a parameter is first called, among all layers."""
        return self._places.get(path.rpartition("/")[0], len(self._places))

    def _blame(self, state: TrainState, batch: Any, *rest: Any) -> None:
        """Ends the run with the layer that made the numbers of the last step bad."""

        def program(net: Layer, loss: Loss) -> Any:
            return self.feed.program(step_of(self.experiment._replace(net=net), self.prepare, loss))

        # The step changed nothing else: it can be taken once more.
        before = state._replace(step=state.step - 1)
        loss = LOSSES[self.config.loss.name]
        told = nans.blame(program, self.experiment.net, loss, *(before, batch, self.hyper, *rest))
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


def step_of(
    experiment: Assembled,
    prepare: Prepare,
    loss: Loss | None = None,
    *,
    axis: str | None = None,
    show: Callable[[Params, Array], Any] | None = None,
) -> Step:
    """The train step that a config means.

    prepare: what becomes of images before the network sees them.
    loss: in place of the config's.
    axis: the mapped axis over which a batch is spread, or None.
    show: what the step gives besides, as `make_step` says.
    """
    config, plan = experiment.config, experiment.plan
    return make_step(
        experiment.net,
        experiment.optimizer,
        loss or LOSSES[config.loss.name],
        prepare=prepare,
        change=experiment.change,
        mix=experiment.mix,
        hold=recipe.held(config.optimizer),
        sharpen=recipe.sharpened(config.optimizer),
        parts=config.accumulate,
        average=recipe.followed(config.average, plan.steps, plan.epoch),
        epoch=plan.epoch,
        patience=config.stop.bad_steps,
        show=show,
        axis=axis,
    )
