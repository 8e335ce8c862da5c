"""One sitting of a run: from its last checkpoint, or from the beginning, to its end.

    Session(experiment, log, out, start).run()          # everything goes into the run's folder

It knows the programs and what they are fed; what they come to, `convjax.judge` tells and keeps.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, TextIO

import jax
import jax.numpy as jnp
from tqdm import tqdm

from convjax import runlog, tree
from convjax.assemble import START_IMAGES, Assembled
from convjax.compiler import Compiler, Program
from convjax.judge import Judge
from convjax.layer import Params
from convjax.runlog import RunLog, line_of
from convjax.saved import begin_from
from convjax.training import feed as feeds
from convjax.training import recipe
from convjax.training.choose import Best
from convjax.training.feed import Order
from convjax.training.fit import Events, fit
from convjax.training.loss import LOSSES
from convjax.training.metrics import Metrics, means
from convjax.training.state import TrainState, init_state, memory_of
from convjax.training.step import make_step, normalise


class Session:
    """A run while it trains.

    start: when it began, by `time.perf_counter`.
    out: where evaluations are told.
    """

    def __init__(self, experiment: Assembled, log: RunLog, out: TextIO, start: float):
        self.experiment, self.config, self.plan = experiment, experiment.config, experiment.plan
        self.mapper, self.log, self.out, self.start = experiment.mapper, log, out, start
        self.pixels = experiment.train.statistics()
        self.hyper = self.mapper.replicate(experiment.hyper)
        self.relative_rate = jax.jit(experiment.schedule)
        order = Order(self.config.seed, experiment.train.size, self.plan.batch_size)
        # No call goes beyond what is to be done after a step.
        periods = (self.plan.log_every, self.plan.eval_every, self.plan.save_every)
        at_once = min(self.config.steps_per_call, self.plan.steps, *periods)
        self.feed = feeds.training(experiment.train, order, self.mapper, at_once)
        self.prepare = normalise(*self.pixels, self.config.precision)
        self.judge = Judge(experiment, self.prepare, log, out, self.seconds)

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
            from convjax.checkpoint import Checkpoints  # Loads Orbax, while the step is compiled.

            keep = config.checkpoint.keep
            self.checkpoints = rest.enter_context(Checkpoints(self.log.checkpoints, keep=keep))
            extra: dict[str, Any] = {}
            if self.checkpoints.latest_step() is not None:
                state, extra = self.checkpoints.restore(self.mapper.spec(state))
            elif config.start.run is not None:
                state = self.mapper.place(self._fine_tuned(state))
            else:
                state = self.mapper.place(state)
            if config.checkpoint.best is not None:
                self.judge.kept = rest.enter_context(Checkpoints(self.log.best))
            self.judge.forget(lambda step: step > int(state.step))  # They come once more.
            # As though this sitting had begun that much earlier.
            self.start -= extra.get("seconds", 0.0)
            self.judge.best = Best(*extra.get("best", ()))
            self._begin(int(state.step))
            since_log = Metrics(*extra.get("since_log", ()))
            if not self.judge.enough():
                events = Events(self.on_log, self.on_evaluate, self.on_save)
                at_once = self.feed.at_once
                state = fit(state, self.take_steps, self.plan, events, since_log, at_once)
            finals = self.judge.conclude(state)
            model = {"params": state.params, "state": state.state}
            digest = tree.digest(self.mapper.replicate(model))
        self.log.note(
            status="finished", end=runlog.now(), seconds=self.seconds(), **finals, digest=digest
        )

    # -- Steps, and what happens between them ------------------------------------------------------

    def take_steps(self, first: int, count: int, state: TrainState) -> tuple[TrainState, Metrics]:
        """So many steps from the `first` on."""
        batch, *rest = self.feed.take(first, count)
        after = self.step(state, batch, self.hyper, *rest)
        if first == self.first:
            self._tell_compilation()
        return after

    def on_log(self, number: int, metrics: Metrics, rate: float | None) -> None:
        """Writes a line of the metrics of training."""
        factor = float(self.relative_rate(number - 1))
        learning_rate = self.config.optimizer.learning_rate * factor
        line = line_of(number, self.plan.epoch, "train", means(metrics)) | {
            "learning_rate": learning_rate
        }
        self.log.log(line | {"images_per_second": rate, "seconds": self.seconds()})

    def on_evaluate(self, number: int, state: TrainState) -> bool:
        """Evaluates, and says whether that is enough."""
        self.judge.evaluate(number, state)
        return self.judge.enough()

    def on_save(self, number: int, state: TrainState, since_log: Metrics) -> None:
        """Saves a checkpoint, once all that is known of its steps is on the disk."""
        self.log.sync()
        extra = {
            "seconds": self.seconds(),
            "since_log": list(since_log),
            "best": list(self.judge.best),
        }
        self.checkpoints.save(number, state, extra)
        # Not before: a run that is killed goes on from here, with the best of before.
        self.judge.forget(lambda step: step != self.judge.best.step)

    def seconds(self) -> float:
        """How long the run has trained, in all sittings."""
        return time.perf_counter() - self.start

    # -- What these are made of --------------------------------------------------------------------

    def _begin(self, first: int) -> None:
        """Tells and writes down what is about to be trained, from that step on."""
        self.first = first
        if first:
            text = f"going on at step {first} of {self.plan.steps} in {self.log.folder}"
            print(text, file=self.out)
        self.log.cut(first)
        before = self.log.record()
        mean, std = self.pixels
        self.log.note(
            **runlog.environment(),
            status="running",
            start=before.get("start", runlog.now()),
            resumed=[*before.get("resumed", ()), *([first] if first else ())],
            end=None,
            error=None,
            pixels={"mean": mean.tolist(), "std": std.tolist()},
            classes=self.experiment.train.classes,
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
        experiment, config, mapper = self.experiment, self.config, self.mapper
        step = make_step(
            experiment.net,
            experiment.optimizer,
            LOSSES[config.loss.name],
            prepare=self.prepare,
            change=experiment.change,
            mix=experiment.mix,
            hold=recipe.held(config.optimizer),
            sharpen=recipe.sharpened(config.optimizer),
            parts=config.accumulate,
            average=recipe.followed(config.average, self.plan.steps, self.plan.epoch),
            epoch=self.plan.epoch,
            axis=mapper.axis,
        )
        placed, hyper = mapper.spec(state), self.hyper
        batch, *rest = self.feed.specs
        compiled = mapper.compile(self.feed.program(step), donate=True)
        program = compiler.start(compiled, placed, batch, hyper, *rest)
        model = (placed.params, placed.state)
        return program, compiler.start(self.judge.program(), model, self.judge.batch_spec())

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
