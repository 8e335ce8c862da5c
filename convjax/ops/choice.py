"""Which algorithm computes what: a table, read when a network is compiled for the CPU.

    with ops.algorithm(conv="lax"):           # one kind of operation by one algorithm
        y = jax.jit(net)(x)
    with ops.algorithm("lax"): ...            # everything as XLA does it

On other platforms all is XLA's own. `python -m benchmarks.choose` measures the algorithms on a
machine and writes a table for it; where the environment variable CONVJAX_ALGORITHMS names that
file, its rows come before those below.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from convjax.names import nearest

# The first row that fits is taken. Windows and strides are those of the largest dimension,
# `inputs` and `features` the channels of an image and of its output, `size` the smallest spatial
# extent of the output, and `places` all of its pixels in a batch.
# Measured on 2 cores with AVX-512 by `python -m benchmarks.choose`.
TABLE = """
operation    kind       window  stride  inputs  features  size  places  algorithm
conv         depthwise  any     any     any     any       any   any     depthwise
conv_input   depthwise  any     any     any     any       any   any     depthwise
conv_weight  depthwise  any     any     any     any       any   any     depthwise
conv         dense      1       any     any     any       any   any     dot
conv_input   dense      1       any     any     any       any   any     dot
conv_weight  dense      1       any     any     any       any   any     dot
conv         dense      3       1       64+     64+       4+    1024+   winograd
conv_input   dense      3       1       64+     64+       4+    1024+   winograd
conv_weight  dense      3       1       32+     32+       4+    1024+   winograd
conv         dense      5       1       32+     32+       4+    1024+   winograd
conv_input   dense      5       1       32+     32+       4+    1024+   winograd
conv_weight  dense      5       1       32+     32+       4+    1024+   winograd
conv         dense      2-5     any     1-4     any       any   any     pairs
conv         dense      2-5     any     1-4     any       any   any     im2col
conv_input   dense      1-5     any     1-4     any       any   any     col2im
conv_weight  dense      2-3     2+      5+      any       any   any     taps
conv_weight  dense      any     any     any     any       any   any     canonical
conv_input   any        any     1       any     any       any   any     flipped
conv_input   dense      any     any     any     any       any   any     phases
conv         grouped    any     any     any     any       any   any     im2col
conv_input   grouped    any     any     any     any       any   any     col2im
conv_weight  grouped    any     any     any     any       any   any     im2col
"""


ALGORITHMS = {
    "conv": ("lax", "dot", "taps", "im2col", "pairs", "winograd", "depthwise"),
    "conv_input": ("lax", "flipped", "phases", "dot", "taps", "col2im", "winograd", "depthwise"),
    "conv_weight": ("lax", "canonical", "dot", "taps", "im2col", "winograd", "depthwise"),
    "max_pool": ("lax", "taps"),
    "sums": ("lax", "slabs"),
}

Forced = tuple[tuple[str, str], ...]
_forced = jax.make_user_context(())


class Case(NamedTuple):
    """What is known of an operation when it is compiled."""

    operation: str
    kind: str  # dense, depthwise or grouped
    window: int
    stride: int
    inputs: int
    features: int
    size: int
    places: int


class Row(NamedTuple):
    """A row of the table: the cases that it is for, as ranges, and the algorithm."""

    operation: str
    kind: str
    window: tuple[int, int]
    stride: tuple[int, int]
    inputs: tuple[int, int]
    features: tuple[int, int]
    size: tuple[int, int]
    places: tuple[int, int]
    algorithm: str

    def fits(self, case: Case) -> bool:
        """Whether the row is for that case."""
        return (
            self.operation == case.operation
            and self.kind in ("any", case.kind)
            and all(low <= n <= high for (low, high), n in zip(self[2:8], case[2:], strict=True))
        )


@contextlib.contextmanager
def algorithm(everything: str | None = None, /, **choices: str) -> Iterator[None]:
    """Computes operations by the algorithms of these names, in what is traced inside.

    everything: "lax", which is XLA's own for all operations.
    choices: an algorithm by operation; `conv` is meant for its gradients too where they have an
        algorithm of that name, unless `conv_input` and `conv_weight` are given. Where an algorithm
        does not apply, as Winograd's to a stride of 2, the table decides.

    Raises:
        ValueError: for an operation or an algorithm that does not exist, with the nearest one.
    """
    if everything not in (None, "lax"):
        raise ValueError(
            f"algorithm({everything!r}): only 'lax' can compute everything: "
            f"say what for, as in algorithm(conv={everything!r})"
        )
    chosen = dict.fromkeys(ALGORITHMS, "lax") if everything else dict(_forced.value)
    for operation, name in choices.items():
        if not isinstance(name, str):
            raise ValueError(f"algorithm: {operation}={name!r}: give the name of an algorithm")
        if operation not in ALGORITHMS:
            raise ValueError(
                f"algorithm: no operation {operation!r}: {nearest(operation, ALGORITHMS)}"
            )
        if name not in ALGORITHMS[operation]:
            names = ALGORITHMS[operation]
            raise ValueError(
                f"algorithm: no algorithm {name!r} for {operation}: {nearest(name, names)}"
            )
    if "conv" in choices:
        for part in ("conv_input", "conv_weight"):
            if choices["conv"] in ALGORITHMS[part]:
                chosen[part] = choices["conv"]
    with _forced(tuple(sorted((chosen | choices).items()))):
        yield


def forced(operation: str) -> str | None:
    """The algorithm that `algorithm` asks for, or None where the table is to decide."""
    return dict(_forced.value).get(operation)


def choose(case: Case, possible: Callable[[str], bool] = lambda name: True) -> str:
    """The algorithm of the first row that fits and whose algorithm is possible, else lax."""
    fitting = (row.algorithm for row in rows() if row.fits(case))
    return next(filter(possible, fitting), "lax")


def read_table(text: str, name: str) -> list[Row]:
    """The rows of a table written as `TABLE` is.

    name: what to call it in errors, as "FILE".

    Raises:
        ValueError: with the number of the line that is no row, and what is wrong with it.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split()
        if not cells or cells[0].startswith("#") or cells[0] == "operation":
            continue
        if len(cells) != len(Row._fields):
            raise ValueError(
                f"{name}, line {number} has {len(cells)} cells: it needs {', '.join(Row._fields)}"
            )
        operation, kind, *ranges, chosen = cells
        tabled = {each: names for each, names in ALGORITHMS.items() if each.startswith("conv")}
        if operation not in tabled or chosen not in tabled[operation]:
            known = tabled.get(operation, tabled)
            wrong = chosen if operation in tabled else operation
            raise ValueError(f"{name}, line {number} has {wrong!r}: {nearest(wrong, known)}")
        if kind not in ("any", "dense", "depthwise", "grouped"):
            raise ValueError(
                f"{name}, line {number} has the kind {kind!r}: "
                "it is any, dense, depthwise or grouped"
            )
        window, stride, *rest = (_range(cell, name, number) for cell in ranges)
        inputs, features, size, places = rest
        rows.append(Row(operation, kind, window, stride, inputs, features, size, places, chosen))
    return rows


def _range(cell: str, name: str, number: int) -> tuple[int, int]:
    largest = 2**31
    if cell == "any":
        return 0, largest
    match = re.fullmatch(r"(\d+)(?:(\+)|-(\d+))?", cell)
    if not match:
        raise ValueError(f"{name}, line {number} has {cell!r}: a range is 3, 3-5, 3+ or any")
    first, more, last = match.groups()
    if last and int(last) < int(first):
        raise ValueError(f"{name}, line {number} has {cell!r}: nothing fits, write {last}-{first}")
    return int(first), largest if more else int(last or first)


@functools.cache
def rows() -> tuple[Row, ...]:
    """The table that decides: the rows of the user's file, if there is one, and then `TABLE`.

    Raises:
        ValueError: for a file of `CONVJAX_ALGORITHMS` that cannot be read or is no table.
    """
    table = read_table(TABLE, "convjax.ops.choice.TABLE")
    path = os.environ.get("CONVJAX_ALGORITHMS")
    if path:
        try:
            text = Path(path).read_text("utf-8")
        except OSError as error:
            raise ValueError(f"CONVJAX_ALGORITHMS={path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"CONVJAX_ALGORITHMS={path} is no text") from None
        table = read_table(text, path) + table
    return tuple(table)
