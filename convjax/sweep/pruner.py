"""Which trials end before their time, as others were better when they had come as far.

    pruning = Pruning(store, sweep, store.definition(sweep))        # in each process that trains
    why = pruning.report(claim, step, {"test": {"loss": 0.4, "accuracy": 0.9}})
    if why:
        claim.fail(Outcome.PRUNED, why, result)

Pruners are Optuna's, over a study in memory of what all trials of the sweep have reported. So the
answer depends on the record alone, and not on who asks. What they count are evaluations, not steps:
trials may differ in their batch size. Each seed of a point is a trial of its own.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convjax.config import UserError
from convjax.names import nearest
from convjax.sweep import objective as objectives
from convjax.sweep.distributions import ends, parse
from convjax.sweep.objective import Objective
from convjax.sweep.reports import Curve
from convjax.sweep.store import Claim, Store
from convjax.sweep.studies import warnings_only

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

NAMES = ("halving", "hyperband", "median")
# What there is at each evaluation; all other splits are evaluated at the end alone, or never.
_SPLITS = ("test", "valid", "test_average", "valid_average")


def check_name(name: str) -> None:
    """Raises UserError, with the nearest right one, for a name that is no pruner's."""
    if name not in NAMES:
        raise UserError(f"--pruner={name}: {nearest(name, NAMES)}")


def check(definition: Mapping[str, Any]) -> None:
    """Refuses a sweep whose pruner could never judge.

    definition: as the record has it; its pruner may be None.

    Raises:
        UserError: for a pruner that there is not, an objective that is known at the end alone, runs
            of one evaluation, and a library that is missing.
    """
    name, objective = definition.get("pruner"), objectives.parse(definition["objective"])
    if name is None:
        return
    check_name(name)
    if objective.split not in _SPLITS:
        other = objective._replace(split="test")
        raise UserError(
            f"--pruner={name} goes by every evaluation, and there is no {objective.split} in them: "
            f"give --objective={str(other)!r}, or no --pruner"
        )
    most = most_evaluations(definition)
    if most == 1:
        raise UserError(
            f"--pruner={name} has nothing to prune, as runs are evaluated at their end alone: give "
            "more --config.epochs, --config.eval_every_steps, or no --pruner"
        )
    if most is None and name == "hyperband":
        raise UserError(
            "--pruner=hyperband has to know how often runs are evaluated: give "
            "--config.eval_every_epochs and no eval_every_steps, or --pruner=halving"
        )
    _pruner(name, most)


def most_evaluations(definition: Mapping[str, Any]) -> int | None:
    """How many evaluations the longest run of a sweep has; None if it goes by steps."""
    config, varied = definition["config"], definition["space"]["varied"]

    def values(path: str) -> list[Any]:
        texts = varied.get(path)
        if texts is None:
            return [config[path]]
        return [value for text in texts for value in ends(parse(f"{path}={text}")[1])]

    if any(values("eval_every_steps")):
        return None
    return _evaluations(max(values("epochs")), min(values("eval_every_epochs")))


class Pruning:
    """What every process that trains tells its evaluations to, and asks which trials are to end.

    definition: of the sweep. Without a pruner, and without evaluations of the objective's split,
        nothing is pruned; what there is is written down all the same.

    Raises:
        UserError: if a library is missing.
    """

    def __init__(self, store: Store, sweep: int, definition: Mapping[str, Any]):
        self._store, self._sweep, self._name = store, sweep, definition.get("pruner")
        self._objective: Objective = objectives.parse(definition["objective"])
        self._most = most_evaluations(definition) if self._name == "hyperband" else None
        if self._name is not None:
            self._begin(self._name)

    def report(self, claim: Claim, step: int, results: Mapping[str, Any]) -> str | None:
        """Writes an evaluation of a trial down; why it is to be pruned, None if it is not.

        step: after how many. results: loss and accuracy of each split. The last evaluation of a run
        prunes nothing: it is over.
        """
        split, metric = self._objective.split, self._objective.metric
        if split not in results:
            return None
        value = float(results[split][metric])
        known = value if math.isfinite(value) else None
        self._store.reports.add(self._sweep, claim.trial.digest, step, known)
        if self._name is None:
            return None
        with warnings.catch_warnings(), warnings_only():
            # NumPy says so of a trial that has no number yet; Optuna ends it.
            warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
            falls_behind = self._judge(self._name, claim.trial.number)
        done, config = len(self._curves[claim.trial.number]), claim.trial.config
        last = _evaluations(config["epochs"], config["eval_every_epochs"])
        if not falls_behind or (not config["eval_every_steps"] and done >= last):
            return None
        return f"{self._name}: {split} {metric} {value:.4f} at evaluation {done}, step {step}"

    def _begin(self, name: str) -> None:
        """Forgets all that was read."""
        import optuna

        self._mark = (0, 0, 0)
        self._trials: list[Trial] = []
        self._curves: dict[int, Curve] = {}
        with warnings_only():
            self._study = optuna.create_study(
                # Hyperband draws a trial's bracket from this name and its number.
                study_name="sweep",
                direction="maximize" if self._objective.direction == "max" else "minimize",
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=_pruner(name, self._most),
            )

    def _judge(self, name: str, place: int) -> bool:
        """Whether the pruner would end the trial of a place, after all that was reported."""
        news = self._store.reports.news(self._sweep, self._mark)
        if any(
            each in self._curves and step <= self._curves[each][-1][0]
            for each, step, _ in news.reports
        ):
            # A run was taken up again from before; Optuna's trials go forward alone.
            self._begin(name)
            news = self._store.reports.news(self._sweep)
        self._mark = news.mark
        last = max((n for n, (each, _, _) in enumerate(news.reports) if each == place), default=-1)
        for n, (each, step, value) in enumerate(news.reports):
            trial, curve = self._trial(each), self._curves.setdefault(each, [])
            curve.append((step, value))
            trial.report(math.nan if value is None else value, len(curve))
            # Halving notes in the trial which rungs it has come to, for the others to be compared
            # with. It is asked once for each evaluation, as whoever trains the trial asks.
            if name != "median" and n != last:
                trial.should_prune()
        for each in news.finished:
            final = self._curves[each][-1][1] if each in self._curves else None
            if final is not None:
                self._study.tell(each, final, skip_if_finished=True)
        return self._trial(place).should_prune()

    def _trial(self, place: int) -> Trial:
        while len(self._trials) <= place:
            self._trials.append(self._study.ask())
        return self._trials[place]


def _evaluations(epochs: float, every: int) -> int:
    """How many a run of so many epochs has, of which the last is at its end."""
    return math.ceil(epochs / every)


def _pruner(name: str, most: int | None) -> BasePruner:
    try:
        pruners = importlib.import_module("optuna.pruners")
    except ModuleNotFoundError as error:
        raise UserError("a sweep needs optuna: pip install 'convjax[sweep]'") from error
    if name == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=1)
    if name == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=most)
    return pruners.MedianPruner()
