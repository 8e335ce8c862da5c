"""What a sweep varies: a function that takes each value, by its path, from whoever chooses.

    space = space_of(["optimizer.learning_rate=log(1e-4, 1e-1)", "model.args.width=16,32,64"])

    def space(choose):                          # the same in Python, which may have conditions
        choose.log("optimizer.learning_rate", 1e-4, 1e-1)
        if choose.of("model.name", "small", "lenet5") == "small":
            choose.of("model.args.width", 16, 32, 64)

    check(space, config)                        # all ends and values make valid configs
    resolve(config, {"optimizer.learning_rate": 0.01}, seed=3)

A point is what was chosen, `dict[path, value]`. JAX is not imported.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convjax.config import ConfigError, Experiment, validate
from convjax.sweep import distributions
from convjax.sweep.distributions import (
    HOW,
    SpaceError,
    contains,
    ends,
    members,
    parse,
    with_values,
    written,
)

if TYPE_CHECKING:
    from convjax.sweep.distributions import Distribution

Point = dict[str, Any]
Pick = Callable[[str, "Distribution"], Any]


class Choose:
    """What a space asks for its values.

    pick: gives the value of a path, of its distribution.
    """

    def __init__(self, pick: Pick):
        self.pick = pick
        self.point: Point = {}
        self.distributions: dict[str, Distribution] = {}

    def log(self, path: str, low: float, high: float) -> float:
        """A real number from `low` to `high`, whose logarithm is uniform."""
        return self.take(path, distributions.log(low, high))

    def uniform(self, path: str, low: float, high: float) -> float:
        """A real number from `low` to `high`."""
        return self.take(path, distributions.uniform(low, high))

    def integers(self, path: str, low: int, high: int, step: int = 1) -> int:
        """One of low, low + step, ..., at most `high`."""
        return self.take(path, distributions.integers(low, high, step))

    def of(self, path: str, *values: Any) -> Any:
        """One of the values."""
        return self.take(path, distributions.of(*values))

    def take(self, path: str, distribution: Distribution) -> Any:
        """A value of the distribution.

        Raises: SpaceError for a path that has its value already, or that no sweep varies.
        """
        if path in self.point:
            raise SpaceError(f"{path} is varied twice: give all its values at once")
        if path in _NEVER:
            raise SpaceError(f"{path} is not varied: {_NEVER[path]}")
        self.distributions[path] = distribution
        self.point[path] = self.pick(path, distribution)
        return self.point[path]


Space = Callable[[Choose], Any]


@dataclass
class Sweep:
    """What is swept, and how; `convjax.sweep.launch` runs it."""

    vary: Space | Mapping[str, Distribution] | Iterable[str]
    """A function, or what `space_of` makes one of."""
    config: Experiment = field(default_factory=Experiment)
    """What all trials share."""
    seeds: int = 1
    """Runs of each point, of seeds config.seed, config.seed + 1, ...; their mean is its result."""
    trials: int | None = None
    """The number of points; None for all of a grid."""
    sampler: str = "tpe"
    """One of `convjax.sweep.sampler.NAMES`."""
    pruner: str | None = None
    """One of `convjax.sweep.pruner.NAMES`, by which trials that fall behind end early; or None."""
    objective: str = "max test accuracy"
    """What `convjax.sweep.objective.parse` reads."""


def space_of(vary: Space | Mapping[str, Distribution] | Iterable[str]) -> Space:
    """A space that varies each path by itself, of texts for `parse` or of distributions by path.

    A function is a space as it is.
    """
    if callable(vary):
        return vary
    items = list(vary.items() if isinstance(vary, Mapping) else map(parse, vary))

    def space(choose: Choose) -> None:
        for path, distribution in items:
            choose.take(path, distribution)

    return space


def described(space: Space) -> dict[str, Any]:
    """What JSON can hold of a space, which equal spaces share: each path's distributions, as texts.

    corners: the SHA-256 of them, which tells apart what other conditions make of the same paths.
    """
    points = corners(space)
    varied: dict[str, list[str]] = {}
    for point in points:
        for path, each in (trace(space, point) or {}).items():
            texts = varied.setdefault(path, [])
            texts += [written(each)] * (written(each) not in texts)
    return {"varied": varied, "corners": hashlib.sha256(json.dumps(points).encode()).hexdigest()}


def check(space: Space, config: Experiment, seeds: int = 1) -> None:
    """Refuses a space with ends or values of which no valid config is made.

    Raises: SpaceError that says at which point, or that nothing is varied.
    """
    for point in corners(space):
        if not point:
            raise SpaceError(f"there is a point at which nothing is varied: {HOW}")
        resolve(config, point, config.seed + seeds - 1)


def resolve(config: Experiment, point: Mapping[str, Any], seed: int) -> Experiment:
    """The config of a trial: a copy of `config` with the values of a point, and the seed; valid.

    Raises: SpaceError that says at which point something is wrong.

    >>> resolve(Experiment(), {"model.args.width": 16}, seed=3).model.args
    {'width': 16}
    """
    try:
        resolved = with_values(config, {**point, "seed": seed})
        validate(resolved)
    except ConfigError as error:
        raise SpaceError(f"of the sweep, {shown(point)} cannot be run: {error}") from None
    return resolved


def shown(point: Mapping[str, Any]) -> str:
    """A point as a person reads it.

    >>> shown({"optimizer.learning_rate": 0.1, "model.name": "small"})
    'optimizer.learning_rate=0.1, model.name=small'
    """
    return ", ".join(f"{path}={value}" for path, value in point.items())


def grid(space: Space) -> list[Point]:
    """All points, the last path varying fastest, as `itertools.product` has it.

    Raises: SpaceError for a range of real numbers, and for more than 100,000 points.

    >>> [shown(point) for point in grid(space_of(["batch_size=32,64", "epochs=1,2"]))]
    ['batch_size=32, epochs=1.0', 'batch_size=32, epochs=2.0', 'batch_size=64, epochs=1.0', \
'batch_size=64, epochs=2.0']
    """

    def options(path: str, distribution: Distribution) -> Sequence[Any]:
        values = members(distribution)
        if values is None:
            low, high = ends(distribution)
            raise SpaceError(
                f"{path} is a range of real numbers, and a grid takes values: give them, such as "
                f"--vary {path}={low:g},{high:g}, or another sampler"
            )
        return values

    points = list(itertools.islice(_every(space, options), _LARGEST + 1))
    if len(points) > _LARGEST:
        raise SpaceError(f"a grid of more than {_LARGEST:,} points: give fewer values of each path")
    return points


def corners(space: Space) -> list[Point]:
    """Points that have all ends of ranges and all values: up to 512, each with each other."""

    def options(path: str, distribution: Distribution) -> Sequence[Any]:
        return ends(distribution)

    found = list(itertools.islice(_every(space, options), _CORNERS + 1))
    if len(found) <= _CORNERS:
        return found
    # Each in its turn, and then some of what they are together, the same ones always.
    turns = [
        walk(space, lambda _, each, turn=turn: ends(each)[turn % len(ends(each))])
        for turn in range(_CORNERS // 2)
    ]
    dice = random.Random(0)
    drawn = [walk(space, lambda _, each: dice.choice(ends(each))) for _ in range(_CORNERS // 2)]
    return [each.point for each in turns + drawn]


def walk(space: Space, pick: Pick) -> Choose:
    """The `point` that comes of it when `pick` chooses, and the `distributions` it is of."""
    choose = Choose(pick)
    space(choose)
    return choose


def trace(space: Space, point: Mapping[str, Any]) -> dict[str, Distribution] | None:
    """The distributions that a point is of; None if it is none of the space."""

    def pick(path: str, distribution: Distribution) -> Any:
        if path not in point or not contains(distribution, point[path]):
            raise _NotThereError
        return point[path]

    try:
        found = walk(space, pick)
    except _NotThereError:
        return None
    return found.distributions if len(found.point) == len(point) else None


# -- What these are made of ------------------------------------------------------------------------


def _every(space: Space, options: Callable[[str, Distribution], Sequence[Any]]) -> Iterator[Point]:
    """Every point, the last choice varying fastest; later choices may depend on earlier ones.

    It counts as an odometer does, whose wheels are the choices of one walk.
    """
    wheels: list[list[int]] = []  # which option was taken, of how many
    while True:
        seen = 0

        def pick(path: str, distribution: Distribution) -> Any:
            nonlocal seen
            values = options(path, distribution)
            if seen == len(wheels):
                wheels.append([0, len(values)])
            seen += 1
            return values[wheels[seen - 1][0]]

        yield walk(space, pick).point
        while wheels and wheels[-1][0] + 1 == wheels[-1][1]:
            wheels.pop()
        if not wheels:
            return
        wheels[-1][0] += 1


class _NotThereError(Exception):
    pass


_NEVER = {
    "seed": "every point is run with as many seeds as --seeds=N says",
    "name": "it changes no result; all trials have that of --config.name=NAME",
}
_CORNERS = 512  # A config is checked in about a millisecond.
_LARGEST = 100_000
