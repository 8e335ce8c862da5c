"""A config as the command that runs it again, with what differs from the defaults.

command(config)         # "python -m experiments.train --config.optimizer.learning_rate=0.01"

What `convjax.flags` reads of it is the same config, to every value and type.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from convjax.config import ConfigError, Experiment, from_dict, to_dict
from convjax.flags import DEFAULT, override
from convjax.pages import load
from convjax.typed import field_types, is_open


def command(config: Experiment) -> str:
    """The line for a POSIX shell that trains `config`, from the page that is read without a flag.

    Raises: ConfigError if a value is a text that no flag spells, such as 'None' where None may be.
    """
    config, default = (from_dict(to_dict(each)) for each in (config, load(str(DEFAULT))))
    changes = [
        (path, _spelt(default, path, value)) for path, value in _changes(config, default, "")
    ]
    words = [f"--config.{path}={text}" for path, text in changes]
    return shlex.join(["python", "-m", "experiments.train", *words])


def _changes(section: Any, default: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of what flags have to set; a dict that lacks a key is set whole."""
    for name, kind in field_types(type(section)).items():
        mine, theirs = getattr(section, name), getattr(default, name)
        where = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(kind):
            yield from _changes(mine, theirs, where)
        elif is_open(kind) and mine.keys() >= theirs.keys():
            for key, value in mine.items():
                if key not in theirs or not _same(value, theirs[key]):
                    yield f"{where}.{key}", value
        elif not _same(mine, theirs):
            yield where, mine


def _spelt(default: Experiment, path: str, value: Any) -> str:
    """The plainest text that flags read as the value."""
    texts = [str(value), repr(value)]
    if isinstance(value, tuple) and value and all(isinstance(each, str) for each in value):
        texts.insert(0, "; ".join(value))
    for text in texts:
        # An argument of a process ends at a zero.
        if "\0" not in text and _is_read_as(default, path, text, value):
            return text
    raise ConfigError(f"config.{path} is {value!r}: no flag spells it; give --config=FILE.json")


def _is_read_as(default: Experiment, path: str, text: str, value: Any) -> bool:
    try:
        changed = override(default, [(path, text)])
    except ConfigError:
        return False

    def inside(place: Any, key: str) -> Any:
        return place[key] if isinstance(place, Mapping) else getattr(place, key)

    return _same(functools.reduce(inside, path.split("."), changed), value)


def _same(value: Any, other: Any) -> bool:
    # To Python, 1 is True and 1.0.
    return value == other and repr(value) == repr(other)
