"""A folder of images, `split/class/*.jpg`, as a data set: the folders' names are the classes.

FOLDER/train/cat/0001.jpg        load("image_folder", "train", FOLDER)          # one size
FOLDER/train/dog/0001.jpg        load("image_folder:64", "train", FOLDER)       # made 64x64
FOLDER/test/cat/0001.jpg         open_examples("image_folder", "train", FOLDER) # any sizes
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from convjax.data import files
from convjax.data.batches import epoch_order
from convjax.data.checks import check_memory, check_names
from convjax.data.dataset import DataError, DataNotFoundError, Dataset, Faults, ImageError
from convjax.data.examples import Example
from convjax.data.splits import parse_split, part
from convjax.data.views import NUMBERS, View, centre_crop, whole
from convjax.data.workers import cores
from convjax.names import closest

NAME = "image_folder"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# What people call the images to evaluate on, where there is no `test` with classes.
STAND_INS = {"test": ("test", "val", "validation")}
SPLITS = ("train", *STAND_INS["test"])


@dataclass(frozen=True)
class Folder:
    """The image files of a split, in the order of their classes and names; none is read yet.

    root: the folder of the split.
    classes: the names of its folders, sorted.
    names: of each file below its class, as the system's bytes `[N]`: little memory for millions.
    labels: int32 `[N]`.
    """

    root: Path
    classes: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        path = self.path(index)
        try:
            content = files.read(path, at_most=_LARGEST)
        except DataError as error:
            raise ImageError(str(error)) from None
        return Example(content, int(self.labels[index]), path)

    def some(self, numbers: np.ndarray) -> Folder:
        """The images of these numbers, int `[N]`."""
        return Folder(self.root, self.classes, self.names[numbers], self.labels[numbers])

    def path(self, index: int) -> str:
        """Where an image lies."""
        folder = self.classes[self.labels[index]]
        return os.path.join(self.root, folder, os.fsdecode(self.names[index]))


def scan(data_dir: Path, split: str) -> Folder:
    """The images of a split of a folder, or of a part of it; only names are looked at.

    split: the name of a folder; `test` also stands for `val` or `validation`. As files lie class
        by class, a part such as `train[:90%]` is drawn from a shuffle that is always the same.

    Files and folders whose names begin with a dot are passed over, and so are files that are no
    images by their endings, which may be in capitals; folders within a class belong to it. Links
    are followed, once: a second way to the same folder would count its images twice, or for ever.
    Raises DataNotFoundError where there is no such split, FileError for a folder that cannot be
    read, and DataError for such a link, for a class without images or with control characters in
    its name, for images beside the classes or in a format that is not read, and where train and
    test have not the same classes.
    """
    splits = _folders(data_dir)
    base, start, stop = parse_split(split, [*SPLITS, *splits])
    stand_ins = STAND_INS.get(base, (base,))
    roots = [data_dir / name for name in stand_ins if name in splits]
    if not roots:
        raise DataNotFoundError(
            f"no files of {NAME}: {data_dir} has no folder {' or '.join(stand_ins)} "
            f"(it has {', '.join(splits[:10]) or 'none'}); put images into "
            f"{data_dir / base}/CLASS, or give the data_dir that has {base}/CLASS/*.jpg"
        )
    root = next((each for each in roots if _folders(each)), roots[0])
    classes = _folders(root)
    check_names(classes, str(root))
    _check_classes(root, classes, [data_dir / name for name in SPLITS if name in splits])
    names, labels, walked = [], [], {}
    for label, folder in enumerate(classes):
        found = _image_files(root / folder, walked)
        names += found
        labels.append(np.full(len(found), label, np.int32))
    found = Folder(root, tuple(classes), np.array(names, np.bytes_), np.concatenate(labels))
    if not (start or stop):
        return found
    chosen = np.sort(epoch_order(seed=0, epoch=0, size=len(found))[part(start, stop, len(found))])
    return found.some(chosen)


def read(folder: Folder, view: View, unreadable: float = 0.0) -> tuple[Dataset, Faults]:
    """The images of a folder, decoded by as many threads as are worth it, and those left out.

    unreadable: the share of images that may be left out where they cannot be read.

    Raises ImageError for more of them, and DataError for images of several sizes where the view
    leaves them, or for more than the machine's memory holds.
    """
    from convjax.data import readable
    from convjax.data.decode import decode

    uniform = np.zeros(NUMBERS)

    def pixels(index: int) -> np.ndarray:
        image, _, place = folder[index]
        return decode(image, place, view, uniform)

    first, shown = _first_of(folder, pixels, unreadable)
    shape = (len(folder), *first.shape)
    check_memory(shape, f"{folder.root}", "read it as a stream")
    images = np.empty(shape, np.uint8)

    def fill(index: int) -> None:
        image = pixels(index)
        if image.shape != first.shape:
            size, other = (f"{w}x{h}" for h, w in (first.shape[:2], image.shape[:2]))
            raise DataError(
                f"{folder.path(shown)} is {size} pixels, {folder.path(index)} {other}: a data set "
                f"in memory has images of one size; have them resized, as by {NAME}:64"
            )
        images[index] = image

    # Of a small image, Python does the greater part, one thread at a time: two of them take longer
    # than one (11 s and 8 s for CIFAR-10).
    small = images[0].nbytes < _WORTH_A_THREAD
    threads = 1 if small else cores()
    faults = readable.tried(fill, len(folder), threads, first_ends=not unreadable)
    readable.check(faults, unreadable)
    dataset = Dataset(images, folder.labels, folder.classes)
    if faults.errors:
        left_out = list(faults.errors)
        dataset = dataset._replace(
            images=np.delete(images, left_out, axis=0), labels=np.delete(folder.labels, left_out)
        )
    return dataset, faults


def parse_view(options: str) -> View:
    """What `image_folder:OPTIONS` asks for: nothing, `grey`, `64`, `48x64` or `48x64x1`.

    A number is a square from the centre; two are a height and a width to which images are
    stretched; a third is the number of channels, 3 or 1. Raises ValueError for anything else.
    """
    if options in ("", "grey"):
        return whole(channels=1 if options else 3)
    match = _OPTIONS.fullmatch(options)
    if match is None:
        raise ValueError(
            f"{NAME}:{options}: write {NAME}, {NAME}:grey, {NAME}:64 for squares of 64 pixels, or "
            f"{NAME}:48x64x1 for height, width and channels"
        )
    height, width, channels = (int(group) if group else None for group in match.groups())
    assert height is not None
    if width is None:
        return centre_crop(height)
    return whole(height, width, channels=3 if channels is None else channels)


_OPTIONS = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4})(?:x(\d))?)?")
_LARGEST = 1 << 29  # bytes of a file: more than the pixels that Pillow takes for safe, as BMP
_WORTH_A_THREAD = 3 * 64 * 64
# Pictures in formats that are not read: left out without a word, they would be missed.
_OTHER_FORMATS = (
    *(".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".pgm", ".ppm", ".psd"),
    *(".svg", ".tga", ".tif", ".tiff"),
)


def _first_of(folder: Folder, pixels: Callable[[int], np.ndarray], unreadable: float) -> Any:
    """The first image that can be read, and its number."""
    from convjax.data import readable

    errors: dict[int, str] = {}
    while True:
        try:
            return pixels(len(errors)), len(errors)
        except ImageError as error:
            if not unreadable:
                raise
            errors[len(errors)] = str(error)
            readable.check(Faults(len(folder), errors), unreadable)


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        _raise(error)


def _check_classes(root: Path, classes: list[str], splits: list[Path]) -> None:
    with os.scandir(root) as entries:
        loose = sorted(e.name for e in entries if e.is_file() and _is_image(e.name))
    if loose:
        raise DataError(
            f"{root / loose[0]} is of no class: put it into the folder of its class, {root}/CLASS"
        )
    if not classes:
        raise DataError(f"{root} has no folders of classes: put its images into {root}/CLASS")
    for other in splits:
        names = _folders(other)
        differing = sorted({*names} ^ {*classes})
        if names and differing:
            name = differing[0]
            has, lacks = (root, other) if name in classes else (other, root)
            close = closest(name, _folders(lacks))
            hint = f"did you mean {close!r}?" if close else f"add {lacks / name}, or remove it"
            raise DataError(
                f"{has} has a class {name!r} that {lacks} has not ({len(differing)} differ): "
                f"train and test have the same classes; {hint}"
            )


def _image_files(folder: Path, walked: dict[str, str]) -> list[bytes]:
    """The images of a class, sorted by their path within it.

    walked: the folders whose images have been found, as they really are and as they were reached.
    """
    found: list[str] = []
    for place, below, there in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        if real in walked:
            raise DataError(
                f"{place} and {walked[real]} are the same folder, {real}: remove the link"
            )
        walked[real] = place
        below[:] = [name for name in below if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        for name in there:
            if name.startswith("."):
                continue
            if name.lower().endswith(_OTHER_FORMATS):
                raise DataError(
                    f"{os.path.join(place, name)}: images are read from {', '.join(ENDINGS)}; "
                    "convert it or take it out"
                )
            if _is_image(name):
                found.append(name if inside == "." else os.path.join(inside, name))
    if not found:
        raise DataError(
            f"{folder} has no images ({', '.join(ENDINGS)}): put some there, or remove the class"
        )
    return sorted(map(os.fsencode, found))


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _raise(error: OSError) -> NoReturn:
    raise files.refused(error, error.filename) from error
