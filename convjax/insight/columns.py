"""Text in columns, as terminals show it."""

from __future__ import annotations

from collections.abc import Sequence

_WIDTH = 32  # of a name


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells in columns: the first `left` to the left, the others to the right.

    >>> print(table([("class", "F1"), ("Sandal", "0.9")]))
    class    F1
    Sandal  0.9
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )


def short(name: str, width: int = _WIDTH) -> str:
    """A class's name in one line of plain signs, and no longer than that."""
    plain = "".join(sign if sign.isprintable() else "?" for sign in name)
    return plain if len(plain) <= width else plain[: width - 1] + "…"
