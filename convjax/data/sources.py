"""One function for every data set: a name and a split go in, three arrays come out.

    train = load("fashion_mini", "train")                   # bundled, 10,000 images
    test = load("fashion_mnist", "test")                    # IDX files, wherever they lie
    train = load("cifar10", "train[:45000]", "~/data")      # binary files, or prepared by TFDS
    train = load("image_folder:64", "train", "~/birds")     # train/CLASS/*.jpg, made 64x64
    train = load("fake:32x32x3/10/50000", "train")          # noise, to measure speed with
    train = load("mypackage.flowers:read", "train")         # any function that returns a Dataset

Each name takes one road; what comes out is checked and the same for all of them. What is too large
for memory is opened instead of loaded, and then streamed (`convjax.data.stream`):

    images = open_examples("image_folder", "train", "~/imagenet")
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from convjax.data import cifar, fake, image_folder, mnist, tfds
from convjax.data.checks import checked
from convjax.data.dataset import DataNotFoundError, Dataset, Faults
from convjax.data.examples import Examples, InMemory
from convjax.data.splits import parse_split, part
from convjax.names import imported, nearest


def load(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a split of a data set into memory.

    name: one of `names()`; `image_folder[:OPTIONS]`, a folder of images in data_dir
        (`image_folder.parse_view` says which options); `fake:HEIGHTxWIDTHxCHANNELS/CLASSES/IMAGES`;
        the name of a data set that TFDS has prepared as array records, `NAME[/CONFIG][:VERSION]`;
        or `package.module:function`, a function of split and data_dir that returns a Dataset.
        `tfds:NAME` is the set as TFDS has it and never IDX or binary files.
    split: `train`, `test` or whatever the data set has, or a part of it: `train[:90%]`.
    data_dir: the only place to look in. By default, TFDS's folder (`TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`), then the folder of Debian's packages.

    Raises DataNotFoundError (a FileNotFoundError) with the places looked at and the next step,
    ValueError for an unknown name or split and for files that hold something else.

    >>> images, labels, classes = load("fashion_mini", "test")
    >>> images.shape, classes[labels[0]]
    ((2000, 28, 28, 1), 'Ankle boot')
    """
    data_dir = _checked_folder(data_dir)
    kind, _, rest = name.partition(":")
    if name == BUNDLED:
        return _load_bundled(split, data_dir)
    if kind == image_folder.NAME:
        return load_readable(name, split, data_dir)[0]
    if kind == fake.NAME:
        return fake.read(fake.parse(name, split))
    if kind == "tfds":
        return _load_tfds(rest, split, data_dir)
    if rest.isidentifier():
        return _load_from_function(name, split, data_dir)
    if kind in mnist.FAMILY:
        return _load_family(name, split, data_dir)
    if name in cifar.FAMILY:
        return _load_cifar(name, split, data_dir)
    if kind.partition("/")[0] == "emnist":
        known = [member for member in mnist.FAMILY if member.startswith("emnist/")]
        raise ValueError(
            f"unknown data set {name!r}: {nearest(kind, known)} (emnist is {', '.join(known)})"
        )
    return _load_tfds(name, split, data_dir)


def load_readable(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None, unreadable: float = 0.0
) -> tuple[Dataset, Faults]:
    """What `load` loads, without those images of a folder that cannot be read, and which these are.

    unreadable: the share of images that may be left out. Raises ImageError for more of them.
    """
    kind, _, rest = name.partition(":")
    if kind != image_folder.NAME:
        dataset = load(name, split, data_dir)
        return dataset, Faults(size=len(dataset.labels))
    view, folder = image_folder.parse_view(rest), _scan(name, split, _checked_folder(data_dir))
    dataset, faults = image_folder.read(folder, view, unreadable)
    return checked(dataset, f"{name} in {data_dir}"), faults


def open_examples(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> Examples:
    """A split of a data set as images that are read one at a time, of any sizes.

    Image folders and array records of TFDS stay on disk, fake images are made when asked for;
    every other set is loaded into memory. Arguments and errors are those of `load`.

    >>> images = open_examples("fake:224x224x3/1000/1281167", "train")
    >>> len(images), images[1000].label
    (1281167, 0)
    """
    kind, _, rest = name.partition(":")
    if name == image_folder.NAME:
        return _scan(name, split, _checked_folder(data_dir))
    if kind == image_folder.NAME:
        raise ValueError(
            f"{name}: a stream is told by its view what to make of the images; "
            f"give {image_folder.NAME}"
        )
    if kind == fake.NAME:
        return fake.parse(name, split)
    root = _tfds_folder(_checked_folder(data_dir))
    if kind == "tfds" and _is_prepared(rest, root):
        return tfds.Records(rest, split, root)
    in_files = name in cifar.FAMILY and cifar.find(name, root)
    ours = name == BUNDLED or kind in mnist.FAMILY or rest.isidentifier() or in_files
    if not ours and _is_prepared(name, root):
        return tfds.Records(name, split, root)
    return InMemory(load(name, split, data_dir), f"{name} ({split})")


def open_readable(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None, unreadable: float = 0.0
) -> tuple[Examples, Faults]:
    """What `open_examples` opens, without the images that cannot be read, and which these are.

    unreadable: the share of images that may be left out; unless it is 0, all are decoded to find
        them. Raises ImageError for more of them.
    """
    from convjax.data.readable import readable

    return readable(open_examples(name, split, data_dir), unreadable)


def names() -> list[str]:
    """The names that `load` knows by itself; every prepared TFDS data set comes on top."""
    return [BUNDLED, *mnist.FAMILY, *cifar.FAMILY, image_folder.NAME]


BUNDLED = "fashion_mini"


def _checked_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    if data_dir is None:
        return None
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        raise DataNotFoundError(f"data_dir {path} is no folder: give the one that holds the data")
    return path


def _scan(name: str, split: str, data_dir: Path | None) -> image_folder.Folder:
    if data_dir is None:
        raise ValueError(
            f"{name} needs a data_dir, the folder that holds train/CLASS/*.jpg and test/CLASS/*.jpg"
        )
    return image_folder.scan(data_dir, split)


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
        f"no files of {name}: run `python -m convjax.data.prepare {base} {root}` to download them, "
        f"or {member.origin} and put {images}.gz and {labels}.gz "
        f"into {folders[0]} (looked in {', '.join(map(str, folders))}, "
        f"among the downloads of TFDS in {root} and for array records in {root / base})"
    )


def _load_cifar(name: str, split: str, data_dir: Path | None) -> Dataset:
    """CIFAR from its binary files or, where there are none, from array records."""
    root, variant = _tfds_folder(data_dir), cifar.FAMILY[name]
    if place := cifar.find(name, root):
        base, start, stop = parse_split(split, cifar.SPLITS)
        return _part(cifar.read(name, base, place), start, stop)
    if tfds.prepared(name, root):
        return checked(tfds.read(name, split, root), f"{name} in {root}")
    pickles = [path for each in (root, root / name) if (path := each / variant.pickles).is_dir()]
    aside = f" but {pickles[0]}, which holds pickles and is not read" if pickles else ""
    raise DataNotFoundError(
        f"no files of {name}: none in {root}{aside}; "
        f"run `python -m convjax.data.prepare {name} {root}` to download them, put "
        f"{variant.archive} into {root / name}, or have TFDS prepare it with TensorFlow: "
        f"`tfds build {name} --file_format=array_record --data_dir={root}`"
    )


def _load_tfds(name: str, split: str, data_dir: Path | None) -> Dataset:
    root = _tfds_folder(data_dir)
    if not _is_prepared(name, root):
        match = _TFDS_NAME.fullmatch(name)
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


def _is_prepared(name: str, root: Path) -> bool:
    return bool(_TFDS_NAME.fullmatch(name) and tfds.prepared(name, root))


DEBIAN = Path("/usr/share/datasets")  # dataset-fashion-mnist and its like
_TFDS_NAME = re.compile(r"(?P<base>\w+)(/[^/:\s]+)?(:[\d.*]+)?")


def _tfds_folder(data_dir: Path | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return data_dir or Path(default).expanduser()


def _part(dataset: Dataset, start: str, stop: str) -> Dataset:
    wanted = part(start, stop, len(dataset.labels))
    return dataset._replace(images=dataset.images[wanted], labels=dataset.labels[wanted])
