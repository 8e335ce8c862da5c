"""What a data set is: three arrays that belong together."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Images with one label each, all in memory.

    images: uint8 `[N, height, width, channels]`, 0 to 255.
    labels: int32 `[N]`, each in `range(len(classes))`.
    classes: the name of each class.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class DataNotFoundError(FileNotFoundError):
    """The data set is known, but its files are in none of the places looked at."""


def checked(dataset: Dataset, source: str) -> Dataset:
    """The same data set, once its three arrays are known to fit together.

    source: where it came from, for the message of the ValueError that is raised where they do not.
    """
    images, labels, classes = dataset
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{source}: images are {_shape(images)}, expected uint8[N,height,width,channels]"
        )
    if labels.dtype != np.int32 or labels.ndim != 1:
        raise ValueError(f"{source}: labels are {_shape(labels)}, expected int32[N]")
    if len(images) != len(labels):
        raise ValueError(
            f"{source}: {len(images)} images but {len(labels)} labels; "
            "the two files are not of the same data set or split"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        at = int(outside[0])
        raise ValueError(
            f"{source}: label {int(labels[at])} of image {at} is outside 0 to {len(classes) - 1} "
            f"({len(classes)} classes)"
        )
    return dataset


def check_memory(shape: Sequence[int], source: str, instead: str) -> None:
    """Raises ValueError where uint8 images of this shape are more than the machine's memory.

    source: where they come from. instead: what to do about it.
    """
    need, there = math.prod(shape), _memory()
    if need > there:
        sizes = "x".join(map(str, shape))
        raise ValueError(
            f"{source}: {sizes} images take {need / 2**30:.1f} GiB, and the machine has "
            f"{there / 2**30:.1f}: {instead}, or take a part such as train[:10%]"
        )


def _memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's share."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # No such file, or "max".
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"
