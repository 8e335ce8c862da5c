"""A folder of images, `split/class/*.jpg`, as a data set: the folders' names are the classes.

FOLDER/train/cat/0001.jpg        load("image_folder", "train", FOLDER)          # one size
FOLDER/train/dog/0001.jpg        load("image_folder:64", "train", FOLDER)       # made 64x64
FOLDER/test/cat/0001.jpg         open_examples("image_folder", "train", FOLDER) # any sizes
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convjax.data.batches import epoch_order
from convjax.data.dataset import DataNotFoundError, Dataset, check_memory
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
        with open(path, "rb") as file:
            return Example(file.read(), int(self.labels[index]), path)

    def path(self, index: int) -> str:
        """Where an image lies."""
        folder = self.classes[self.labels[index]]
        return os.path.join(self.root, folder, os.fsdecode(self.names[index]))


def scan(data_dir: Path, split: str) -> Folder:
    """The images of a split of a folder, or of a part of it; only names are looked at.

    split: the name of a folder; `test` also stands for `val` or `validation`. As files lie class
        by class, a part such as `train[:90%]` is drawn from a shuffle that is always the same.

    Files and folders whose names begin with a dot are passed over, and so are files that are no
    images by their endings, which may be in capitals; folders within a class belong to it.
    Raises DataNotFoundError where there is no such split, and ValueError for a
    class without images, for images beside the classes or in a format that is not read, and where
    train and test have not the same classes.
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
    _check_classes(root, classes, [data_dir / name for name in SPLITS if name in splits])
    names, labels = [], []
    for label, folder in enumerate(classes):
        files = _image_files(root / folder)
        names += files
        labels.append(np.full(len(files), label, np.int32))
    found = Folder(root, tuple(classes), np.array(names, np.bytes_), np.concatenate(labels))
    if not (start or stop):
        return found
    chosen = np.sort(epoch_order(seed=0, epoch=0, size=len(found))[part(start, stop, len(found))])
    return Folder(root, found.classes, found.names[chosen], found.labels[chosen])


def read(folder: Folder, view: View) -> Dataset:
    """All images of a folder, decoded by as many threads as are worth it.

    Raises ImageError for a file that cannot be read, and ValueError for images of several sizes
    where the view leaves them, or for more than the machine's memory holds.
    """
    from convjax.data.decode import decode

    uniform = np.zeros(NUMBERS)

    def pixels(index: int) -> np.ndarray:
        image, _, place = folder[index]
        return decode(image, place, view, uniform)

    first = pixels(0)
    shape = (len(folder), *first.shape)
    check_memory(shape, f"{folder.root}", "read it as a stream")
    images = np.empty(shape, np.uint8)

    def fill(start: int) -> None:
        for index in range(start, min(start + _AT_ONCE, len(folder))):
            image = pixels(index)
            if image.shape != first.shape:
                size, other = (f"{w}x{h}" for h, w in (first.shape[:2], image.shape[:2]))
                raise ValueError(
                    f"{folder.path(0)} is {size} pixels, {folder.path(index)} {other}: a data set "
                    f"in memory has images of one size; have them resized, as by {NAME}:64"
                )
            images[index] = image

    # Of a small image, Python does the greater part, one thread at a time: two of them take longer
    # than one (11 s and 8 s for CIFAR-10).
    small = images[0].nbytes < _WORTH_A_THREAD
    with ThreadPoolExecutor(1 if small else cores()) as pool:
        tasks = [pool.submit(fill, start) for start in range(0, len(folder), _AT_ONCE)]
        try:
            for task in tasks:  # In order: of several bad files, the first is always named.
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return Dataset(images, folder.labels, folder.classes)


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
_AT_ONCE = 64
_WORTH_A_THREAD = 3 * 64 * 64
# Pictures in formats that are not read: left out without a word, they would be missed.
_OTHER_FORMATS = (
    *(".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".pgm", ".ppm", ".psd"),
    *(".svg", ".tga", ".tif", ".tiff"),
)


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _check_classes(root: Path, classes: list[str], splits: list[Path]) -> None:
    with os.scandir(root) as entries:
        loose = sorted(e.name for e in entries if e.is_file() and _is_image(e.name))
    if loose:
        raise ValueError(
            f"{root / loose[0]} is of no class: put it into the folder of its class, {root}/CLASS"
        )
    if not classes:
        raise ValueError(f"{root} has no folders of classes: put its images into {root}/CLASS")
    for other in splits:
        names = _folders(other)
        differing = sorted({*names} ^ {*classes})
        if names and differing:
            name = differing[0]
            has, lacks = (root, other) if name in classes else (other, root)
            close = closest(name, _folders(lacks))
            hint = f"did you mean {close!r}?" if close else f"add {lacks / name}, or remove it"
            raise ValueError(
                f"{has} has a class {name!r} that {lacks} has not ({len(differing)} differ): "
                f"train and test have the same classes; {hint}"
            )


def _image_files(folder: Path) -> list[bytes]:
    """The images of a class, sorted by their path within it."""
    found: list[str] = []
    for place, below, files in os.walk(folder, followlinks=True, onerror=_raise):
        below[:] = [name for name in below if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(_OTHER_FORMATS):
                raise ValueError(
                    f"{os.path.join(place, name)}: images are read from {', '.join(ENDINGS)}; "
                    "convert it or take it out"
                )
            if _is_image(name):
                found.append(name if inside == "." else os.path.join(inside, name))
    if not found:
        raise ValueError(
            f"{folder} has no images ({', '.join(ENDINGS)}): put some there, or remove the class"
        )
    return sorted(map(os.fsencode, found))


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _raise(error: OSError) -> None:
    raise error
