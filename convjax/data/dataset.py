"""What a data set is: three arrays that belong together. And what is raised where it is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from convjax.config import UserError


class Dataset(NamedTuple):
    """Images with one label each, all in memory.

    images: uint8 `[N, height, width, channels]`, 0 to 255.
    labels: int32 `[N]`, each in `range(len(classes))`.
    classes: the name of each class.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class Faults(NamedTuple):
    """The images of a split that cannot be read and are left out.

    size: how many images there are, with these. errors: what is wrong, by their numbers, in order.
    """

    size: int
    errors: Mapping[int, str] = {}


class DataError(UserError, ValueError):
    """Data that cannot be used as they are: the message says which, why, and what to do."""


class ImageError(DataError):
    """An image that cannot be read: the message says which, why, and what to do."""


class FileError(UserError, OSError):
    """A file of a data set that the system does not give: the message says which, and why."""


class DataNotFoundError(FileNotFoundError):
    """The data set is known, but its files are in none of the places looked at."""
