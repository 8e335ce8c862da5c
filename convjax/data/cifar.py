"""CIFAR-10 and CIFAR-100 from their binary files, packed as downloaded or unpacked.

A record is one label byte (two in CIFAR-100: coarse and fine) and 3,072 bytes of pixels: all of
red, all of green, all of blue, row by row (https://www.cs.toronto.edu/~kriz/cifar.html). The
files for Python are pickles, which may run any code when they are read, and are left alone.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convjax.data import files as plain
from convjax.data.checks import checked
from convjax.data.dataset import DataError, Dataset
from convjax.data.downloads import noted

SPLITS = ("train", "test")


class Variant(NamedTuple):
    """One of the two sets.

    archive, folder: the names of the packed file and of the folder in it.
    files: of train and of test.
    names: the file of the classes' names.
    label_bytes: of a record; the last of them is the class.
    pickles: the folder of the version for Python.
    """

    archive: str
    folder: str
    files: tuple[tuple[str, ...], tuple[str, ...]]
    names: str
    label_bytes: int
    pickles: str


FAMILY = {
    "cifar10": Variant(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        (tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",)),
        "batches.meta.txt",
        1,
        "cifar-10-batches-py",
    ),
    "cifar100": Variant(
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        (("train.bin",), ("test.bin",)),
        "fine_label_names.txt",
        2,
        "cifar-100-python",
    ),
}


def find(name: str, root: Path) -> Path | None:
    """The folder of a set's binary files, or else its archive: in `root`, or in `root/NAME`."""
    variant = FAMILY[name]
    places = [root / name, root]
    folders = [each for place in places for each in (place / variant.folder, place)]
    for folder in folders:
        if (folder / variant.names).is_file() and (folder / variant.files[1][0]).is_file():
            return folder
    archives = [place / variant.archive for place in places]
    archive = next((path for path in archives if path.is_file()), None)
    return archive or noted(name, root).get(variant.archive)


def read(name: str, split: str, place: Path) -> Dataset:
    """A split out of what `find` found. Raises DataError where the files are damaged."""
    variant = FAMILY[name]
    files = variant.files[SPLITS.index(split)]
    contents = _contents(place, variant, (*files, variant.names))
    classes = tuple(contents.pop(variant.names).decode(errors="surrogateescape").split())
    size = variant.label_bytes + _PIXELS
    for file, content in contents.items():
        if not content or len(content) % size:
            raise DataError(
                f"{file} in {place} has {len(content)} bytes, no multiple of {size}: "
                "copy or download it again"
            )
    records = np.frombuffer(b"".join(contents[file] for file in files), np.uint8)
    records = records.reshape(-1, size)
    pixels = records[:, variant.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
    labels = records[:, variant.label_bytes - 1].astype(np.int32)
    images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return checked(Dataset(images, labels, classes), f"{name} in {place}")


_CHUNK = 1 << 20
_LARGEST = 1 << 28  # bytes of all files together, which are 184 MB
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


def _contents(place: Path, variant: Variant, files: tuple[str, ...]) -> dict[str, bytes]:
    """The files by name. Nothing is unpacked to disk, so that no name in an archive matters."""
    if place.is_dir():
        return {file: plain.read(place / file, at_most=_LARGEST) for file in files}
    try:
        with gzip.open(place) as packed:
            found = _unpacked(_AtMost(packed, _LARGEST), variant.folder, files)
    except Exception as error:  # tarfile raises nearly everything on damaged archives.
        raise DataError(
            f"{place} is damaged ({type(error).__name__}: {error}): copy or download it again"
        ) from error
    if missing := [file for file in files if file not in found]:
        raise DataError(
            f"{place} has no {variant.folder}/{missing[0]}: it is not {variant.archive}; "
            "download it again"
        )
    return found


def _unpacked(packed: _AtMost, folder: str, files: tuple[str, ...]) -> dict[str, bytes]:
    """The regular files of an archive that are asked for, once all of it is known to be whole."""
    found = {}
    with tarfile.open(fileobj=packed, mode="r|") as archive:  # Never back, and so not for ever.
        for member in archive:
            inside, _, file = member.name.removeprefix("./").partition("/")
            if inside == folder and file in files and member.isreg():
                # A sparse file may be larger than what it takes of the archive.
                if not 0 <= member.size <= _LARGEST:
                    raise ValueError(f"{file} claims {member.size} bytes")
                content = archive.extractfile(member)
                assert content is not None  # A regular file has one.
                found[file] = content.read()
    while packed.read(_CHUNK):  # Only at its end does gzip compare its checksum.
        pass
    return found


class _AtMost(io.RawIOBase):
    """A file that gives no more than so many bytes: what was packed may be as large as it likes."""

    def __init__(self, file: gzip.GzipFile, left: int):
        self.file, self.left = file, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {_LARGEST} bytes")
        return count
