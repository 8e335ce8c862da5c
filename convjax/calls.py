"""Calls as a config writes them: "crop(4)", "flip", "mine.changes:dim(0.5)".

    made("crop(4, mode='reflect')", {"crop": crop}, "augmentation")
    floats("color_jitter(0.4, hue=0.1)")            # {"(0)": 0.4, "(hue)": 0.1}

Text is parsed and never run: arguments are literals, names are those that are given or, with a
colon, of a function elsewhere. A place in a text is written as it would be called: "(0)", "(hue)",
"(scale)[1]", and of a call within a call "(1)(p)".
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from convjax.names import imported, nearest

Known = Mapping[str, Callable[..., Any]]


def made(
    text: str,
    known: Known,
    kind: str,
    *,
    nested: Callable[..., Any] | None = None,
    numbers: Mapping[str, Any] = {},
) -> Any:
    """What the call that is written here returns.

    A name alone is a call without arguments.

    known: the functions that may be called, by name.
    kind: what they make, for the message about a function elsewhere that does not exist.
    nested: the one of them whose arguments may be calls themselves.
    numbers: what stands for some of the `floats` of the text, by place; it may be traced.

    >>> made("dict(width=32)", {"dict": dict}, "dict")
    {'width': 32}

    Raises:
        ValueError: names the text, what is wrong with it, and what to write.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text: write a call in quotes")
    module, call = _split(text)

    def called(tree: ast.expr, module: str = "") -> Any:
        """What the function that the tree names returns for the arguments that it writes."""
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError(_NO_CALL)
        name = call.func.id
        if not module and name not in known:
            raise ValueError(f"there is no {name}; {nearest(name, known)}")
        function = imported(f"{module}{name}", kind) if module else known[name]
        read = argument if function is nested else value
        arguments = [read(each) for each in call.args]
        keywords = {each.arg or "": value(each.value) for each in call.keywords}
        if "" in keywords or len(keywords) < len(call.keywords):
            raise ValueError("give each argument once, and by its name")
        _check(function, name, arguments, keywords)
        return function(*arguments, **keywords)

    def argument(tree: ast.expr) -> Any:
        """A literal, or what one of the known functions makes."""
        name = tree.func if isinstance(tree, ast.Call) else tree
        return called(tree) if isinstance(name, ast.Name) else value(tree)

    def value(tree: ast.expr) -> Any:
        """A literal, with the numbers that stand for some of it."""
        if tree in given:
            return given[tree]
        if given and isinstance(tree, ast.Tuple | ast.List):
            return (tuple if isinstance(tree, ast.Tuple) else list)(map(value, tree.elts))
        return literal(tree)

    try:
        tree = _parsed(call)
        given = {node: numbers[place] for place, node in _floats(tree) if place in numbers}
        return called(tree, module)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from error


def floats(text: str) -> dict[str, float]:
    """The floating-point numbers that a text gives as arguments, or in tuples of them, by place.

    >>> floats("sometimes(0.5, gaussian_blur(5, sigma=(0.1, 2.0)))")
    {'(0)': 0.5, '(1)(sigma)[0]': 0.1, '(1)(sigma)[1]': 2.0}

    Raises:
        ValueError: if it is no call.
    """
    return {place: literal(node) for place, node in _floats(_read(text)[1])}


def without(text: str, places: Collection[str]) -> str:
    """The text with a blank at these places, which equal calls share however they are spaced.

    >>> without("mixup( 0.2,p=0.9 )", ["(0)"])
    'mixup(_, p=0.9)'

    Raises:
        ValueError: if it is no call.
    """
    module, tree = _read(text)
    blank = {node for place, node in _floats(tree) if place in places}

    class Blanks(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return ast.Name("_") if node in blank else self.generic_visit(node)

    return module + ast.unparse(Blanks().visit(tree))


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


def _read(text: str) -> tuple[str, ast.expr]:
    """The module with its colon, or nothing, and the tree of the call."""
    module, call = _split(text)
    try:
        return module, _parsed(call)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _split(text: str) -> tuple[str, str]:
    """The module with its colon, or nothing, and the call."""
    # A colon may also be an argument's.
    if ":" not in text.partition("(")[0]:
        return "", text
    module, colon, call = text.partition(":")
    return module.strip() + colon, call


def _floats(tree: ast.expr, place: str = "") -> Iterator[tuple[str, ast.expr]]:
    """The places of floating-point numbers, and where they stand in the tree."""
    if isinstance(tree, ast.Call):
        for index, each in enumerate(tree.args):
            yield from _floats(each, f"{place}({index})")
        for keyword in tree.keywords:
            yield from _floats(keyword.value, f"{place}({keyword.arg})")
    elif isinstance(tree, ast.Tuple | ast.List):
        for index, each in enumerate(tree.elts):
            yield from _floats(each, f"{place}[{index}]")
    else:
        number = tree.operand if isinstance(tree, ast.UnaryOp) else tree
        if isinstance(number, ast.Constant) and type(number.value) is float:
            yield place, tree


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
