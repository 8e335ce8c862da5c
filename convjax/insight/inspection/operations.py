"""What a compiled program's operations are called, and from which layer of a network they come.

found = operations(jax.jit(step).lower(*specs).compile().as_text())
found.layer("dot_general.44", paths)                       # ("stage1/conv2", False): forward
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from convjax.insight.inspection.program import innermost

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_OPERATION = re.compile(r"\s([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_NAME = re.compile(r'op_name="([^"]*)"')


class Operations(NamedTuple):
    """The operations of a program.

    module: what the program is called.
    names: of each operation, from which scopes it comes, as JAX wrote it; "" where none is known.
    kinds: of each, what it does: "dot", "fusion", "while".
    """

    module: str
    names: Mapping[str, str]
    kinds: Mapping[str, str]

    def layer(self, operation: str, paths: frozenset[str]) -> tuple[str, bool]:
        """The path of the innermost layer that an operation is of, and whether it goes backward.

        The path is "" where it is of none.
        """
        name = self.names[operation]
        return innermost(name, paths), "transpose(" in name

    def is_loop(self, operation: str) -> bool:
        """Whether its time is that of other operations, which are listed themselves."""
        return self.kinds[operation] in ("while", "conditional")


def operations(text: str) -> Operations:
    """The operations of a program, from what `jax.stages.Compiled.as_text` gives.

    One that the compiler has made without a name, as it does with sums, gets that of the first of
    its operands that has one, or else of what uses it.
    """
    module = text.partition("HloModule ")[2].partition(",")[0]
    names: dict[str, str] = {}
    kinds: dict[str, str] = {}
    operands: dict[str, list[str]] = {}
    users: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        operation, body = found[1], f" {found[2]}"
        kind = _OPERATION.search(body)
        kinds[operation] = kind[1] if kind else ""
        name = _NAME.search(body)
        names[operation] = name[1] if name else ""
        # What follows are the computations that it calls, and no operands of its own.
        own = body[kind.end() :].partition("), ")[0] if kind else ""
        operands[operation] = _OPERAND.findall(own)
        for each in operands[operation]:
            users[each].append(operation)
    given = {
        operation: name or _nearest(operation, names, operands, users)
        for operation, name in names.items()
    }
    return Operations(module, given, kinds)


def _nearest(
    operation: str,
    names: Mapping[str, str],
    operands: Mapping[str, Sequence[str]],
    users: Mapping[str, Sequence[str]],
) -> str:
    """The name of the nearest operation that has one, and is of the program's own making."""
    for neighbours in (operands, users):
        seen, near = {operation}, [operation]
        for _ in range(4):
            near = [each for one in near for each in neighbours.get(one, ()) if each not in seen]
            seen.update(near)
            # Parameters are called as they are in Python; all that is computed has a path.
            for each in near:
                if "/" in names.get(each, ""):
                    return names[each]
    return ""
