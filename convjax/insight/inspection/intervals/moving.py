"""Rules for operations that move numbers, or take them one by one or along an axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from convjax.insight.inspection.intervals.calls import Call, Rule, Value, first_of
from convjax.insight.inspection.intervals.span import EMPTY, Span, join, replaced


def _each(call: Call) -> Span | None:
    """Number by number; scalars go with every one of them."""
    rank = len(call.shape)
    return join(
        span if span is None or span.rank == rank else span.arranged([None] * rank)
        for span in call.spans
    )


def _same(call: Call) -> list[Value]:
    return call.operands


def _reduce(call: Call) -> Span | None:
    return _without(call, call.params["axes"])


def _reduce_by(call: Call) -> Span | None:
    """By any function of two numbers; the last half of the operands is what it begins with."""
    count = len(call.operands) // 2
    begun = join(call.spans[count:])
    call = call._replace(operands=call.operands[:count])
    reduced = _without(call, call.params["dimensions"])
    return join([reduced, begun and begun.arranged([None] * len(call.shape))])


def _without(call: Call, axes: Iterable[int]) -> Span | None:
    """What there is along these axes, taken together."""
    span, axes = join(call.spans), list(axes)
    return None if span is None else span.over(axes).without(axes)


def _sort(call: Call) -> Span | None:
    span = join(call.spans)
    return None if span is None else span.over([call.params["dimension"]])


def _top_k(call: Call) -> Span:
    span = first_of(call)
    return span.over([call.params.get("axis", -1) % span.rank])


def _cumulative(call: Call) -> Span:
    span, axis = first_of(call), call.params["axis"] + 1
    turn = functools.partial(np.flip, axis=axis) if call.params["reverse"] else np.asarray
    summed = turn(np.minimum.accumulate(turn(span.bounds), axis))
    return Span(summed, replaced(span.steps, axis - 1, Fraction(0)))


def _broadcast_in_dim(call: Call) -> Span:
    span = first_of(call)
    axes = {axis: number for number, axis in enumerate(call.params["broadcast_dimensions"])}
    span = span.arranged([axes.get(axis) for axis in range(len(call.shape))])
    grown = {axis for axis, n in axes.items() if call.shapes[0][n] != call.shape[axis]}
    return span.over(grown)


def _reshape(call: Call) -> Span:
    span = first_of(call)
    if call.params.get("dimensions") is not None:
        span = span.arranged(call.params["dimensions"])
    return _reshaped(span, call.shapes[0], call.shape)


def _reshaped(span: Span, old: Sequence[int], new: Sequence[int]) -> Span:
    shape: list[int] = []
    steps: list[Fraction] = []
    for mine, made in _groups(old, new):
        lengths = [old[axis] for axis in mine]
        if any(span.changes(axis) for axis in mine):
            for axis in mine:
                span = span.full(axis, old[axis])
            shape += [new[axis] for axis in made]
        else:
            shape += [1] * len(made)
        pairs = zip((span.steps[axis] for axis in mine), lengths)
        step, _ = functools.reduce(_merged, pairs, (Fraction(0), 1))
        steps += _divided(step, [new[axis] for axis in made])
    return Span(span.bounds.reshape(4, *shape), tuple(steps)).short()


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of old axes and of new axes that hold the same numbers, as short as can be."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        mine, made = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(mine), j + len(made)
        have, want = math.prod(old[a] for a in mine), math.prod(new[a] for a in made)
        while have != want:
            if have < want:
                mine.append(i)
                have, i = have * old[i], i + 1
            else:
                made.append(j)
                want, j = want * new[j], j + 1
        groups.append((mine, made))
    return groups


def _merged(outer: tuple[Fraction, int], inner: tuple[Fraction, int]) -> tuple[Fraction, int]:
    """Step and length of one axis made of two; 0 where no step is the same everywhere."""
    (far, count), (near, length) = outer, inner
    if count == 1 and (near or length > 1):
        step = near
    elif length == 1 or far == near * length:
        step = near if length > 1 else far
    else:
        step = Fraction(0) if near else far / length
    return step, count * length


def _divided(step: Fraction, lengths: Sequence[int]) -> list[Fraction]:
    """The steps of the axes that one axis is divided into; one of length 1 takes no steps."""
    if math.prod(lengths) == 1:
        return [step if number == 0 else Fraction(0) for number in range(len(lengths))]
    inner = [math.prod(lengths[number + 1 :]) for number in range(len(lengths))]
    return [step * each if length > 1 else Fraction(0) for each, length in zip(inner, lengths)]


def _squeeze(call: Call) -> Span:
    axes = call.params["dimensions"]
    return first_of(call).without([axis % len(call.shapes[0]) for axis in axes])


def _transpose(call: Call) -> Span:
    return first_of(call).arranged(call.params["permutation"])


def _rev(call: Call) -> Span:
    span = first_of(call)
    for axis in call.params["dimensions"]:
        span = span.taken(axis, slice(None, None, -1), -1)
    return span


def _slice(call: Call) -> Span:
    span, params = first_of(call), call.params
    strides = params["strides"] or (1,) * span.rank
    for axis, place in enumerate(
        map(slice, params["start_indices"], params["limit_indices"], strides)
    ):
        span = span.taken(axis, place, strides[axis])
    return span


def _split(call: Call) -> list[Value]:
    span, axis = first_of(call), call.params["axis"]
    ends = np.cumsum(call.params["sizes"])
    return [
        span.taken(axis, slice(end - size, end)) for end, size in zip(ends, call.params["sizes"])
    ]


def _concatenate(call: Call) -> Span | None:
    axis = call.params["dimension"]
    return _concatenated(call.spans, [shape[axis] for shape in call.shapes], axis)


def _concatenated(spans: Sequence[Span | None], lengths: Sequence[int], axis: int) -> Span | None:
    """One array of several, which are so long along that axis."""
    some = [span for span in spans if span is not None]
    if len(some) == len(spans) and all(_alike(span, some[0], axis) for span in some):
        return join(some)
    # Along that axis they may be of different lengths.
    across = join(span.over([axis]) for span in some)
    if across is None:
        return None
    shape = [*across.bounds.shape]
    pieces = []
    for span, length in zip(spans, lengths):
        shape[axis + 1] = length
        pieces.append(np.broadcast_to(np.int64(EMPTY) if span is None else span.bounds, shape))
    # The longest piece that moves says how: what was mirrored to pad an image moves the other way.
    moves = [(n, span.steps[axis]) for span, n in zip(spans, lengths) if span and span.steps[axis]]
    step = max(moves, default=(0, Fraction(0)))[1]
    return Span(np.concatenate(pieces, axis + 1), replaced(across.steps, axis, step))


def _alike(one: Span, other: Span, axis: int) -> bool:
    """Whether both are the same, all along that axis."""
    return not one.changes(axis) and np.array_equal(one.bounds, other.bounds)


def stacked(spans: Sequence[Span | None], axis: int) -> Span | None:
    """One array of several, along a new axis."""
    grown = [
        span if span is None else span.arranged(_with(None, axis, range(span.rank)))
        for span in spans
    ]
    return _concatenated(grown, [1] * len(spans), axis)


def _with(value: Any, place: int, values: Iterable[Any]) -> list[Any]:
    """These values, with one more at that place."""
    listed = [*values]
    return [*listed[:place], value, *listed[place:]]


def _stack(call: Call) -> Span | None:
    return stacked(call.spans, call.params["axis"])


def _unstack(call: Call) -> list[Value]:
    span, axis = first_of(call), call.params["axis"]
    return [
        span.taken(axis, [place]).over([axis]).without([axis])
        for place in range(call.shapes[0][axis])
    ]


def _tile(call: Call) -> Span:
    span = first_of(call)
    for axis, count in enumerate(call.params["reps"]):
        if count > 1 and span.changes(axis):
            span = span.taken(axis, np.tile(np.arange(call.shapes[0][axis]), count))
    return span


_EACH = """
abs acos acosh add and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz
complex conj convert_element_type copy cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2
expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma log log1p logistic
lt lt_to max min mul mulhi name ne neg nextafter not or polygamma population_count pow real
reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical
sign sin sinh sharding_constraint sqrt square stop_gradient sub tan tanh xor zeta
"""
_REDUCE = (
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_EACH.split(), _each),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "optimization_barrier": _same,
    "reduce": _reduce_by,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "top_k": _top_k,
    "transpose": _transpose,
    "unstack": _unstack,
}
