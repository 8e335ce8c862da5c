"""One function for every data set: a name and a split go in, three arrays come out.

    train = load("fashion_mini", "train")                   # bundled, 10,000 images
    test = load("fashion_mnist", "test")                    # IDX files, wherever they lie
    train = load("cifar10", "train[:45000]", "~/tfds")      # prepared by TFDS as array records
    train = load("mypackage.flowers:read", "train")         # any function that returns a Dataset

Each name takes one road; what comes out is checked and the same for all of them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from convjax.data import mnist, tfds
from convjax.data.dataset import DataNotFoundError, Dataset, checked
from convjax.data.splits import parse_split, part
from convjax.names import imported, nearest


def load(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a split of a data set into memory.

    name: one of `names()`; the name of a data set that TFDS has prepared as array records,
        `NAME[/CONFIG][:VERSION]`; or `package.module:function`, a function of split and data_dir
        that returns a Dataset. `tfds:NAME` is the set as TFDS has it and never IDX files.
    split: `train`, `test` or whatever the data set has, or a part of it: `train[:90%]`.
    data_dir: the only place to look in. By default, TFDS's folder (`TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`), then the folder of Debian's packages.

    Raises DataNotFoundError (a FileNotFoundError) with the places looked at and the next step,
    ValueError for an unknown name or split and for files that hold something else.

    >>> images, labels, classes = load("fashion_mini", "test")
    >>> images.shape, classes[labels[0]]
    ((2000, 28, 28, 1), 'Ankle boot')
    """
    if data_dir is not None:
        data_dir = Path(data_dir).expanduser()
        if not data_dir.is_dir():
            raise DataNotFoundError(f"data_dir {data_dir} is no folder")
    kind, _, rest = name.partition(":")
    if name == BUNDLED:
        return _load_bundled(split, data_dir)
    if kind == "tfds":
        return _load_tfds(rest, split, data_dir)
    if rest.isidentifier():
        return _load_from_function(name, split, data_dir)
    if kind in mnist.FAMILY:
        return _load_family(name, split, data_dir)
    if kind.partition("/")[0] == "emnist":
        known = [member for member in mnist.FAMILY if member.startswith("emnist/")]
        raise ValueError(
            f"unknown data set {name!r}: {nearest(kind, known)} (emnist is {', '.join(known)})"
        )
    return _load_tfds(name, split, data_dir)


def names() -> list[str]:
    """The names that `load` knows by itself; every prepared TFDS data set comes on top."""
    return [BUNDLED, *mnist.FAMILY]


BUNDLED = "fashion_mini"


def _load_bundled(split: str, data_dir: Path | None) -> Dataset:
    if data_dir is not None:
        raise ValueError(
            f"{BUNDLED} is part of the package and not read from data_dir {data_dir}: "
            "leave data_dir out, or name the data set that lies there"
        )
    member, folder = mnist.FAMILY["fashion_mnist"], Path(__file__).parent / BUNDLED
    base, start, stop = parse_split(split, mnist.SPLITS)
    files = mnist.find(member, base, [folder])
    if files is None:
        raise DataNotFoundError(f"the files of {BUNDLED} are not in {folder}: install convjax anew")
    return _part(mnist.read(member, *files), start, stop)


def _load_family(name: str, split: str, data_dir: Path | None) -> Dataset:
    """A member of the MNIST family, from IDX files or, where there are none, from array records."""
    base, _, version = name.partition(":")
    member, root = mnist.FAMILY[base], _tfds_folder(data_dir)
    split_base, start, stop = parse_split(split, mnist.SPLITS)
    if data_dir is None:
        folders = [place / folder for place in (root, DEBIAN) for folder in member.folders]
    else:  # In a folder that is named outright, the files need no folder of their own.
        folders = [*(root / folder for folder in member.folders), root]
    files = mnist.find(member, split_base, folders)
    files = files or mnist.find_download(base, member, split_base, root)
    if files and not version:
        return _part(mnist.read(member, *files), start, stop)
    if tfds.prepared(name, root):
        dataset = member.upright(tfds.read(name, split, root))
        return checked(dataset, f"{name} in {root}")
    images, labels = member.files(split_base)
    raise DataNotFoundError(
        f"no files of {name}: {member.origin} and put {images}.gz and {labels}.gz "
        f"into {folders[0]} (looked in {', '.join(map(str, folders))}, "
        f"among the downloads of TFDS in {root} and for array records in {root / base})"
    )


def _load_tfds(name: str, split: str, data_dir: Path | None) -> Dataset:
    root = _tfds_folder(data_dir)
    match = _TFDS_NAME.fullmatch(name)
    if not match or not tfds.prepared(name, root):
        known = tfds.known()
        if not match or match["base"] not in known:
            hint = "" if known else "; TFDS, which knows more, is not installed"
            candidates = {*names(), *tfds.prepared("*", root), *known}
            raise ValueError(f"unknown data set {name!r}: {nearest(name, candidates)}{hint}")
    return checked(tfds.read(name, split, root), f"{name} in {root}")


def _load_from_function(name: str, split: str, data_dir: Path | None) -> Dataset:
    function = imported(name, "data set")
    dataset = function(split, data_dir)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"data set {name}: returned a {type(dataset).__name__}, no Dataset")
    return checked(dataset, f"{name} ({split})")


DEBIAN = Path("/usr/share/datasets")  # dataset-fashion-mnist and its like
_TFDS_NAME = re.compile(r"(?P<base>\w+)(/[^/:\s]+)?(:[\d.*]+)?")


def _tfds_folder(data_dir: Path | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return data_dir or Path(default).expanduser()


def _part(dataset: Dataset, start: str, stop: str) -> Dataset:
    wanted = part(start, stop, len(dataset.labels))
    return dataset._replace(images=dataset.images[wanted], labels=dataset.labels[wanted])
