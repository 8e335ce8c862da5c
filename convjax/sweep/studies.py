"""Studies of Optuna's in memory, made of what a sweep's record has.

    kept = Kept(space, greatest=True)
    study = kept.after(told)                    # in which all that was told is a trial
    with quiet(), warnings_only():
        point = walk(space, functools.partial(kept.suggested, study.ask())).point

Its journal on a disk bears no torn line, so the record is the sweep's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from convjax.sweep.distributions import written
from convjax.sweep.space import Space, corners, trace

if TYPE_CHECKING:
    from optuna import Study, Trial

    from convjax.sweep.distributions import Distribution


class Told(NamedTuple):
    """A point that was asked for, and what came of it.

    value: the objective, its mean over seeds; None if there is none.
    state: "running", or an outcome of `convjax.sweep.trial`.
    epochs: how far its seeds came, in all; what was pruned later is taken for the better.
    """

    point: Mapping[str, Any]
    value: float | None = None
    state: str = "running"
    epochs: float = 0.0


class Kept:
    """A study that is added to from one question to the next.

    Making a trial of Optuna's takes longer than all else, so this is done as long as it gives what
    a new study would be: the same trials in the same order, apart from failed ones, which none
    of the samplers look at.
    """

    def __init__(self, space: Space, greatest: bool):
        self._space, self._greatest = space, greatest
        self._first: dict[str, Distribution] = {}
        for point in corners(space):
            self._first = {**(trace(space, point) or {}), **self._first}
        self._told: list[Told] = []
        self._begin()

    def after(self, told: Sequence[Told]) -> Study:
        """The study, once it knows what was told, and that alone."""
        changed = [
            (index, one)
            for index, (before, one) in enumerate(zip(self._told, told))
            if one is not before and one != before
        ]
        ended = all(
            self._told[index].state == "running" and self._told[index].point == one.point
            for index, one in changed
        )
        if ended and len(told) >= len(self._told):
            for index, one in changed:
                self._told[index] = one
                self._end(self._trials[index], one)
        else:
            self._begin()
        for one in told[len(self._told) :]:
            self._told.append(one)
            self._trials.append(self._add(one))
        return self._study

    def suggested(self, trial: Trial, path: str, each: Distribution) -> Any:
        """What Optuna suggests for a path."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        name = self._name(path, each)
        if isinstance(each, CategoricalDistribution):
            return trial.suggest_categorical(name, each.choices)
        if isinstance(each, IntDistribution):
            return trial.suggest_int(name, each.low, each.high, step=each.step)
        return trial.suggest_float(name, each.low, each.high, log=each.log)

    def _name(self, path: str, each: Distribution) -> str:
        """What Optuna calls a path where it has this distribution.

        To Optuna, choices belong to a name, and ranges of one kind may share it. So where
        conditions give a path others than the first it has, they are part of the name.
        """
        first = self._first.setdefault(path, each)
        return path if _may_share(first, each) else f"{path}={written(each)}"

    def _begin(self) -> None:
        import optuna

        self._told.clear()
        self._trials: list[int] = []
        self._storage = optuna.storages.InMemoryStorage()
        with warnings_only():
            direction = "maximize" if self._greatest else "minimize"
            self._study = optuna.create_study(direction=direction, storage=self._storage)
        self._number = self._storage.get_study_id_from_name(self._study.study_name)

    def _add(self, one: Told) -> int:
        """A new trial."""
        from optuna.trial import TrialState, create_trial

        found = trace(self._space, one.point) or {}
        names = {path: self._name(path, each) for path, each in found.items()}
        trial = create_trial(
            state=TrialState.RUNNING,
            params={name: one.point[path] for path, name in names.items()},
            distributions={name: found[path] for path, name in names.items()},
        )
        number = self._storage.create_new_trial(self._number, trial)
        self._end(number, one)
        return number

    def _end(self, trial: int, one: Told) -> None:
        """Says what came of a trial that runs, if anything has."""
        from optuna.trial import TrialState

        end, value = self._storage.set_trial_state_values, one.value
        if one.state == "pruned":
            if value is not None:
                # Optuna compares how far they came in whole steps.
                step = round(1000 * one.epochs)
                self._storage.set_trial_intermediate_value(trial, step, value)
            end(trial, TrialState.PRUNED)
        elif one.state == "finished" and value is not None:
            end(trial, TrialState.COMPLETE, [value])
        elif one.state != "running":
            end(trial, TrialState.FAIL)


@contextlib.contextmanager
def warnings_only() -> Iterator[None]:
    """Keeps Optuna from telling of each study that is made."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _may_share(one: Distribution, other: Distribution) -> bool:
    """Whether Optuna takes both for one parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(one, CategoricalDistribution) or isinstance(other, CategoricalDistribution):
        return written(one) == written(other)
    if isinstance(one, FloatDistribution) and isinstance(other, FloatDistribution):
        return one.log == other.log
    return type(one) is type(other)
