"""Images that two splits share, as a test set and what was trained on should not.

    shared_images(train.images, test.images)      # Shared(count=3, of=2000, first=(17, 4))

In memory, images are compared by their pixels; files by their bytes, where few have the same size.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
from typing import NamedTuple

import numpy as np

from convjax.data import files
from convjax.data.image_folder import Folder


class Shared(NamedTuple):
    """How many of the images of a split that were looked at are in another one, too.

    first: the numbers of an image that is in both: in the other split, and in this one.
    """

    count: int
    of: int
    first: tuple[int, int] | None = None


def shared_images(one: np.ndarray, other: np.ndarray) -> Shared:
    """How many images of `other` are in `one`, to the byte, both uint8 `[N, ...]`.

    >>> shared_images(np.eye(3, dtype=np.uint8), np.eye(3, dtype=np.uint8)[2:])
    Shared(count=1, of=1, first=(2, 0))
    """
    if one.shape[1:] != other.shape[1:]:
        return Shared(0, len(other))
    sums, other_sums = _sums(one), _sums(other)
    # Sums of images that differ may be equal, digests not.
    places: dict[bytes, int] = {}
    for index in np.flatnonzero(np.isin(sums, other_sums)).tolist():
        places.setdefault(_digest(one[index]), index)
    pairs = (
        (places.get(_digest(other[index])), index)
        for index in np.flatnonzero(np.isin(other_sums, sums)).tolist()
    )
    found = [(place, index) for place, index in pairs if place is not None]
    return Shared(len(found), len(other), found[0] if found else None)


def shared_files(one: Folder, other: Folder) -> Shared:
    """How many files of `other` are in `one`, to the byte, of those that are quickly looked at.

    These are up to 1,000 of `other`, spread evenly, and fewer where more than 20,000 files of
    `one` have the same sizes; none of more than 200,000 files. Raises FileError for a file that
    cannot be read.
    """
    if len(one) + len(other) > _FILES:
        return Shared(0, 0)
    count = min(len(other), _LOOKED_AT)
    numbers = np.arange(count) * len(other) // count
    sizes, wanted = _sizes(one, np.arange(len(one))), _sizes(other, numbers)
    order = np.argsort(sizes, kind="stable")
    begin, end = (np.searchsorted(sizes, wanted, side, sorter=order) for side in ("left", "right"))
    looked_at = int(np.searchsorted(np.cumsum(end - begin), _OPENED, side="right"))
    tails: dict[int, bytes] = {}
    found = []
    for row in range(looked_at):
        index = int(numbers[row])
        tail = _tail(other, index) if begin[row] < end[row] else b""
        for place in order[begin[row] : end[row]].tolist():
            if place not in tails:
                tails[place] = _tail(one, place)
            if tails[place] == tail and _same(one, place, other, index):
                found.append((place, index))
                break
    return Shared(len(found), looked_at, found[0] if found else None)


_FILES, _LOOKED_AT, _OPENED = 200_000, 1000, 20_000
_TAIL = 64  # bytes: the pixels that are stored last, of which no two photographs have the same
_ROWS = 4096


def _sums(images: np.ndarray) -> np.ndarray:
    """A number of 64 bits for each image, the same for the same pixels, uint64 `[N]`."""
    size = images[0].size
    factors = np.random.Philox(key=0).random_raw(size // 8 + size % 8) | np.uint64(1)
    sums = np.zeros(len(images), np.uint64)
    for start in range(0, len(images), _ROWS):
        pixels = images[start : start + _ROWS].reshape(-1, size)
        words = np.ascontiguousarray(pixels[:, : size // 8 * 8]).view(np.uint64)
        rest = pixels[:, size // 8 * 8 :].astype(np.uint64)
        sums[start : start + _ROWS] = words @ factors[: size // 8] + rest @ factors[size // 8 :]
    return sums


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _sizes(folder: Folder, numbers: np.ndarray) -> np.ndarray:
    """The bytes of files, int64 `[N]`."""
    return np.array([_size(folder.path(number)) for number in numbers.tolist()], np.int64)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise files.refused(error, path) from error


def _tail(folder: Folder, number: int) -> bytes:
    return files.ends(folder.path(number), _TAIL)[2]


def _same(one: Folder, place: int, other: Folder, index: int) -> bool:
    return filecmp.cmp(one.path(place), other.path(index), shallow=False)
