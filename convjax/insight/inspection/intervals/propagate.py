"""Which rows of an image the numbers of every array in a program depend on: interval propagation.

    spans = propagate(jaxpr, [None, Span.of_image(rank=4, axis=1, size=224)])

Each operation of JAX's, and each of our own, has a rule that makes the intervals of its results of
those of its operands, for one dimension of the image. Of an operation without a rule every result
is taken to depend on all that any operand depends on, so that an interval may be too wide, but
never too narrow. What depends on neither image nor parameters is computed where it matters: the
zeros of a fixed matrix, as resizing takes them, and the places that a lookup takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from convjax.insight.inspection.intervals import lookups, moving, sums, windows
from convjax.insight.inspection.intervals.calls import (
    Call,
    Constant,
    Rule,
    Value,
    everything,
    span_of,
    whole,
)
from convjax.insight.inspection.intervals.moving import stacked
from convjax.insight.inspection.intervals.span import Span, join
from convjax.insight.inspection.program import MARK, subprogram


def propagate(jaxpr: ClosedJaxpr, spans: Sequence[Span | None]) -> dict[str, list[Span | None]]:
    """The spans of the output of every part of a program that is marked in it, by path.

    spans: of the operands of the program; None where they do not depend on the image.
    """
    marked: dict[str, list[Span | None]] = {}
    _run(jaxpr.jaxpr, list(map(Constant, jaxpr.consts)), list(spans), marked)
    return marked


def _run(
    jaxpr: Jaxpr, consts: Sequence[Value], operands: Sequence[Value], marked: dict
) -> list[Value]:
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts))
    values |= dict(zip(jaxpr.invars, operands))

    def read(v: Any) -> Value:
        return Constant(v.val) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        given = [read(v) for v in equation.invars]
        values |= dict(zip(equation.outvars, _results(equation, given, marked)))
    return [read(v) for v in jaxpr.outvars]


def _results(equation: JaxprEqn, given: list[Value], marked: dict) -> Sequence[Value]:
    name, params = equation.primitive.name, equation.params
    several = len(equation.outvars)
    if equation.primitive is MARK:
        marked[params["path"]] = [each if isinstance(each, Span) else None for each in given]
        return given
    if name == "scan":
        return _scan(equation, given, marked)
    if name == "cond":
        branches = [
            _run(branch.jaxpr, list(map(Constant, branch.consts)), given[1:], marked)
            for branch in params["branches"]
        ]
        # Which branch is taken may depend on the image, too.
        return [
            join([*map(span_of, results), whole(given[:1], _shape(made))])
            for made, *results in zip(equation.outvars, *branches)
        ]
    if name == "while":
        return _while(params, given, list(map(_shape, equation.outvars)), marked)
    called = subprogram(equation)
    if called is not None:
        return _run(called[0], list(map(Constant, called[1])), given, marked)
    if not any(isinstance(each, Span) for each in given):
        constant = several == 1 and all(isinstance(each, Constant) for each in given)
        return [Constant(None, equation, given)] if constant else [None] * several
    shapes = list(map(_shape, equation.invars))
    made = list(map(_shape, equation.outvars))
    if any(0 in shape for shape in made):
        return [None] * several  # There is no number that could depend on anything.
    rule = _RULES.get(name, everything)
    found = rule(Call(params, given, shapes, made[0]))
    if isinstance(found, list):
        return found
    # Several results of one rule are alike; of a sum with its index, say.
    return [found if len(shape) == len(made[0]) else whole(given, shape) for shape in made]


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _scan(equation: JaxprEqn, given: list[Value], marked: dict) -> list[Value]:
    """Turn by turn, each with its own slice of what the scan goes over."""
    params = equation.params
    body, length = params["jaxpr"], params["length"]
    # What the scan goes over, and what it stacks, has an axis more outside of the body than in it.
    # Versions of JAX differ in how they say which that is.
    carries = sum(map(_is_alike, equation.outvars, body.jaxpr.outvars))
    consts = sum(map(_is_alike, equation.invars, body.jaxpr.invars)) - carries
    fixed, carry, over = given[:consts], given[consts:][:carries], given[consts + carries :]
    turns: list[list[Value]] = []
    for turn in range(length):
        at = length - 1 - turn if params["reverse"] else turn
        slices = [
            each.taken(0, [at]).over([0]).without([0]) if isinstance(each, Span) else None
            for each in over
        ]
        operands = [*fixed, *carry, *slices]
        made = _run(body.jaxpr, list(map(Constant, body.consts)), operands, marked)
        carry = made[:carries]
        turns.append(made[carries:])
    if params["reverse"]:
        turns.reverse()
    return [*carry, *(stacked(list(map(span_of, column)), 0) for column in zip(*turns))]


def _is_alike(outer: Any, inner: Any) -> bool:
    return len(_shape(outer)) == len(_shape(inner))


def _while(
    params: Any, given: list[Value], shapes: list[tuple[int, ...]], marked: dict
) -> list[Value]:
    """However often it turns: what is carried depends on all that anything depends on."""
    start = params["cond_nconsts"]
    consts = given[start:][: params["body_nconsts"]]
    carry = [whole(given, shape) for shape in shapes]
    body = params["body_jaxpr"]
    _run(body.jaxpr, list(map(Constant, body.consts)), [*consts, *carry], marked)
    return [*carry]


_RULES: dict[str, Rule] = {**moving.RULES, **lookups.RULES, **windows.RULES, **sums.RULES}
