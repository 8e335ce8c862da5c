"""Calls as a config writes them: "crop(4)", "flip", "mine.changes:dim(0.5)".

    made("crop(4, mode='reflect')", {"crop": crop}, "augmentation")

Text is parsed and never run: arguments are literals, names are those that are given or, with a
colon, of a function elsewhere.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from convjax.names import imported, nearest

Known = Mapping[str, Callable[..., Any]]


def made(text: str, known: Known, kind: str, *, nested: Callable[..., Any] | None = None) -> Any:
    """What the call that is written here returns.

    A name alone is a call without arguments.

    known: the functions that may be called, by name.
    kind: what they make, for the message about a function elsewhere that does not exist.
    nested: the one of them whose arguments may be calls themselves.

    >>> made("dict(width=32)", {"dict": dict}, "dict")
    {'width': 32}

    Raises:
        ValueError: names the text, what is wrong with it, and what to write.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text: write a call in quotes")
    # A colon may also be an argument's.
    elsewhere = ":" in text.partition("(")[0]
    module, colon, call = text.partition(":") if elsewhere else ("", "", text)

    def called(tree: ast.expr, module: str = "") -> Any:
        """What the function that the tree names returns for the arguments that it writes."""
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError(_NO_CALL)
        name = call.func.id
        if not module and name not in known:
            raise ValueError(f"there is no {name}; {nearest(name, known)}")
        function = imported(f"{module}{name}", kind) if module else known[name]
        read = argument if function is nested else literal
        arguments = [read(each) for each in call.args]
        keywords = {each.arg or "": literal(each.value) for each in call.keywords}
        if "" in keywords or len(keywords) < len(call.keywords):
            raise ValueError("give each argument once, and by its name")
        _check(function, name, arguments, keywords)
        return function(*arguments, **keywords)

    def argument(tree: ast.expr) -> Any:
        """A literal, or what one of the known functions makes."""
        name = tree.func if isinstance(tree, ast.Call) else tree
        return called(tree) if isinstance(name, ast.Name) else literal(tree)

    try:
        return called(_parsed(call), module.strip() + colon)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from error


def literal(tree: ast.expr) -> Any:
    """The value of a literal; ValueError for anything else."""
    try:
        return ast.literal_eval(tree)
    except (TypeError, ValueError, MemoryError, RecursionError):
        raise ValueError(
            f"{ast.unparse(tree)} is no literal: give a number, 'a text', True, False, None, "
            "or a tuple or list of them"
        ) from None


_NO_CALL = "this is no call such as crop(4) or flip"


def _parsed(call: str) -> ast.expr:
    try:
        return ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(_NO_CALL) from None


def _check(
    function: Callable[..., Any], name: str, arguments: list[Any], keywords: Mapping[Any, Any]
) -> None:
    """Raises ValueError, with the signature, for arguments that the function does not take."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a function in C, which says itself what it does not take
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
        shown = signature.replace(parameters=bare, return_annotation=signature.empty)
        raise ValueError(f"{error}; it is {name}{shown}") from None
