"""What one path of a config is varied by: a range of numbers, or values; and how that is written.

    path, distribution = parse("optimizer.learning_rate=log(1e-4, 1e-1)")
    at(distribution, 0.5)                       # its middle, 0.00316...

Distributions are Optuna's, which is loaded by the first one that is made. JAX is not imported.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convjax.config import ConfigError, Experiment, UserError, from_dict, to_dict
from convjax.flags import literal, override
from convjax.names import closest

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


class SpaceError(UserError, ValueError):
    """A space that cannot be swept: the message says which part of it, and how it is written."""


def log(low: float, high: float) -> Distribution:
    """Real numbers whose logarithm is uniform; SpaceError unless 0 < low < high."""
    if not 0 < low < high < math.inf:
        raise SpaceError(f"log({low!r}, {high!r}) needs 0 < a < b")
    return _library().FloatDistribution(low, high, log=True)


def uniform(low: float, high: float) -> Distribution:
    """Real numbers from `low` to `high`; SpaceError unless low < high."""
    if not -math.inf < low < high < math.inf:
        raise SpaceError(f"uniform({low!r}, {high!r}) needs a < b")
    return _library().FloatDistribution(low, high)


def integers(low: int, high: int, step: int = 1) -> Distribution:
    """The whole numbers low, low + step, ..., at most `high`; SpaceError unless low < high.

    >>> integers(2, 9, 2)
    IntDistribution(high=8, log=False, low=2, step=2)
    """
    if {type(low), type(high), type(step)} != {int} or not low < high or step < 1:
        text = f"integers({low!r}, {high!r}, {step!r})"
        raise SpaceError(f"{text} needs whole numbers, a < b and a step of 1 or more")
    return _library().IntDistribution(low, low + (high - low) // step * step, step=step)


def of(*values: Any) -> Distribution:
    """Any of the values; SpaceError if two of them are equal."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise SpaceError(f"the value {value!r} is there twice: give each of them once")
    with quiet():
        return _library().CategoricalDistribution(values)


HOW = "write PATH=log(a, b), PATH=uniform(a, b), PATH=integers(a, b[, step]), or values, PATH=a,b,c"
_KINDS = {"log": log, "uniform": uniform, "integers": integers}


def parse(text: str) -> tuple[str, Distribution]:
    """The path and the distribution of a text such as 'optimizer.learning_rate=log(1e-4, 1e-1)'.

    Values are read as those of `--config.path=value`; what stands in brackets or quotes is one.

    Raises: SpaceError that says what is wrong, and how it is written.

    >>> parse("model.args.width=16,32")
    ('model.args.width', CategoricalDistribution(choices=(16, 32)))
    """
    path, equals, values = text.partition("=")
    path = path.strip().removeprefix("--").removeprefix("config.")
    try:
        if not equals:
            raise SpaceError("it has no '='")
        parts = _parts(values)
        call = (
            re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", values, re.DOTALL) if len(parts) == 1 else None
        )
        if call and call[1] in _KINDS:
            distribution = _range(call[1], call[2])
            check_type(path, distribution)
            return path, distribution
        if call and _numbers(call[2]) is not None:
            # As a text it would do for an open dict, whose keys take any.
            meant = "log" if "log" in call[1].lower() else closest(call[1], _KINDS)
            if meant:
                raise SpaceError(f"there is no {call[1]!r}; did you mean {meant!r}?")
        return path, of(*(_value(path, part) for part in parts))
    except ConfigError as error:
        raise SpaceError(f"--vary {text!r}: {error}") from None
    except SpaceError as error:
        raise SpaceError(f"--vary {text!r}: {error}; {HOW}") from None


def written(distribution: Distribution) -> str:
    """A distribution as `parse` reads it.

    >>> written(log(1e-4, 0.1)), written(integers(1, 9, 2)), written(of(16, "none", (1, 2)))
    ('log(0.0001, 0.1)', 'integers(1, 9, 2)', "16,'none',(1, 2)")
    """
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(repr, distribution.choices))
    if isinstance(distribution, IntDistribution):
        return f"integers({distribution.low}, {distribution.high}, {distribution.step})"
    return f"{'log' if distribution.log else 'uniform'}({distribution.low}, {distribution.high})"


def check_type(path: str, distribution: Distribution) -> None:
    """Raises SpaceError for a path that there is not, or that does not take such values."""
    for value in ends(distribution):
        try:
            with_values(Experiment(), {path: value})
        except ConfigError as error:
            raise SpaceError(f"{error}{_instead(path, value)}") from None


def with_values(config: Experiment, values: Mapping[str, Any]) -> Experiment:
    """A copy of `config` with the values of dotted paths; ConfigError for a path or a type."""
    changed = to_dict(config)
    for path, value in values.items():
        *sections, name = path.split(".")
        place: Any = changed
        for index, section in enumerate(sections):
            place = place.setdefault(section, {})  # An unknown one is refused below.
            if not isinstance(place, dict):
                where = ".".join(sections[: index + 1])
                raise ConfigError(f"config.{where} is one value: vary {where}, not {path}")
        place[name] = value
    return from_dict(changed)


def ends(distribution: Distribution) -> Sequence[Any]:
    """The two ends of a range, or all values."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return [distribution.low, distribution.high]


def members(distribution: Distribution) -> Sequence[Any] | None:
    """All values in their order; None of a range of real numbers."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(distribution, FloatDistribution):
        return None
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    return distribution.choices


def contains(distribution: Distribution, value: Any) -> bool:
    """Whether the distribution has a value, of this type: to Python, 1 is True."""
    values = members(distribution)
    if values is None:
        low, high = ends(distribution)
        return type(value) is float and low <= value <= high
    return value in values and type(value) is type(values[values.index(value)])


def at(distribution: Distribution, share: float) -> Any:
    """The value that is that share, in [0, 1), of the way through the distribution.

    >>> at(log(0.25, 4.0), 0.5), at(uniform(0.0, 2.0), 0.25), at(of("a", "b", "c"), 0.4)
    (1.0, 0.5, 'b')
    """
    values = members(distribution)
    if values is not None:
        return values[min(int(share * len(values)), len(values) - 1)]
    low, high = ends(distribution)
    if _is_log(distribution):
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    return min(max(value, low), high)  # Rounding may leave the range.


def share_of(distribution: Distribution, value: Any) -> float:
    """The inverse of `at`: of one of several values, the middle of its share."""
    values = members(distribution)
    if values is not None:
        return (values.index(value) + 0.5) / len(values)
    low, high = ends(distribution)
    if _is_log(distribution):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides that Optuna's storages hold no tuples: studies stay in memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Choices for a categorical distribution", UserWarning)
        yield


# -- What these are made of ------------------------------------------------------------------------


def _library() -> ModuleType:
    try:
        import optuna.distributions
    except ModuleNotFoundError as error:
        raise UserError(f"a sweep needs {error.name}: pip install 'convjax[sweep]'") from error
    return optuna.distributions


def _is_log(distribution: Distribution) -> bool:
    from optuna.distributions import FloatDistribution

    return isinstance(distribution, FloatDistribution) and distribution.log


def _parts(text: str) -> list[str]:
    """What stands between commas that are outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        else:
            depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    if depth or quote:
        raise SpaceError("a bracket or a quote is not closed")
    parts = [part.strip() for part in parts]
    if "" in parts:
        raise SpaceError("a value is empty")
    return parts


def _range(kind: str, arguments: str) -> Distribution:
    numbers = _numbers(arguments)
    if numbers is None or not 2 <= len(numbers) <= 2 + (kind == "integers"):
        raise SpaceError(f"{kind}({arguments}) needs numbers, its ends")
    return _KINDS[kind](*numbers)


def _numbers(text: str) -> tuple[float, ...] | None:
    """The numbers that a text spells, divided by commas; None if it is anything else."""
    values = literal(f"({text},)")
    good = isinstance(values, tuple) and all(type(value) in (int, float) for value in values)
    return values if good else None


def _value(path: str, text: str) -> Any:
    """A value of a path's type."""
    config = override(Experiment(), [(path, text)])
    value: Any = config
    for key in path.split("."):
        value = value[key] if isinstance(value, Mapping) else getattr(value, key)
    # A text may be in quotes for the commas in it.
    quoted = isinstance(value, str) and re.fullmatch(r"'.*'|\".*\"", value)
    return literal(value) if quoted else value


def _instead(path: str, value: Any) -> str:
    """What fits a path that does not take a range of such numbers."""
    with contextlib.suppress(ConfigError):
        with_values(Experiment(), {path: int(value)})
        return ": give integers(a, b)"
    return ""
