"""Rules for operations that take numbers from places that are given as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from convjax.insight.inspection.intervals.calls import Call, Rule, everything
from convjax.insight.inspection.intervals.span import Span, join


def _dynamic_slice(call: Call) -> Span | None:
    span = call.spans[0]
    if span is None or any(call.spans[1:]):
        return everything(call)
    for axis, size in enumerate(call.params["slice_sizes"]):
        length, start = call.shapes[0][axis], call.known(1 + axis)
        if size == length:
            continue
        if start is None:
            span = span.over([axis])
        else:
            first = int(np.clip(start, 0, length - size))
            span = span.taken(axis, slice(first, first + size))
    return span


def _dynamic_update_slice(call: Call) -> Span | None:
    """Wherever it may be put, the update counts along the axes on which it is shorter."""
    if any(span is not None for span in call.spans[2:]):
        return everything(call)
    whole, update = call.spans[:2]
    if update is not None:
        pairs = enumerate(zip(call.shapes[0], call.shapes[1]))
        update = update.over(axis for axis, (have, some) in pairs if have != some)
    return join([whole, update])


def _gather(call: Call) -> Span | None:
    """Lookups: by index at places that are known, or else anywhere along that axis."""
    numbers, rank = call.params["dimension_numbers"], len(call.shape)
    of_indices = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    span, indices = call.spans
    if indices is not None:
        indices = indices.over([indices.rank - 1]).without([indices.rank - 1])
        indices = indices.arranged([*_placed(of_indices, range(len(of_indices)), rank)])
    if span is None:
        return indices
    shape, sizes, places = call.shapes[0], call.params["slice_sizes"], call.known(1)
    lookups = [
        number
        for number, axis in enumerate(numbers.start_index_map)
        if span.changes(axis) and sizes[axis] < shape[axis]
    ]
    at = [numbers.start_index_map[number] for number in lookups]
    gone = [*numbers.collapsed_slice_dims, *numbers.operand_batching_dims]
    kept = [axis for axis in range(span.rank) if axis not in gone]
    if len(at) == 1 and places is not None and at[0] in numbers.collapsed_slice_dims:
        (axis,) = at
        rows = np.clip(places[..., lookups[0]], 0, shape[axis] - 1)
        span = span.over(each for each in gone if each != axis)
        step = span.steps[axis] * Fraction(shape[axis], max(rows.size, 1))
        ahead = span.arranged([axis, *kept])
        bounds = ahead.bounds[:, rows.reshape(-1)].reshape(4, *rows.shape, *ahead.bounds.shape[2:])
        steps = [step if rows.ndim == 1 else Fraction(0)] * rows.ndim
        span = Span(bounds, (*steps, *ahead.steps[1:])).short()
        behind = range(rows.ndim, rows.ndim + len(kept))
        order = _placed([*of_indices, *numbers.offset_dims], [*range(rows.ndim), *behind], rank)
        return join([span.arranged(order), indices])
    span = span.over({*at, *numbers.collapsed_slice_dims})
    pairs = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims))
    own = [pairs.get(number) for number in range(len(of_indices))]
    order = _placed([*of_indices, *numbers.offset_dims], [*own, *kept], rank)
    left = [axis for axis in range(span.rank) if axis not in order]
    span = span.arranged([*order, *left]).without(range(rank, rank + len(left)))
    return join([span, indices])


def _placed(places: Iterable[int], values: Iterable[Any], length: int) -> list[Any]:
    """A list of that length with those values at those places, and None elsewhere."""
    listed: list[Any] = [None] * length
    for place, value in zip(places, values):
        listed[place] = value
    return listed


RULES: dict[str, Rule] = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
}
