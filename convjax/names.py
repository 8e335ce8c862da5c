"""Names that a person writes: which was meant, and what "package.module:function" stands for."""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: the choice that `word` was meant to be, or what there is.

    >>> nearest("smal", ["lenet", "small", "resnet20"])
    "did you mean 'small'?"
    >>> nearest("xyz", ["lenet", "small"])
    "choose from 'lenet', 'small'"
    """
    choices = sorted(choices)
    close = closest(word, choices)
    if close is not None:
        return f"did you mean {close!r}?"
    shown = ", ".join(map(repr, choices[:_SHOWN]))
    more = f" and {len(choices) - _SHOWN} more" if len(choices) > _SHOWN else ""
    return f"choose from {shown}{more}" if choices else "there is none"


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelt most like `word`, capitals apart; None if none is much like it."""
    import difflib  # Needed only once something is wrong.

    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return lower[close[0]] if close else None


def imported(name: str, what: str) -> Callable[..., Any]:
    """The function that "package.module:function" names.

    what: whose name it is, for the message of the ValueError that is raised if there is none.

    >>> imported("math:sqrt", "the activation")(9.0)
    3.0
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ValueError(f"{what} is a function, named as package.module:function, not {name!r}")
    known = _only_known.get()
    if known is not None and name not in known and not _is_ours(module_name):
        raise ValueError(_untrusted(name))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not (error.name and f"{module_name}.".startswith(f"{error.name}.")):
            raise  # The module is there, and something that it imports is not.
        raise ValueError(f"{what} {name!r}: there is no module {error.name!r}") from error
    found = getattr(module, function_name, None)
    if not callable(found):
        public = [each for each, value in vars(module).items() if callable(value)]
        hint = nearest(function_name, public)
        raise ValueError(
            f"{what} {name!r}: {module_name} has no function {function_name!r}; {hint}"
        )
    # A module of ours has functions of others among its names, too.
    if known is not None and name not in known and not _is_ours(getattr(found, "__module__", "")):
        raise ValueError(_untrusted(name))
    return found


def trust_only(names: Iterable[str]) -> None:
    """From now on `imported` finds functions of these names and those of our rooms alone.

    So a config that a stranger has written calls nothing else: `os:system` is a function, too.
    """
    _only_known.set(frozenset(names))


def trusted() -> frozenset[str] | None:
    """The names that `trust_only` was told; None if it was not, and all are trusted."""
    return _only_known.get()


@contextlib.contextmanager
def trust_as_before() -> Iterator[None]:
    """What `trust_only` has said within it is forgotten after it."""
    token = _only_known.set(_only_known.get())
    try:
        yield
    finally:
        _only_known.reset(token)


_only_known: ContextVar[frozenset[str] | None] = ContextVar("trusted", default=None)
# Whose functions make networks and change images, and touch no file.
_ROOMS = ("convjax.augment", "convjax.initializers", "convjax.layers", "convjax.models")


def _is_ours(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in _ROOMS)


def _untrusted(name: str) -> str:
    return (
        f"{name!r} is a function of another package, and a saved config may be a stranger's: look "
        "what it does, and give --trust to have it called"
    )


_SHOWN = 20
