"""A split by name, or a part of one: `train`, `train[:50000]`, `train[90%:]`.

What is written and how it is rounded is as in TFDS, so that a config reads alike for every source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from convjax.names import nearest


def parse_split(split: str, known: Sequence[str]) -> tuple[str, str, str]:
    """The name of a split and the two ends of the part that is meant, "" where left open.

    >>> parse_split("train[:90%]", ["train", "test"])
    ('train', '', '90%')

    Raises ValueError for what is no split, with the nearest name of `known`.
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise ValueError(
            f"unknown split {split!r}: write {known[0]}, {known[0]}[:1000] or {known[0]}[90%:]"
        )
    name, start, stop = (group or "" for group in match.groups())
    if start and stop and start.endswith("%") != stop.endswith("%"):
        raise ValueError(f"split {split!r}: give both ends as numbers or both as percentages")
    if name not in known:
        raise ValueError(f"unknown split {split!r}: {nearest(name, known)}")
    return name, start, stop


def part(start: str, stop: str, size: int) -> slice:
    """The images from `start` to `stop` of `size`, each end a number or a percentage.

    >>> part("", "90%", 60_000)
    slice(0, 54000, None)

    Raises ValueError for an end beyond the data and for a part without an image.
    """
    first, last = _index(start, 0, size), _index(stop, size, size)
    if not (0 <= first < last <= size):
        raise ValueError(f"[{start}:{stop}] is no part of {size} images")
    return slice(first, last)


def overlap(one: str, other: str) -> bool:
    """Whether two parts have images in common, as far as their texts tell.

    They tell nothing where one is in percentages and the other in numbers.

    >>> overlap("train", "train[90%:]"), overlap("train[:90%]", "train[90%:]")
    (True, False)
    """
    found = [_SPLIT.fullmatch(split) for split in (one, other)]
    names = {match and match[1] for match in found}
    if None in names or len(names) > 1:
        return False
    ends = [[end or "" for end in match.groups()[1:]] for match in found if match]
    shares = {end.endswith("%") for pair in ends for end in pair if end}
    if len(shares) > 1:
        return False
    try:
        size = 2**31 if shares == {False} else 10_000
        first, second = (part(start, stop, size) for start, stop in ends)
    except ValueError:
        return False  # It is told when the split is read.
    return max(first.start, second.start) < min(first.stop, second.stop)


_END = r"(-?\d+%?)?"
_SPLIT = re.compile(rf"([\w-]+)(?:\[{_END}:{_END}\])?")


def _index(end: str, default: int, size: int) -> int:
    if not end:
        return default
    number = int(end.rstrip("%"))
    if end.endswith("%"):
        number = round(number * size / 100)
    return number + size if end.startswith("-") else number
