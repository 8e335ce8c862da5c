"""Leaves of a pytree by path: named, chosen by glob rules, merged, counted and hashed.

    decayed = match(params, [("*/kernel", True), ("*", False)])      # a tree of True and False
    params = merge(params, pretrained, keep="head/*", drop="fc/*")

A pattern is a glob in which `*` stands for any characters, slashes too; "*/relu1" finds relu1 at
any depth, the top included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from convjax.names import nearest

Tree = Any


def leaves(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by their path, in the tree's order.

    >>> leaves({"conv1": {"kernel": 1, "bias": 2}})
    {'conv1/bias': 2, 'conv1/kernel': 1}
    """
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def matches(path: str, patterns: str | Iterable[str]) -> bool:
    """Whether a path fits a pattern, or one of several.

    >>> matches("stage1/relu1", "*/relu*"), matches("relu1", "*/relu*"), matches("relu1", "conv*")
    (True, True, False)
    """
    return any(
        fnmatchcase(path, each) or fnmatchcase(f"/{path}", each) for each in _patterns(patterns)
    )


def match(tree: Tree, rules: Sequence[tuple[str, Any]]) -> Tree:
    """A tree of the same structure whose leaves are the values of the rules that they match.

    rules: pairs of pattern and value; the first that matches a leaf's path wins.

    >>> match({"dense1": {"kernel": 0, "bias": 0}}, [("*/bias", "fast"), ("*", "slow")])
    {'dense1': {'bias': 'fast', 'kernel': 'slow'}}

    Raises:
        ValueError: if a leaf matches no rule, or a rule gets no leaf.
    """
    used: set[int] = set()
    unmatched: list[str] = []

    def value(path: Any, leaf: Any) -> Any:
        name = _name(path)
        for number, (pattern, result) in enumerate(rules):
            if matches(name, pattern):
                used.add(number)
                return result
        unmatched.append(name)
        return None

    result = jax.tree_util.tree_map_with_path(value, tree)
    problems = [f"  {name} matches no rule: add one, or end with ('*', ...)" for name in unmatched]
    names = list(leaves(tree))
    for number, (pattern, _) in enumerate(rules):
        if number not in used:
            problems.append(f"  rule {pattern!r} {_why_unused(pattern, names)}")
    if problems:
        raise ValueError("rules and leaves do not fit:\n" + "\n".join(problems))
    return result


def merge(
    tree: Tree, given: Tree, *, keep: str | Iterable[str] = (), drop: str | Iterable[str] = ()
) -> Tree:
    """The tree with its leaves taken from another, each at its own path.

    keep: patterns of leaves that stay as they are in `tree`, whether given or not.
    drop: patterns of leaves in `given` that are not wanted.

    Raises:
        ValueError: listing every leaf that only one side has, every one that differs in shape or
            dtype, and every pattern that fits no leaf; nothing is cast, nothing left out silently.
    """
    keep, drop = _patterns(keep), _patterns(drop)
    ours, theirs = leaves(tree), leaves(given)
    kept = {name for name in ours if matches(name, keep)}
    wanted = [name for name in ours if name not in kept]
    problems = [
        f"  only in the tree: {name} {_show(ours[name])}" for name in wanted if name not in theirs
    ]
    problems += [
        f"  only in what was given: {name} {_show(leaf)}"
        for name, leaf in theirs.items()
        if name not in ours and not matches(name, drop)
    ]
    problems += [
        f"  {name}: {_show(ours[name])} in the tree, {_show(theirs[name])} given"
        for name in wanted
        if name in theirs and _show(ours[name]) != _show(theirs[name])
    ]
    problems += [
        f"  {word}={pattern!r} matches no leaf {where}; {nearest(pattern, names)}"
        for word, where, patterns, names in (
            ("keep", "of the tree", keep, ours),
            ("drop", "of what was given", drop, theirs),
        )
        for pattern in patterns
        if not any(matches(name, pattern) for name in names)
    ]
    if problems:
        raise ValueError(
            "the two trees do not fit (keep= leaves ours alone, drop= passes over theirs):\n"
            + "\n".join(problems)
        )
    merged = [leaf if name in kept else theirs[name] for name, leaf in ours.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), merged)


def count(tree: Tree) -> int:
    """How many numbers the arrays of a tree hold."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def digest(tree: Tree) -> str:
    """One SHA-256 over the paths, dtypes, shapes and bytes of the leaves, in order of the paths.

    Two trees have the same digest only if they are equal to the bit.
    """
    sha = hashlib.sha256()
    for name, leaf in sorted(leaves(tree).items()):
        array = np.asarray(leaf)
        sha.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _patterns(patterns: str | Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _show(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _why_unused(pattern: str, names: Sequence[str]) -> str:
    if any(matches(name, pattern) for name in names):
        return "is never reached: the rules before it take every leaf that it matches"
    return f"matches no leaf; {nearest(pattern, names)}"
