"""Dataclasses as JSON and back: what is wrong is told by dotted path, value and expected type.

    list(problems({"epochs": "many"}, Experiment, "config"))
    # ["config.epochs is 'many': expected float, not str"]

A field is an int, float, str or bool, one of them or None, a tuple of them, another dataclass, or
an open dict of whatever JSON holds.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from convjax.names import closest, nearest


def problems(value: Any, expected: Any, path: str) -> Iterator[str]:
    """One message for each part of a dataclass or nested dicts that is not of the expected type."""
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, (Mapping, typing.cast(type, expected))):
            yield _wrong(path, value, f"the keys of {type_name(expected)}")
            return
        known = field_types(expected)
        for key, item in _items(value):
            if key in known:
                yield from problems(item, known[key], f"{path}.{key}")
            else:
                yield unknown_key(expected, str(key), path)
    elif is_open(expected):
        if not isinstance(value, Mapping):
            yield _wrong(path, value, "a dict")
            return
        for key, item in value.items():
            if not (isinstance(key, str) and key.isidentifier()):
                yield f"{path} has the key {key!r}: its keys are keywords of a function"
            yield from _json_problems(item, f"{path}.{key}")
    elif not _is_a(value, expected):
        yield _wrong(path, value, type_name(expected))


def plain(value: Any, expected: Any) -> Any:
    """A value of the expected type as JSON holds it: tuples are lists, 3 is 3.0 for a float."""
    if dataclasses.is_dataclass(expected):
        known = field_types(expected)
        return {key: plain(getattr(value, key), known[key]) for key in known}
    if isinstance(value, Mapping):
        return {key: plain(item, Any) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, Any) for item in value]
    return float(value) if _means_float(value, expected) else value


def build(values: Any, expected: Any) -> Any:
    """The inverse of `plain`: a key that is left out takes its default.

    Every sequence becomes a tuple, so that a resumed run is given what the first one was.
    """
    if dataclasses.is_dataclass(expected):
        known = field_types(expected)
        make = typing.cast(type, expected)
        return make(**{key: build(item, known[key]) for key, item in _items(values)})
    if isinstance(values, Mapping):
        return {key: build(item, Any) for key, item in values.items()}
    if isinstance(values, list | tuple):
        return tuple(build(item, Any) for item in values)
    return float(values) if _means_float(values, expected) else values


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of each part of a dataclass that is no dataclass and no filled dict."""
    if not (dataclasses.is_dataclass(value) or (isinstance(value, Mapping) and value)):
        yield path, value
        return
    for key, item in _items(value):
        yield from leaves(item, f"{path}.{key}" if path else key)


def field_types(section: Any) -> dict[str, Any]:
    """Name to type of a dataclass's fields."""
    return {field.name: field.type for field in dataclasses.fields(section)}


def is_open(expected: Any) -> bool:
    """Whether a type is that of a dict with free keys."""
    return typing.get_origin(expected) is dict


def type_name(expected: Any) -> str:
    """A type as an error message calls it.

    >>> type_name(float | None), type_name(tuple[str, ...]), type_name(dict[str, Any])
    ('float or None', 'a tuple of str', 'a dict')
    """
    if isinstance(expected, types.UnionType):
        return " or ".join(type_name(choice) for choice in typing.get_args(expected))
    if typing.get_origin(expected) is tuple:
        return f"a tuple of {type_name(typing.get_args(expected)[0])}"
    if is_open(expected):
        return "a dict"
    return "None" if expected is types.NoneType else expected.__name__


def unknown_key(section: Any, key: str, path: str) -> str:
    """The message for a key that a dataclass lacks; it is looked for one level down, too."""
    deeper = {
        inner_name: f"{name}.{inner_name}"
        for name, inner in field_types(section).items()
        if dataclasses.is_dataclass(inner)
        for inner_name in field_types(inner)
    }
    right = closest(key, field_types(section)) or deeper.get(closest(key, deeper) or "")
    hint = f"did you mean {right!r}?" if right else nearest("", field_types(section))
    return f"{path} has no {key!r}; {hint}"


def _json_problems(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{path} has the key {key!r}: give a text"
            yield from _json_problems(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _json_problems(item, f"{path}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value!r}: give a finite number"
    elif type(value) not in (types.NoneType, bool, int, float, str):
        advice = "a number, text, bool, None, tuple or dict (name functions as 'module:function')"
        yield _wrong(path, value, advice)


def _is_a(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType):
        return any(_is_a(value, choice) for choice in typing.get_args(expected))
    if typing.get_origin(expected) is tuple:
        inner = typing.get_args(expected)[0]
        return isinstance(value, list | tuple) and all(_is_a(item, inner) for item in value)
    # A bool is an int to Python and a mistake to us; a NumPy scalar is no JSON.
    return type(value) is expected or (expected is float and type(value) is int)


def _means_float(value: Any, expected: Any) -> bool:
    return type(value) is int and float in (typing.get_args(expected) or (expected,))


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else vars(value).items()


def _wrong(path: str, value: Any, expected: str) -> str:
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return f"{path} is {text}: expected {expected}, not {type(value).__name__}"
