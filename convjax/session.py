"""One sitting of a run: from its last checkpoint, or from the beginning, to its end.

    Session(experiment, log, out, start).run()          # everything goes into the run's folder

It knows the programs, what they are fed, and what is told and kept between steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
from tqdm import tqdm

from convjax import runlog, tree
from convjax.assemble import START_IMAGES, Assembled, load
from convjax.compiler import Compiler, Program
from convjax.layer import Params, State
from convjax.runlog import RunLog, closing_line
from convjax.saved import begin_from
from convjax.training import feed as feeds
from convjax.training import recipe
from convjax.training.average import reestimated
from convjax.training.choose import Best, better
from convjax.training.evaluate import batch_size_for, evaluate
from convjax.training.feed import Order
from convjax.training.fit import Events, fit
from convjax.training.loss import LOSSES
from convjax.training.metrics import Metrics, means
from convjax.training.state import TrainState, init_state, memory_of
from convjax.training.step import make_eval_step, make_step, normalise

Model = tuple[Params, State]


class Judged(NamedTuple):
    """An evaluation, and how fast it was."""

    metrics: Metrics
    images_per_second: float


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
        self.eval_batch = batch_size_for(self.config.eval_batch_size, len(self.mapper.devices))
        self.evaluated: dict[tuple[int, str], Metrics] = {}
        self.best = Best()

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
            self.step, self.eval_step = self._start_compiling(compiler, state)
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
                self.best_models = rest.enter_context(Checkpoints(self.log.best))
                self._forget_best(lambda step: step > int(state.step))  # They come once more.
            # As though this sitting had begun that much earlier.
            self.start -= extra.get("seconds", 0.0)
            self.best = Best(*extra.get("best", ()))
            self._begin(int(state.step))
            since_log = Metrics(*extra.get("since_log", ()))
            if not self._enough():
                events = Events(self.on_log, self.on_evaluate, self.on_save)
                at_once = self.feed.at_once
                state = fit(state, self.take_steps, self.plan, events, since_log, at_once)
            self._end(state)

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
        line = self._line(number, "train", metrics) | {"learning_rate": learning_rate}
        self.log.log(line | {"images_per_second": rate, "seconds": self.seconds()})

    def on_evaluate(self, number: int, state: TrainState) -> bool:
        """Evaluates all models on all splits, keeps the best, and says whether that is enough."""
        for name, split, model in self._all(state):
            judged = self._judge(number, name, split, model, self.eval_step)
            self._tell(number, name, judged)
        if "valid" in self.experiment.judged:
            self._compare(number, state)
        return self._enough()

    def on_save(self, number: int, state: TrainState, since_log: Metrics) -> None:
        """Saves a checkpoint, once all that is known of its steps is on the disk."""
        self.log.sync()
        extra = {"seconds": self.seconds(), "since_log": list(since_log), "best": list(self.best)}
        self.checkpoints.save(number, state, extra)
        if self.config.checkpoint.best is not None:
            # Not before: a run that is killed goes on from here, with the best of before.
            self._forget_best(lambda step: step != self.best.step)

    def seconds(self) -> float:
        """How long the run has trained, in all sittings."""
        return time.perf_counter() - self.start

    # -- What these are made of --------------------------------------------------------------------

    def _models(self, state: TrainState) -> dict[str, Model]:
        """What is evaluated, by what its name adds to that of the split."""
        params = recipe.evaluated(self.config.optimizer, state)
        models = {"": (params, state.state)}
        return models if state.average is None else models | {"_average": state.average}

    def _all(self, state: TrainState) -> Iterator[tuple[str, str, Model]]:
        """Name, split and model of all that an evaluation looks at."""
        for name, model in self._models(state).items():
            for split in self.experiment.judged:
                yield f"{split}{name}", split, model

    def _judge(self, number: int, name: str, split: str, model: Model, step: Any) -> Judged:
        begun = time.perf_counter()
        images = self.experiment.judged[split]
        batches = feeds.evaluation(images, self.eval_batch, self.mapper)
        metrics = self.evaluated[number, name] = evaluate(step, model, batches)
        return Judged(metrics, metrics.count / (time.perf_counter() - begun))

    def _tell(self, number: int, name: str, judged: Judged, **more: Any) -> None:
        """Writes an evaluation down, and shows it."""
        rate = {"images_per_second": judged.images_per_second, "seconds": self.seconds()}
        self.log.log(self._line(number, name, judged.metrics) | rate | more)
        where = f"epoch {number / self.plan.epoch:g}"
        shown = closing_line(name.replace("_", " "), means(judged.metrics), self.seconds(), where)
        tqdm.write(shown, file=self.out)

    def _compare(self, number: int, state: TrainState) -> None:
        """Counts the evaluations since the best, and keeps the best model."""
        chosen, stop = self.config.checkpoint.best, self.config.stop
        result = means(self.evaluated[number, "valid"])
        self.best = better(self.best, number, result, stop, chosen)
        if chosen is not None and self.best.step == number:
            params = recipe.evaluated(self.config.optimizer, state)
            model = {"params": params, "state": state.state}
            self.best_models.save(number, model, {"valid": result})

    def _forget_best(self, which: Callable[[int], bool]) -> None:
        for step in self.best_models.steps():
            if which(step):
                self.best_models.delete(step)

    def _enough(self) -> bool:
        patience = self.config.stop.patience
        return bool(patience) and self.best.waited >= patience

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

    def _end(self, state: TrainState) -> None:
        """Evaluates what has not been, and writes down the results."""
        last = int(state.step)
        if (last, "test") not in self.evaluated:  # It was stopped after its last save.
            for name, split, model in self._all(state):
                self._judge(last, name, split, model, self.eval_step)
        models = self._models(state)

        def finally_judge(name: str, model: Model, step: Any) -> None:
            # The mark takes these lines away where a run that ended here ends again.
            self._tell(last, name, self._judge(last, name, "test", model, step), final=True)

        if self.config.average.reestimate and jax.tree.leaves(state.state):
            name = "_average_reestimated"
            models[name] = self._reestimated(state)
            finally_judge(f"test{name}", models[name], self.eval_step)
        if self.config.checkpoint.best is not None and self.best.step < 0:
            text = "no evaluation on the valid split gave a number: there is no best model"
            print(text, file=self.out)
        elif self.config.checkpoint.best is not None:
            params, stats = models[""]
            like = self.mapper.spec({"params": params, "state": stats})
            found, _ = self.best_models.restore(like)
            models["_best"] = self.mapper.place((found["params"], found["state"]))
            finally_judge("test_best", models["_best"], self.eval_step)
        if self.experiment.views:
            step = self.mapper.compile(self._eval_step(self.experiment.views))
            for name, model in models.items():
                finally_judge(f"test{name}_views", model, step)
        finals = {
            "final" + name.removeprefix("test"): self._line(last, name, metrics)
            for (number, name), metrics in self.evaluated.items()
            if number == last and name.startswith("test")
        }
        model = {"params": state.params, "state": state.state}
        digest = tree.digest(self.mapper.replicate(model))
        self.log.note(
            status="finished", end=runlog.now(), seconds=self.seconds(), **finals, digest=digest
        )

    def _reestimated(self, state: TrainState) -> Model:
        """The averaged model with batch statistics of its own."""
        params, stats = state.average
        # As they are seen in evaluation, and in batches as of training.
        train, prepare = load(self.config, self.config.data.train), self._prepare()
        images = (
            prepare(batch.images)
            for batch in feeds.evaluation(train, self.plan.batch_size, self.mapper)
            if batch.mask.all()
        )
        key = jax.random.fold_in(state.key, self.plan.steps)
        found = reestimated(self.experiment.net, params, stats, images, key)
        return self.mapper.place((params, found))

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
        images = self._prepare()(jnp.asarray(self.experiment.train.sample(START_IMAGES)))
        return jax.jit(self.experiment.begin)(params, images.astype(jnp.float32))

    def _prepare(self) -> Any:
        return normalise(*self.pixels, self.config.precision)

    def _eval_step(self, views: Any = ()) -> Any:
        prepare, axis = self._prepare(), self.mapper.axis
        return make_eval_step(self.experiment.net, prepare=prepare, views=views, axis=axis)

    def _start_compiling(self, compiler: Compiler, state: TrainState) -> tuple[Program, Program]:
        """The train step and the evaluation step, which are being compiled."""
        experiment, config, mapper = self.experiment, self.config, self.mapper
        step = make_step(
            experiment.net,
            experiment.optimizer,
            LOSSES[config.loss.name],
            prepare=self._prepare(),
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
        test = self.experiment.judged["test"]
        batch = feeds.evaluation_spec(test, self.eval_batch, mapper)
        model = (placed.params, placed.state)
        return program, compiler.start(mapper.compile(self._eval_step()), model, batch)

    def _tell_compilation(self) -> None:
        compiled = {"train_step": self.step, "evaluation_step": self.eval_step}
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

    def _line(self, number: int, split: str, metrics: Metrics) -> dict[str, Any]:
        """A line of the metric log, but for its times."""
        where = {"step": number, "epoch": number / self.plan.epoch, "split": split}
        return where | means(metrics)
