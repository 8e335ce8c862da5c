"""The MNIST family as IDX files: which sets there are, how their files are named, where they lie.

MNIST (LeCun et al., 1998), Fashion-MNIST (Xiao et al., 2017), Kuzushiji-MNIST (Clanuwat et al.,
2018) and the six sets of EMNIST (Cohen et al., 2017).
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convjax.data.checks import checked
from convjax.data.dataset import Dataset
from convjax.data.downloads import noted
from convjax.data.idx import IdxError, read_idx

SPLITS = ("train", "test")


class Member(NamedTuple):
    """One set of the family.

    classes: their names, in the order of the labels.
    folders: where its files lie below a folder of data sets; the first is the one to recommend.
    stems: what the names of its train and test files begin with.
    origin: where one gets it, for the error message of someone who has not.
    transposed: the files hold columns where the others hold rows.
    first_label: the label of the first class.
    """

    classes: tuple[str, ...]
    folders: tuple[str, ...]
    stems: tuple[str, str]
    origin: str
    transposed: bool = False
    first_label: int = 0

    def files(self, split: str) -> tuple[str, str]:
        """The names of the images and of the labels of a split, in their usual spelling."""
        stem = self.stems[SPLITS.index(split)]
        return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"

    def upright(self, dataset: Dataset) -> Dataset:
        """The data set as a reader expects it: upright images, labels from 0, classes by name."""
        images, labels, _ = dataset
        if self.transposed:
            images = np.ascontiguousarray(images.swapaxes(1, 2))
        return Dataset(images, labels - np.int32(self.first_label), self.classes)


def find(member: Member, split: str, folders: list[Path]) -> tuple[Path, Path] | None:
    """The files of a split, images and labels, in the first of the folders that has both."""
    images, labels = member.files(split)
    for folder in folders:
        pair = _spelled(folder, images), _spelled(folder, labels)
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return None


def find_download(name: str, member: Member, split: str, root: Path) -> tuple[Path, Path] | None:
    """The files of a split among the downloads of TFDS, which notes their names beside them."""
    if name.startswith("emnist/"):  # It comes as one archive, which TFDS extracts.
        return find(member, split, sorted(root.glob("downloads/extracted/*/gzip")))
    files = noted(name, root)
    images, labels = (files.get(f"{file}.gz") for file in member.files(split))
    return (images, labels) if images and labels else None


def read(member: Member, images: Path, labels: Path) -> Dataset:
    """The data set in two IDX files. Raises IdxError or ValueError where it is none."""
    pixels, numbers = (read_idx(path, _LARGEST) for path in (images, labels))
    for path, array, dimensions in (images, pixels, 3), (labels, numbers, 1):
        if array.dtype != np.uint8 or array.ndim != dimensions:
            raise IdxError(
                f"{path}: holds {array.dtype} of {array.ndim} dimensions, "
                f"expected uint8 of {dimensions}; are images and labels exchanged?"
            )
    stored = Dataset(pixels[..., np.newaxis], numbers.astype(np.int32), member.classes)
    return checked(member.upright(stored), f"{images} and {labels.name}")


_LARGEST = 1 << 30  # bytes of a file: EMNIST's by class has 697,932 images, 0.5 GiB


def _spelled(folder: Path, file: str) -> Path | None:
    dotted = file.replace("-idx", ".idx")
    spellings = (folder / f"{name}{end}" for name in (file, dotted) for end in ("", ".gz"))
    return next((path for path in spellings if path.is_file()), None)


_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = tuple(string.digits)
# Capital and small letters that look alike are one class in the balanced and the bymerge set.
_MERGED = (*string.digits, *string.ascii_uppercase, *"abdefghnqrt")
_EMNIST_CLASSES = {
    "balanced": _MERGED,
    "byclass": (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase),
    "bymerge": _MERGED,
    "digits": _DIGITS,
    "letters": tuple(string.ascii_lowercase),
    "mnist": _DIGITS,
}


def _emnist(name: str) -> Member:
    return Member(
        classes=_EMNIST_CLASSES[name],
        folders=("emnist", "emnist/gzip", "gzip", "EMNIST/raw", "EMNIST/raw/gzip"),
        stems=(f"emnist-{name}-train", f"emnist-{name}-test"),
        origin="get gzip.zip from https://www.nist.gov/itl/products-and-services/emnist-dataset",
        transposed=True,
        first_label=1 if name == "letters" else 0,
    )


FAMILY = {
    "fashion_mnist": Member(
        classes=_FASHION,
        folders=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
        stems=("train", "t10k"),
        origin="install Debian's package dataset-fashion-mnist or get the files from "
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "mnist": Member(
        classes=_DIGITS,
        folders=("mnist", "MNIST/raw"),
        stems=("train", "t10k"),
        origin="get the files from https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "kmnist": Member(
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        folders=("kmnist", "KMNIST/raw"),
        stems=("train", "t10k"),
        origin="get the files from http://codh.rois.ac.jp/kmnist/",
    ),
    **{f"emnist/{name}": _emnist(name) for name in _EMNIST_CLASSES},
}
