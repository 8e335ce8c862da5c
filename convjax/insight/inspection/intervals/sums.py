"""Rules for sums and products of whole axes: global pools, dense layers, fixed matrices."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from convjax.insight.inspection.intervals.calls import Call, Rule, first_of
from convjax.insight.inspection.intervals.span import EMPTY, Span, join, replaced


def _channel_sum(call: Call) -> Span:
    axes = range(call.params["keep"], len(call.shapes[0]) - 1)
    return first_of(call).over(axes).without(axes)


def _spread(call: Call) -> Span:
    keep = call.params["keep"]
    new = [None] * (len(call.shape) - keep - 1)
    return first_of(call).arranged([*range(keep), *new, keep])


def _dot_general(call: Call) -> Span | None:
    contracted, batches = call.params["dimension_numbers"]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*summed, *batch)]
        for shape, summed, batch in zip(call.shapes, contracted, batches)
    ]
    sides = []
    for number, span in enumerate(call.spans):
        if span is None:
            continue
        other = 1 - number
        batch, summed, mine, theirs = batches[number], contracted[number], *_turned(free, number)
        fixed = call.known(other)
        simple = fixed is not None and fixed.ndim == 2 and len(summed) == 1 and not batch
        if fixed is not None and simple and span.changes(summed[0]):
            matrix = fixed if contracted[other][0] == 0 else fixed.T
            span = _of_matrix(span.arranged([*mine, *summed]), matrix)
            new: list[int | None] = [len(mine)]
        else:
            span = span.over(summed).arranged([*batch, *mine, *summed])
            span = span.without(range(len(batch) + len(mine), span.rank))
            new = [None] * len(theirs)
        first = [*range(len(batch))]
        own = [*range(len(batch), len(batch) + len(mine))]
        sides.append(span.arranged([*first, *own, *new] if number == 0 else [*first, *new, *own]))
    return join(sides)


def _turned(pair: Sequence[Any], number: int) -> tuple[Any, Any]:
    return pair[number], pair[1 - number]


def _of_matrix(span: Span, matrix: np.ndarray) -> Span:
    """The last axis times a fixed matrix, whose zeros take nothing."""
    seen = np.where(matrix != 0, span.bounds[..., None], EMPTY).min(-2)
    length, count = matrix.shape
    step = span.steps[-1] * Fraction(length, count)
    return Span(seen, replaced(span.steps, span.rank - 1, step))


RULES: dict[str, Rule] = {
    "convjax_channel_sum": _channel_sum,
    "convjax_spread": _spread,
    "dot_general": _dot_general,
}
