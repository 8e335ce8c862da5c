"""Data sets that TFDS has prepared as array records, read without TensorFlow.

TFDS writes a folder `ROOT/NAME[/CONFIG]/VERSION`. As array records, its examples can be read at
random and decoded with NumPy and Pillow alone (https://www.tensorflow.org/datasets/data_source).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convjax.config import UserError
from convjax.data.checks import check_memory, check_names
from convjax.data.dataset import DataError, DataNotFoundError, Dataset
from convjax.data.examples import Example
from convjax.data.files import read as content_of
from convjax.data.splits import parse_split, part
from convjax.data.views import NUMBERS, whole
from convjax.names import nearest


class NotInstalledError(UserError, ModuleNotFoundError):
    """What reads array records is not installed: the message has the command that does it."""


def prepared(name: str, root: Path) -> list[str]:
    """What lies prepared below `root` under a name, each as `NAME[/CONFIG]:VERSION`."""
    base = base_of(name)
    found = itertools.chain(root.glob(f"{base}/*/{_MARK}"), root.glob(f"{base}/*/*/{_MARK}"))
    folders = sorted(path.parent.relative_to(root) for path in found)
    return [f"{folder.parent.as_posix()}:{folder.name}" for folder in folders]


def known() -> list[str]:
    """The names of all data sets that TFDS can prepare; none where it is not installed."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return []
    import tensorflow_datasets

    return tensorflow_datasets.list_builders(with_community_datasets=False)


def base_of(name: str) -> str:
    """The name of a data set without its config and version."""
    return name.partition(":")[0].partition("/")[0]


def read(name: str, split: str, root: Path) -> Dataset:
    """Read a split of a prepared data set into memory.

    name: `NAME[/CONFIG][:VERSION]`; the newest version where none is asked for.
    split: one of the data set's own, or a part of it: `train`, `test[:1000]`.
    Raises DataNotFoundError where it is not prepared, or not as array records; DataError for files
    that are damaged or name code of their own, for an unknown split, and where the examples are not
    uint8 images of one size with one label each.
    """
    from convjax.data.decode import decode

    records = Records(name, split, root)
    view, uniform = whole(channels=records.channels), np.zeros(NUMBERS)
    images, labels = None, np.empty(0, np.int32)
    for index, (stored, label, place) in enumerate(records.all()):
        pixels = decode(stored, place, view, uniform) if isinstance(stored, bytes) else stored
        if images is None:
            shape = (len(records), *pixels.shape)
            check_memory(shape, f"{name} in {root}", "stream it")
            images, labels = np.empty(shape, np.uint8), np.empty(len(records), np.int32)
        if pixels.shape != images.shape[1:]:
            raise DataError(
                f"{name}: image {index} is {list(pixels.shape)}, "
                f"the first is {list(images.shape[1:])}; "
                "a data set in memory has images of one size: resize them beforehand"
            )
        images[index], labels[index] = pixels, label
    assert images is not None  # A part of a split has at least one image.
    return Dataset(images, labels, records.classes)


class Records:
    """The examples of a split of a prepared data set, read one at a time and not decoded.

    It is given to another process by its name and opened there anew. Unlike `read`, it takes images
    of any sizes; it raises what `read` raises, the moment it is made.
    """

    def __init__(self, name: str, split: str, root: Path):
        self.name, self.split, self.root = name, split, root
        builder = _builder(name, root)
        with _blamed_on(f"{name} in {root}"):
            self._image, self._label = _keys(name, builder.info)
            features = builder.info.features
            self.classes = tuple(features[self._label].names)
            check_names(self.classes, f"{name} in {root}")
            self.channels = 1 if features[self._image].shape[-1] == 1 else 3
            # Decode what is asked for only: a mask or a second picture may cost more.
            wanted = {key: features[key] for key in (self._image, self._label)}
            self._wanted = type(features)(wanted)
            sizes = {each: int(info.num_examples) for each, info in builder.info.splits.items()}
        base, start, stop = parse_split(split, list(sizes))
        chosen = part(start, stop, sizes[base])
        with _blamed_on(f"{name} in {root}"):
            self._source = _source(name, f"{base}[{chosen.start}:{chosen.stop}]", builder)

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self.name, self.split, self.root)

    @property
    def labels(self) -> None:
        """Not known before all images are read."""

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        return self._some(index, index + 1)[0]

    def all(self) -> Iterator[Example]:
        """The examples in order."""
        for start in range(0, len(self), _AT_ONCE):
            yield from self._some(start, min(start + _AT_ONCE, len(self)))

    def _some(self, start: int, stop: int) -> list[Example]:
        from tensorflow_datasets import decode

        as_stored, found = {self._image: decode.SkipDecoding()}, []
        with _blamed_on(f"image {start} of {self.name} ({self.split}), or one that follows it,"):
            for index, record in enumerate(self._source.__getitems__(range(start, stop)), start):
                place = f"image {index} of {self.name} ({self.split})"
                example = self._wanted.deserialize_example_np(record, decoders=as_stored)
                image, label = example[self._image], int(example[self._label])
                if not 0 <= label < len(self.classes):
                    raise DataError(
                        f"{place}: label {label} is outside 0 to {len(self.classes) - 1}"
                    )
                found.append(Example(image, label, place))
        return found


_MARK = "features.json"
_AT_ONCE = 1024
_DESCRIPTION = 1 << 24  # bytes of a file that describes a data set
# TFDS imports the module of whatever class a feature names.
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")
_NEEDS = (
    ("tensorflow_datasets", "tensorflow-datasets"),
    ("array_record", "array-record"),
    ("PIL", "pillow"),
)


def _builder(name: str, root: Path) -> Any:
    there = prepared(name, root)
    if not there:
        command = f"tfds build {name} --file_format=array_record --data_dir={root}"
        raise DataNotFoundError(
            f"{name} is not prepared in {root}: run `{command}` on any machine "
            "(that step may need TensorFlow, reading does not) or pass the data_dir that has it"
        )
    missing = [project for package, project in _NEEDS if not importlib.util.find_spec(package)]
    if missing:
        needed = " ".join(missing)
        raise NotInstalledError(f"{name} in {root} cannot be read: pip install {needed}")
    for each in there:
        _check_features(root / each.replace(":", "/") / _MARK)
    from tensorflow_datasets.core import read_only_builder, registered

    with _blamed_on(f"{name} in {root}"):
        try:
            return read_only_builder.builder_from_files(name, data_dir=root)
        except registered.DatasetNotFoundError as error:
            raise DataNotFoundError(
                f"{name} is not prepared in {root}: {nearest(name, there)}"
            ) from error


@contextlib.contextmanager
def _blamed_on(what: str) -> Iterator[None]:
    """Raises DataError about `what` for an error of TFDS: damaged files make it raise anything."""
    try:
        yield
    except (DataError, DataNotFoundError):
        raise
    except Exception as error:
        raise DataError(
            f"{what} is damaged ({_told(error)}): copy the data again, or prepare them"
        ) from error


def _check_features(path: Path) -> None:
    """Raises DataError for a description whose features would have TFDS import other code."""
    try:
        description = json.loads(content_of(path, at_most=_DESCRIPTION))
        others = [name for name in _class_names(description) if not _FEATURE.fullmatch(name)]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({_told(error)}): copy the data again") from error
    if others:
        raise DataError(
            f"{path} names code that is not of TFDS, {others[0]!r}, which is not run: "
            "prepare the data with features of TFDS"
        )


def _class_names(description: Any) -> Iterator[str]:
    """The names of classes in a description, wherever TFDS may look for them."""
    if isinstance(description, dict):
        # As protocol buffers spell it, in both ways, and as older versions did.
        named = ("pythonClassName", "python_class_name", *["type"] * ("content" in description))
        for key, value in description.items():
            if key in named and isinstance(value, str):
                yield value
            yield from _class_names(value)
    elif isinstance(description, list):
        for each in description:
            yield from _class_names(each)


def _told(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _source(name: str, split: str, builder: Any) -> Any:
    """The undecoded examples of a part of a split."""
    from tensorflow_datasets import decode

    try:
        return builder.as_data_source(split, deserialize_method=decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError as error:
        raise DataNotFoundError(
            f"{name} is prepared in {builder.data_path}, but as {builder.info.file_format.value}, "
            "which only TensorFlow reads: prepare it again into another folder with "
            f"`tfds build {name} --file_format=array_record --data_dir=FOLDER`"
        ) from error


def _keys(name: str, info: Any) -> tuple[str, str]:
    """The names of the feature that is the image and of the one that is the label."""
    from tensorflow_datasets import features as kinds

    features = info.features
    match info.supervised_keys:
        case (str() as image, str() as label, *_):
            pass
        case _:
            images = sorted(key for key in features if isinstance(features[key], kinds.Image))
            labels = sorted(key for key in features if isinstance(features[key], kinds.ClassLabel))
            if len(images) != 1 or len(labels) != 1:
                raise DataError(
                    f"{name} does not say what to learn from what (no supervised_keys), "
                    f"and its images {images} and class labels {labels} leave a choice"
                )
            (image,), (label,) = images, labels
    pixels, target = features[image], features[label]
    if pixels.np_dtype != np.uint8 or len(pixels.shape) != 3:
        raise DataError(
            f"{name}: its input {image} is {pixels.np_dtype}{list(pixels.shape)}, "
            "expected uint8 images of height, width and channels"
        )
    if not isinstance(target, kinds.ClassLabel) or target.names is None:
        raise DataError(f"{name}: its label {label} is {target}, expected a ClassLabel")
    return image, label
