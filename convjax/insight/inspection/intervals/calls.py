"""An operation of a program as a rule sees it, and what no rule can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn

from convjax.insight.inspection.intervals.span import Span, join


class Constant:
    """An array that depends on neither image nor parameters; it is computed when it is needed."""

    def __init__(self, value: Any = None, equation: JaxprEqn | None = None, operands: Any = ()):
        self._value, self._equation, self._operands = value, equation, operands

    def value(self) -> Any:
        """The array."""
        if self._equation is not None:
            primitive, params = self._equation.primitive, self._equation.params
            operands = [each.value() for each in self._operands]
            self._value = primitive.bind(*operands, **params)
            self._equation = None
        return self._value


Value = Span | Constant | None  # None: of the parameters


class Call(NamedTuple):
    """An operation as its rule sees it. shape: of its first result."""

    params: Any
    operands: list[Value]
    shapes: list[tuple[int, ...]]
    shape: tuple[int, ...]

    @property
    def spans(self) -> list[Span | None]:
        """Those of the operands."""
        return [each if isinstance(each, Span) else None for each in self.operands]

    def known(self, number: int) -> np.ndarray | None:
        """The value of an operand, if that is a constant."""
        operand = self.operands[number]
        return np.asarray(operand.value()) if isinstance(operand, Constant) else None


def span_of(value: Value) -> Span | None:
    """The span itself, and None for all that does not depend on the image."""
    return value if isinstance(value, Span) else None


def whole(operands: Sequence[Value], shape: Sequence[int]) -> Span | None:
    """Everything that any operand depends on, at every place of that shape."""
    spans = [each for each in operands if isinstance(each, Span)]
    every = [span.over(range(span.rank)).without(range(span.rank)) for span in spans]
    joined = join(every)
    return None if joined is None else joined.arranged([None] * len(shape))


def everything(call: Call) -> Span | None:
    """Every result depends on all that any operand depends on."""
    return whole(call.operands, call.shape)


def first_of(call: Call) -> Span:
    """The span of the first operand, as a rule that moves numbers needs it."""
    span = call.spans[0]
    assert span is not None
    return span


Rule = Callable[[Call], Span | list[Value] | None]
