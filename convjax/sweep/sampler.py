"""Which point is tried next: a function of a seed, its number, and what came of the points before.

    sampler = make("tpe", space, seed=0, direction="max")
    told = [Told({"optimizer.learning_rate": 0.01}, 0.91, "finished"), ...]   # in order of number
    point = sampler.ask(len(told), told)                                      # None: no more points

What is kept from one question to the next saves time alone: a sampler made anew proposes the same,
so a sweep that was stopped goes on as it would have. Point n of grid, random and halton depends on
n alone, wherever it is a new one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convjax.config import UserError
from convjax.names import nearest
from convjax.sweep.distributions import SpaceError, at, quiet, share_of
from convjax.sweep.space import Point, Space, corners, grid, trace, walk
from convjax.sweep.studies import Kept, Told, warnings_only
from convjax.typed import build

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from convjax.sweep.distributions import Distribution


# States of points that are no good whatever else came of them.
HOPELESS = ("diverged", "out_of_memory")


def joined(
    point: Mapping[str, Any],
    results: Sequence[tuple[float | None, str]],
    epochs: Sequence[float] = (),
) -> Told:
    """What came of a point: the mean over its seeds that finished, unless one of them diverged.

    It is pruned if one of them is. The mean then is of the others and of the last value of those:
    the seeds that are left are the better ones, and alone would flatter it.

    results: (value, state) of the trial of each seed; a waiting one runs, as far as samplers go.
    epochs: how far each of them came.

    >>> joined({"epochs": 2.0}, [(0.5, "finished"), (0.25, "finished"), (None, "killed")]).value
    0.375
    >>> joined({"epochs": 2.0}, [(0.5, "finished"), (0.25, "pruned")])[1:3]
    (0.375, 'pruned')
    """
    states = [state for _, state in results]
    for state in ("waiting", "running", *HOPELESS):
        if state in states:
            return Told(point, None, "running" if state == "waiting" else state)
    ends = ("finished", "pruned")
    values = [value for value, state in results if state in ends and value is not None]
    mean = math.fsum(values) / len(values) if values else None
    if "pruned" in states:
        return Told(point, mean, "pruned", math.fsum(epochs))
    if mean is not None:
        return Told(point, mean, "finished")
    return Told(point, None, states[0] if states else "running")


class Sampler:
    """What proposes points of a space.

    propose: the point of a number, at the n-th attempt, after what was told; None if there is none.
    space: where they are from. seed: of what is drawn where it proposes nothing new.
    """

    def __init__(
        self,
        propose: Callable[[int, int, Sequence[Told]], Point | None],
        space: Space,
        seed: int,
    ):
        self.propose, self.space, self.seed = propose, space, seed
        self._known: list[_Known] = []

    def ask(self, number: int, told: Sequence[Told]) -> Point | None:
        """The next point, which is none of those told; None if all there are have been asked for.

        told: in order of number, with those that are running.
        """
        self._learn(told)
        asked = [each.point for each in self._known]
        own = [each.own for each in self._known if each.own is not None]
        for attempt in range(_ATTEMPTS):
            point = self.propose(number, attempt, own)
            if point is None or point not in asked:
                return point
        try:
            points = grid(self.space)
        except SpaceError:  # There are endless ones.
            drawn = (_drawn(self.space, self.seed, number, 1 + n) for n in range(_ATTEMPTS**2))
            return next((point for point in drawn if point not in asked), None)
        return next((point for point in points if point not in asked), None)

    def _learn(self, told: Sequence[Told]) -> None:
        """Makes `_known` what is told, of which most was so before."""
        del self._known[len(told) :]
        for index, each in enumerate(told):
            if index == len(self._known):
                self._known.append(self._seen(each))
            elif each is not self._known[index].told and each != self._known[index].told:
                self._known[index] = self._seen(each, self._known[index])

    def _seen(self, told: Told, before: _Known | None = None) -> _Known:
        if before is not None and before.told.point == told.point:
            return _Known(told, before.point, before.own and told._replace(point=before.point))
        point = build(told.point, Any)  # In JSON, tuples are lists.
        own = None if trace(self.space, point) is None else told._replace(point=point)
        return _Known(told, point, own)


class _Known(NamedTuple):
    """What was told, and its point in types of the space; own: None for another space's."""

    told: Told
    point: Point
    own: Told | None


def make(name: str, space: Space, seed: int, direction: str = "max") -> Sampler:
    """The sampler of a name, one of `NAMES`, for an objective that is to be "max" or "min".

    grid: all points in order. random, halton: evenly at random, and more evenly than that
    (scrambled, Owen 2017). tpe, gp: Optuna's TPESampler and GPSampler. cmaes: CMA-ES over what is
    always varied by ranges (Hansen 2016, the library cmaes), and the rest at random.

    A diverged point, or one that took too much memory, counts as the worst that finished.

    Raises: UserError for another name, a space that it cannot sample or a library that is missing.
    """
    check_name(name)
    if direction not in ("max", "min"):
        raise ValueError(f"direction is {direction!r}: give 'max' or 'min'")
    return Sampler(_MAKERS[name](space, seed, direction == "max"), space, seed)


def check_name(name: str) -> None:
    """Raises UserError, with the nearest right one, for a name that is no sampler's."""
    if name not in _MAKERS:
        raise UserError(f"--sampler={name}: {nearest(name, _MAKERS)}")


def seed_of(seed: int, number: int, attempt: int = 0) -> int:
    """What the generator of a proposal is seeded by, in [0, 2**32).

    >>> seed_of(0, 1) == seed_of(0, 1) != seed_of(0, 2)
    True
    """
    return int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])


# -- One for each name -----------------------------------------------------------------------------


def _grid(space: Space, seed: int, greatest: bool) -> Callable[..., Point | None]:
    points = grid(space)

    def propose(number: int, attempt: int, told: Sequence[Told]) -> Point | None:
        asked = [each.point for each in told]
        later = itertools.chain(points[number:], points[:number])
        return next((point for point in later if point not in asked), None)

    return propose


def _random(space: Space, seed: int, greatest: bool) -> Callable[..., Point]:
    def propose(number: int, attempt: int, told: Sequence[Told]) -> Point:
        return _drawn(space, seed, number, attempt)

    return propose


def _halton(space: Space, seed: int, greatest: bool) -> Callable[..., Point]:
    # A path keeps its dimension whether or not the others are there.
    paths = list(dict.fromkeys(path for point in corners(space) for path in point))

    def propose(number: int, attempt: int, told: Sequence[Told]) -> Point:
        from scipy.stats.qmc import Halton  # It takes a while to load.

        if attempt:
            return _drawn(space, seed, number, attempt)
        sequence = Halton(len(paths), scramble=True, rng=np.random.default_rng(seed))
        shares = dict(zip(paths, sequence.fast_forward(number).random(1)[0].tolist()))
        return _drawn(space, seed, number, attempt, shares)

    return propose


def _cmaes(space: Space, seed: int, greatest: bool) -> Callable[..., Point]:
    cma = _library("cmaes", "cmaes")
    ranges = _always_ranges(space)
    if not ranges:
        raise UserError("--sampler=cmaes needs a path that is always varied by a range: take tpe")

    def begun() -> Any:
        return cma.CMA(
            mean=np.full(len(ranges), 0.5),
            sigma=1 / 6,  # as Optuna has it: the ends are three deviations away
            bounds=np.tile([0.0, 1.0], (len(ranges), 1)),
            n_max_resampling=10 * len(ranges),
            seed=seed_of(seed, 0),
        )

    search, learnt = begun(), list[Told]()

    def propose(number: int, attempt: int, told: Sequence[Told]) -> Point:
        nonlocal search
        finished = [
            one
            for one in _counted(told, greatest)
            if one.state == "finished" and one.value is not None
        ]
        if finished[: len(learnt)] != learnt:
            search = begun()
            learnt.clear()
        size = search.population_size
        while len(finished) >= len(learnt) + size:
            generation = finished[len(learnt) : len(learnt) + size]
            search.tell([(shares_of(one.point), loss_of(one.value)) for one in generation])
            learnt.extend(generation)
        search.reseed_rng(seed_of(seed, number, attempt))
        return _drawn(space, seed, number, attempt, dict(zip(ranges, search.ask().tolist())))

    def shares_of(point: Mapping[str, Any]) -> np.ndarray:
        return np.array([share_of(each, point[path]) for path, each in ranges.items()])

    def loss_of(value: float | None) -> float:
        assert value is not None
        return -value if greatest else value

    return propose


def _tpe(space: Space, seed: int, greatest: bool) -> Callable[..., Point]:
    samplers = _library("optuna.samplers", "optuna")
    make = functools.partial(samplers.TPESampler, constant_liar=True)
    return _by_optuna(make, space, seed, greatest)


def _gp(space: Space, seed: int, greatest: bool) -> Callable[..., Point]:
    samplers = _library("optuna.samplers", "optuna")
    if importlib.util.find_spec("torch") is None:
        raise UserError("--sampler=gp needs torch, as Optuna's has it: pip install torch, or tpe")
    make = functools.partial(samplers.GPSampler, warn_independent_sampling=False)
    return _by_optuna(make, space, seed, greatest)


_MAKERS = {
    "grid": _grid,
    "random": _random,
    "halton": _halton,
    "tpe": _tpe,
    "cmaes": _cmaes,
    "gp": _gp,
}
NAMES = tuple(_MAKERS)


# -- What these are made of ------------------------------------------------------------------------


def _by_optuna(
    make: Callable[..., BaseSampler], space: Space, seed: int, greatest: bool
) -> Callable[..., Point]:
    """Proposals of a sampler of Optuna's."""
    kept = Kept(space, greatest)

    def propose(number: int, attempt: int, told: Sequence[Told]) -> Point:
        from optuna.trial import TrialState

        with quiet(), warnings_only():
            study = kept.after(_counted(told, greatest))
            study.sampler = make(seed=seed_of(seed, number, attempt))
            trial = study.ask()
            try:
                return walk(space, functools.partial(kept.suggested, trial)).point
            finally:
                study.tell(trial, state=TrialState.FAIL)  # It comes again, once it is told.

    return propose


def _counted(told: Sequence[Told], greatest: bool) -> list[Told]:
    """What was told, with the worst value for points that cannot be trained.

    Before any has finished there is no worst, and they have none.
    """
    values = [one.value for one in told if one.state == "finished" and one.value is not None]
    worst = (min if greatest else max)(values, default=None)
    return [Told(one.point, worst, "finished") if one.state in HOPELESS else one for one in told]


def _always_ranges(space: Space) -> dict[str, Distribution]:
    """The ranges that are the same at every point."""
    from optuna.distributions import CategoricalDistribution

    found = [trace(space, point) or {} for point in corners(space)]
    return {
        path: each
        for path, each in found[0].items()
        if not isinstance(each, CategoricalDistribution)
        and all(other.get(path) == each for other in found)
    }


def _drawn(
    space: Space, seed: int, number: int, attempt: int, shares: Mapping[str, float] | None = None
) -> Point:
    """A random point, but for the shares of some of its paths.

    Each path has a generator of its own, so that another one beside it changes nothing.
    """
    known = shares or {}

    def pick(path: str, each: Distribution) -> Any:
        words = [seed, number, attempt, zlib.crc32(path.encode())]
        return at(each, known[path] if path in known else np.random.default_rng(words).random())

    return walk(space, pick).point


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"a sweep needs {package}: pip install 'convjax[sweep]'") from error


_ATTEMPTS = 10
