"""Rules about parameters by their path, as a person writes them.

    parse("stem/*: freeze")                        # Rule("stem/*", frozen=True)
    parse("head/*: learning_rate=10, weight_decay=0")

The numbers are factors of what all other parameters have. Nothing here imports JAX.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from convjax.names import nearest


class Rule(NamedTuple):
    """What holds for the parameters whose paths match a pattern.

    learning_rate, weight_decay: factors of those of the optimizer.
    until_epoch: they are trained up to there, and then stay; 0 trains them to the end.
    frozen: they are not trained at all.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    until_epoch: float = 0.0
    frozen: bool = False

    @property
    def text(self) -> str:
        """The rule as it is written."""
        said = [
            f"{name}={getattr(self, name):g}"
            for name, usual in _NUMBERS.items()
            if getattr(self, name) != usual
        ]
        return f"{self.pattern}: {'freeze' if self.frozen else ', '.join(said) or 'as all'}"


def parse(text: str) -> Rule:
    """The rule that a text says: `PATTERN: freeze`, or `PATTERN: NAME=FACTOR, NAME=FACTOR`.

    A name is learning_rate or weight_decay. `PATTERN: as all` takes its parameters out of the rules
    that follow.

    >>> parse("*/norm*: weight_decay=0")
    Rule(pattern='*/norm*', learning_rate=1.0, weight_decay=0.0, until_epoch=0.0, frozen=False)

    Raises:
        ValueError: for a text that says something else.
    """
    pattern, colon, said = (part.strip() for part in text.rpartition(":"))
    if not (colon and pattern and said):
        raise ValueError(f"{text!r} is no rule: write 'PATTERN: freeze' or {_FORM}")
    if said == "freeze":
        return Rule(pattern, frozen=True)
    if said == "as all":
        return Rule(pattern)
    factors: dict[str, Any] = {}
    for each in said.split(","):
        name, equals, factor = (part.strip() for part in each.partition("="))
        if name not in _NUMBERS or not equals:
            raise ValueError(f"{text!r} says {each.strip()!r}: {_advice(name)}")
        if name in factors:
            raise ValueError(f"{text!r} says {name} twice: leave one of them out")
        factors[name] = _factor(text, factor)
    return Rule(pattern, **factors)


_NUMBERS = {"learning_rate": 1.0, "weight_decay": 1.0, "until_epoch": 0.0}
_FORM = "'PATTERN: learning_rate=FACTOR, weight_decay=FACTOR, until_epoch=EPOCH'"


def _advice(name: str) -> str:
    hint = nearest(name, ("freeze", *_NUMBERS))
    return hint if hint.startswith("did") else f"write freeze alone, or {_FORM}"


def _factor(text: str, factor: str) -> float:
    try:
        number = float(factor)
    except ValueError:
        number = math.nan
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{text!r} has the factor {factor!r}: give a number of 0 or more")
    return number
