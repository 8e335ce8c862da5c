"""What is evaluated of a run, what of it is kept, and when it is enough.

judge.evaluate(step, state)                 # all models on all splits, told and written down
if judge.enough(): ...
finals = judge.conclude(state)              # what is told of the end alone
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import jax
from tqdm import tqdm

from convjax.assemble import Assembled, load
from convjax.interrupts import Interrupts
from convjax.layer import Params, State
from convjax.runlog import RunLog, closing_line, line_of
from convjax.training import feed as feeds
from convjax.training import recipe
from convjax.training.average import reestimated
from convjax.training.choose import Best, better
from convjax.training.evaluate import batch_size_for, evaluate
from convjax.training.metrics import Metrics, means
from convjax.training.state import TrainState
from convjax.training.step import Batch, EvalStep, Prepare, make_eval_step

if TYPE_CHECKING:
    from convjax.checkpoint import Checkpoints  # It loads Orbax.

Model = tuple[Params, State]


class Judged(NamedTuple):
    """An evaluation, and how fast it was."""

    metrics: Metrics
    images_per_second: float


class Judge:
    """The evaluations of a run.

    prepare: what becomes of images first.
    out: where evaluations are told. seconds: how long the run has trained.
    interrupts: the signals that may break off an evaluation.
    """

    step: EvalStep  # compiled; to be set before the first evaluation
    kept: Checkpoints  # the best models; likewise, if config.checkpoint.best asks for them

    def __init__(
        self,
        experiment: Assembled,
        prepare: Prepare,
        log: RunLog,
        out: TextIO,
        seconds: Callable[[], float],
        interrupts: Interrupts = Interrupts(),
    ):
        self.experiment, self.config, self.plan = experiment, experiment.config, experiment.plan
        self.mapper, self.prepare = experiment.mapper, prepare
        self.log, self.out, self.seconds, self.interrupts = log, out, seconds, interrupts
        largest = max(split.size for split in experiment.judged.values())
        devices = len(self.mapper.devices)
        self.batch_size = batch_size_for(self.config.eval_batch_size, devices, largest)
        self.evaluated: dict[tuple[int, str], Metrics] = {}
        self.best = Best()

    def program(self, views: Any = ()) -> Any:
        """The evaluation step, to be compiled, by such views of each image."""
        net, axis = self.experiment.net, self.mapper.axis
        step = make_eval_step(net, prepare=self.prepare, views=views, axis=axis)
        return self.mapper.compile(step)

    def batch_spec(self) -> Batch:
        """Shapes and shardings of the batches of its step."""
        test = self.experiment.judged["test"]
        return feeds.evaluation_spec(test, self.batch_size, self.mapper)

    def evaluate(self, number: int, state: TrainState) -> None:
        """Evaluates all models on all splits after that many steps, and keeps the best."""
        for name, split, model in self._all(state):
            judged = self._judge(number, name, split, model, self.step)
            self._tell(number, name, judged)
        if "valid" in self.experiment.judged:
            self._compare(number, state)

    def results(self, number: int) -> dict[str, dict[str, Any]]:
        """The means of what was evaluated after that many steps, by name."""
        return {
            name: means(metrics)
            for (step, name), metrics in self.evaluated.items()
            if step == number
        }

    def enough(self) -> bool:
        """Whether so many evaluations in a row were no better that training is to end."""
        patience = self.config.stop.patience
        return bool(patience) and self.best.waited >= patience

    def conclude(self, state: TrainState) -> dict[str, Any]:
        """Evaluates what is told of the end alone; the results by "final", "final_average", ..."""
        last = int(state.step)
        if (last, "test") not in self.evaluated:  # It was stopped after its last save.
            for name, split, model in self._all(state):
                self._judge(last, name, split, model, self.step)
        models = self._models(state)

        def finally_judge(name: str, model: Model, step: Any) -> None:
            # The mark takes these lines away where a run that ended here ends again.
            self._tell(last, name, self._judge(last, name, "test", model, step), final=True)

        if self.config.average.reestimate and jax.tree.leaves(state.state):
            name = "_average_reestimated"
            models[name] = self._reestimated(state)
            finally_judge(f"test{name}", models[name], self.step)
        if self.config.checkpoint.best is not None and self.best.step < 0:
            text = "no evaluation on the valid split gave a number: there is no best model"
            print(text, file=self.out)
        elif self.config.checkpoint.best is not None and self.kept.newest() != self.best.step:
            print("the best model is lost, as was told: there is none to test", file=self.out)
        elif self.config.checkpoint.best is not None:
            params, stats = models[""]
            like = self.mapper.spec({"params": params, "state": stats})
            found, _ = self.kept.restore(like)
            models["_best"] = self.mapper.place((found["params"], found["state"]))
            finally_judge("test_best", models["_best"], self.step)
        if self.experiment.views:
            step = self.program(self.experiment.views)
            for name, model in models.items():
                finally_judge(f"test{name}_views", model, step)
        return {
            "final" + name.removeprefix("test"): line_of(
                last, self.plan.epoch, name, means(metrics)
            )
            for (number, name), metrics in self.evaluated.items()
            if number == last and name.startswith("test")
        }

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
        batches = feeds.evaluation(images, self.batch_size, self.mapper)
        with self.interrupts.released():
            metrics = evaluate(step, model, batches)
        self.evaluated[number, name] = metrics
        return Judged(metrics, metrics.count / (time.perf_counter() - begun))

    def _tell(self, number: int, name: str, judged: Judged, **more: Any) -> None:
        """Writes an evaluation down, and shows it."""
        rate = {"images_per_second": judged.images_per_second, "seconds": self.seconds()}
        self.log.log(line_of(number, self.plan.epoch, name, means(judged.metrics)) | rate | more)
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
            self.kept.save(number, model, {"valid": result})

    def _reestimated(self, state: TrainState) -> Model:
        """The averaged model with batch statistics of its own."""
        params, stats = state.average
        # As they are seen in evaluation, and in batches as of training.
        train, prepare = self.experiment.train, self.prepare
        if self.config.data.view is not None:
            train = load(self.config, self.config.data.train)
        images = (
            prepare(batch.images)
            for batch in feeds.evaluation(train, self.plan.batch_size, self.mapper)
            if batch.mask.all()
        )
        key = jax.random.fold_in(state.key, self.plan.steps)
        found = reestimated(self.experiment.net, params, stats, images, key)
        return self.mapper.place((params, found))
