"""Where the values of a sweep's points lie on an axis: ranges, logarithms, choices, and no value.

axis, *_ = axes([{"optimizer.learning_rate": 0.01}, {}], {"optimizer.learning_rate": [log(...)]})
axis.places                     # the logarithm to base 10; a place of its own for no value
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from convjax.config import UserError
from convjax.flags import literal
from convjax.sweep.distributions import ends, members, of, parse
from convjax.typed import build

if TYPE_CHECKING:
    from convjax.sweep.distributions import Distribution

UNSET = "unset"


class Axis(NamedTuple):
    """One path of a config, and where each point lies on it.

    label: the end of the path by which it is told from the others.
    places: one for each point, in order. ticks: (place, text).
    low, high: the ends. start, size: cells of that size, from this place on, hold a value each, or
        an equal share of a range.
    """

    path: str
    label: str
    places: list[float]
    ticks: list[tuple[float, str]]
    low: float
    high: float
    start: float
    size: float


def distributions_of(definition: Mapping[str, Any]) -> dict[str, list[Distribution]]:
    """The distributions of each path in a sweep's definition; none of one that cannot be read."""
    found = {}
    for path, texts in definition.get("space", {}).get("varied", {}).items():
        try:
            found[path] = [_read(path, text) for text in texts]
        except UserError:  # Of another version, that had such a field.
            found[path] = []
    return found


def axes(
    points: Sequence[Mapping[str, Any]], varied: Mapping[str, Sequence[Distribution]]
) -> list[Axis]:
    """An axis for each path of the points, in the order in which paths appear.

    varied: the distributions of each path. A path without any has what its points have: numbers
    are a range, anything else is a choice.
    """
    paths = list(dict.fromkeys(path for point in points for path in point))
    labels = _labels(paths)
    found = []
    for path in paths:
        values = [build(point[path], Any) for point in points if path in point]
        kind = _kind(list(varied.get(path, [])), values)
        missing = kind.start - 1.5 * kind.size
        places = [kind.place(point[path]) if path in point else missing for point in points]
        is_set = len(values) == len(points)
        found.append(
            Axis(
                path,
                labels[path],
                places,
                kind.ticks if is_set else [(missing, UNSET), *kind.ticks],
                kind.start if is_set else missing - kind.size / 2,
                kind.end,
                kind.start,
                kind.size,
            )
        )
    return found


def shown(value: Any) -> str:
    """A value as a person reads it; a long number is rounded."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- What these are made of ------------------------------------------------------------------------


def _read(path: str, text: str) -> Distribution:
    """The inverse of `convjax.sweep.distributions.written`, of values that no flag spells, too."""
    values = literal(f"[{text}]")
    return of(*values) if isinstance(values, list) else parse(f"{path}={text}")[1]


_CELLS = 8  # of a range: pictures of two have 64
_STEPS = 12  # whole numbers up to which each has a cell of its own


class _Kind(NamedTuple):
    start: float
    size: float
    end: float
    ticks: list[tuple[float, str]]
    choices: list[Any] | None = None
    logarithm: bool = False

    def place(self, value: Any) -> float:
        if self.choices is not None:
            return float(_index(self.choices, build(value, Any)))
        return math.log10(value) if self.logarithm else float(value)


def _kind(distributions: list[Distribution], values: Sequence[Any]) -> _Kind:
    """One kind for all that a path is varied by."""
    given = [members(each) for each in distributions]
    if any(each is not None and not isinstance(each, range) for each in given) or not all(
        map(_is_number, values)
    ):
        choices: list[Any] = []
        known = [value for each in given if each is not None for value in each]
        for value in [*known, *values]:
            if _index(choices, value) == len(choices):
                choices.append(value)
        ticks = [(float(index), shown(value)) for index, value in enumerate(choices)]
        return _Kind(-0.5, 1.0, len(choices) - 0.5, ticks, choices)
    bounds = [float(end) for each in distributions for end in ends(each)] or list(
        map(float, values)
    )
    low, high = min(bounds), max(bounds)
    whole = [each for each in given if isinstance(each, range)]
    if len(whole) == len(given) == 1 and len(whole[0]) <= _STEPS:
        step = whole[0].step
        ticks = [(float(value), str(value)) for value in whole[0]]
        return _Kind(low - step / 2, step, high + step / 2, ticks)
    if low == high:
        return _Kind(low - 0.5, 1.0, low + 0.5, [(low, shown(low))])
    logarithm = bool(distributions) and all(getattr(each, "log", False) for each in distributions)
    ticks = _log_ticks(low, high) if logarithm else _ticks(low, high)
    low, high = (math.log10(low), math.log10(high)) if logarithm else (low, high)
    return _Kind(low, (high - low) / _CELLS, high, ticks, None, logarithm)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _index(choices: Sequence[Any], value: Any) -> int:
    # To Python, 1 is True; and a NaN is in no list.
    words = [repr(each) for each in choices]
    return words.index(repr(value)) if repr(value) in words else len(choices)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Multiples of 1, 2 or 5 times a power of ten, at most seven of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(each * power for each in (1, 2, 5, 10) if (high - low) / (each * power) <= 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(number * step, f"{number * step:.6g}") for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, with 2 and 5 times them on a short axis; places are logarithms."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [each for each in values if low * (1 - 1e-9) <= each <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            return [(math.log10(each), f"{each:g}") for each in inside]
    return [(math.log10(each), f"{each:.4g}") for each in (low, high)]


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """For each path its shortest end that no other path has."""
    labels = {}
    for path in paths:
        parts = path.split(".")
        # A name says nothing without what it names.
        fewest = min(2 if parts[-1] == "name" else 1, len(parts))
        tails = [".".join(parts[-count:]) for count in range(fewest, len(parts) + 1)]
        labels[path] = next(
            (tail for tail in tails if sum(f".{each}".endswith(f".{tail}") for each in paths) == 1),
            path,
        )
    return labels
