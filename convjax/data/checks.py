"""Whether arrays are a data set and, where they are not, what they look like and how to mend them.

checked(Dataset(images, labels, classes), "flowers")      # the same again, or a DataError

flowers: images are float32[60,1,28,28], expected uint8[N,height,width,channels]: they look like
[N,channels,height,width] in 0 to 1; give (images.transpose(0, 2, 3, 1) * 255).round()...
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convjax.data.dataset import DataError, Dataset
from convjax.data.misfits import problem_of_images, problem_of_labels


def checked(dataset: Dataset, source: str) -> Dataset:
    """The same data set, once its three parts are known to be right and to fit together.

    source: where it came from, for the message of the DataError that is raised where they do not.
    """
    images, labels, classes = dataset
    for name, array in (("images", images), ("labels", labels)):
        if not isinstance(array, np.ndarray):
            raise DataError(
                f"{source}: {name} are a {type(array).__name__}, expected an array of NumPy: "
                f"give np.asarray({name})"
            )
    if problem := problem_of_images(images, len(labels) if labels.ndim else 0):
        raise DataError(f"{source}: images are {_shape(images)}, {problem}")
    if problem := problem_of_labels(labels):
        raise DataError(f"{source}: labels are {_shape(labels)}, expected int32[N]: {problem}")
    if len(images) != len(labels):
        raise DataError(
            f"{source}: {len(images)} images but {len(labels)} labels; "
            "the two files are not of the same data set or split"
        )
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise DataError(
            f"{source}: classes are a {type(classes).__name__}, expected the name of each: "
            "give a tuple of them"
        )
    check_names(classes, source)
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        at = int(outside[0])
        hint = f"every label is in range({len(classes)})"
        if labels.min() == 1 and labels.max() == len(classes):
            hint = "they count from 1: give labels - 1"
        elif labels[at] == -1:
            hint = "leave images without a label out"
        raise DataError(
            f"{source}: label {int(labels[at])} of image {at} is outside 0 to {len(classes) - 1} "
            f"({len(classes)} classes; {len(outside)} labels are outside): {hint}"
        )
    return Dataset(images, labels, tuple(classes))


def check_names(classes: Sequence[str], source: str) -> None:
    """Raises DataError for names of classes that are no text, not plain, or given twice.

    Names are shown in terminals and written into files: control characters and what cannot be
    encoded, such as the bytes of a folder's name that are no UTF-8, are refused.
    """
    seen: set[str] = set()
    for number, name in enumerate(classes):
        if not isinstance(name, str):
            raise DataError(
                f"{source}: the name of class {number} is {name!r}, expected text: "
                "give tuple(map(str, classes))"
            )
        if not name.strip() or not name.isprintable():
            raise DataError(
                f"{source}: the name of class {number} is {name!a}: rename it, "
                "names of classes are text without control characters"
            )
        if name in seen:
            raise DataError(f"{source}: two classes are named {name!r}: give each its own name")
        seen.add(name)


def missing_classes(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The names of the classes that no label is of, in their order.

    >>> missing_classes(np.array([0, 2, 2], np.int32), ("ant", "bee", "cicada"))
    ['bee']
    """
    counts = np.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if not count]


def check_memory(shape: Sequence[int], source: str, instead: str) -> None:
    """Raises DataError where uint8 images of this shape are more than the machine's memory.

    source: where they come from. instead: what to do about it.
    """
    need, there = math.prod(shape), memory()
    if need > there:
        sizes = "x".join(map(str, shape))
        raise DataError(
            f"{source}: {sizes} images take {need / 2**30:.1f} GiB, and the machine has "
            f"{there / 2**30:.1f}: {instead}, or take a part such as train[:10%]"
        )


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's share."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # No such file, or "max".
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    import resource  # Not everywhere.

    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if allowed == resource.RLIM_INFINITY else [*limits, allowed])


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"
