"""The intervals of rows of an image that the numbers of one array depend on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

EMPTY = 2**40  # beyond any row: the first row of an interval without any, and the last is -EMPTY


class Span(NamedTuple):
    """The intervals of one array, in one dimension of the image.

    bounds: int64 `[4, *shape]`, where axes along which nothing changes may have length 1. They are
        the first row, and the last row with its sign turned, of what is seen; then the same of what
        would be seen if the image went on beyond its border. So the smaller is always the wider.
    steps: for each axis by how many rows the interval moves from one place to the next.
    """

    bounds: np.ndarray
    steps: tuple[Fraction, ...]

    @classmethod
    def of_image(cls, rank: int, axis: int, size: int) -> Span:
        """The image itself: along that axis every place sees its own row."""
        rows = np.arange(size)
        bounds = np.stack([rows, -rows, rows, -rows])
        shape = [size if each == axis else 1 for each in range(rank)]
        steps = tuple(Fraction(each == axis) for each in range(rank))
        return cls(bounds.reshape(4, *shape), steps)

    @property
    def rank(self) -> int:
        """How many axes the array has."""
        return len(self.steps)

    def changes(self, axis: int) -> bool:
        """Whether the intervals may differ along that axis."""
        return self.bounds.shape[axis + 1] > 1

    def over(self, axes: Iterable[int]) -> Span:
        """All along these axes taken together; the axes stay, with nothing that changes."""
        axes = tuple(axes)
        bounds = self.bounds.min(tuple(axis + 1 for axis in axes), keepdims=True)
        steps = tuple(Fraction(0) if axis in axes else step for axis, step in enumerate(self.steps))
        return Span(bounds, steps)

    def without(self, axes: Iterable[int]) -> Span:
        """The span without these axes, along which nothing may change."""
        kept = [axis for axis in range(self.rank) if axis not in set(axes)]
        shape = [self.bounds.shape[axis + 1] for axis in kept]
        return Span(self.bounds.reshape(4, *shape), tuple(self.steps[axis] for axis in kept))

    def arranged(self, order: Sequence[int | None]) -> Span:
        """The axes in that order, with a new one, along which nothing changes, for each None."""
        kept = [axis for axis in order if axis is not None]
        bounds = self.bounds.transpose(0, *(axis + 1 for axis in kept))
        shape = iter(bounds.shape[1:])
        shape = [1 if axis is None else next(shape) for axis in order]
        steps = tuple(Fraction(0) if axis is None else self.steps[axis] for axis in order)
        return Span(bounds.reshape(4, *shape), steps)

    def full(self, axis: int, length: int) -> Span:
        """The same with that axis spelt out in its length."""
        shape = [*self.bounds.shape]
        shape[axis + 1] = length
        return Span(np.broadcast_to(self.bounds, shape), self.steps)

    def taken(self, axis: int, places: Any, factor: int | Fraction = 1) -> Span:
        """Those places along an axis, in which the step is `factor` times as long."""
        bounds = self.bounds
        if self.changes(axis):
            bounds = bounds[(slice(None),) * (axis + 1) + (places,)]
        return Span(bounds, replaced(self.steps, axis, self.steps[axis] * factor))

    def short(self) -> Span:
        """The same, without spelling out axes along which nothing changes."""
        bounds = self.bounds
        for axis in range(1, bounds.ndim):
            first = bounds.take([0], axis)
            bounds = first if (bounds == first).all() else bounds
        return Span(bounds, self.steps)


def join(spans: Iterable[Span | None]) -> Span | None:
    """What depends on all of these arrays, number by number; they have the same axes."""
    kept = [span for span in spans if span is not None]
    if len(kept) < 2:
        return kept[0] if kept else None
    bounds = functools.reduce(np.minimum, [span.bounds for span in kept])

    def step(axis: int) -> Fraction:
        # Beside one that sees the same everywhere it does not matter where the others move.
        moves = [span.steps[axis] for span in kept if span.steps[axis] or not span.changes(axis)]
        return Fraction(0) if 0 in moves else max(moves, default=Fraction(0))

    return Span(bounds, tuple(map(step, range(kept[0].rank))))


def replaced(steps: Sequence[Fraction], axis: int, step: Fraction) -> tuple[Fraction, ...]:
    """The steps with another one for that axis."""
    return tuple(step if number == axis else each for number, each in enumerate(steps))
