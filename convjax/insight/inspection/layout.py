"""Cells as a table, of text or of Markdown, and numbers in three digits.

table = Table(["layer", "time"], [False, True], [["conv1", seconds(0.00123)]])
print(shown(table, "text"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Cells with a head, which may be of two lines; `right` says which columns hold numbers."""

    head: Sequence[str]
    right: Sequence[bool]
    lines: Sequence[Sequence[str]]


def shown(table: Table, form: str) -> str:
    """A table as text or as Markdown.

    >>> print(shown(Table(["layer", "field\\nsize"], [False, True], [["conv1", "3"]]), "text"))
           field
    layer   size
    conv1      3
    """
    if form == "markdown":
        head = [cell.replace("\n", " ") for cell in table.head]
        rule = ["---:" if right else "---" for right in table.right]
        lines = [head, rule, *table.lines]
        return "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines)
    heads = [cell.split("\n") for cell in table.head]
    high = max(map(len, heads))
    above = [[""] * (high - len(head)) + head for head in heads]
    lines = [*zip(*above), *table.lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, table.right)
        ).rstrip()
        for line in lines
    )


def seconds(value: float) -> str:
    """A time in three digits.

    >>> seconds(0.01234), seconds(0.0000456), seconds(2.0)
    ('12.3 ms', '45.6 µs', '2 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def large(count: float) -> str:
    """A large number in three digits.

    >>> large(4_089_184_256), large(40_551_040), large(640)
    ('4.09 billion', '40.6 million', '640')
    """
    for word, word_size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if count >= word_size:
            return f"{count / word_size:.3g} {word}"
    return f"{count:.3g}"


def size(count: float) -> str:
    """A number of bytes in three digits.

    >>> size(40), size(1024), size(98_760_000)
    ('40 B', '1.02 kB', '98.8 MB')
    """
    for unit, unit_size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= unit_size:
            return f"{count / unit_size:.3g} {unit}"
    return f"{count} B"
