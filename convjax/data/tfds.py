"""Data sets that TFDS has prepared as array records, read without TensorFlow.

TFDS writes a folder `ROOT/NAME[/CONFIG]/VERSION`. As array records, its examples can be read at
random and decoded with NumPy and Pillow alone (https://www.tensorflow.org/datasets/data_source).
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from convjax.data.dataset import DataNotFoundError, Dataset
from convjax.data.examples import Example
from convjax.data.splits import parse_split, part
from convjax.names import nearest


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
    Raises DataNotFoundError where it is not prepared, or not as array records; ValueError for an
    unknown split, and where the examples are not uint8 images of one size with one label each.
    """
    builder = _builder(name, root)
    image, label = _keys(name, builder.info)
    features = builder.info.features
    # Decode what is asked for only: a mask or a second picture may cost more than the image.
    wanted = type(features)({image: features[image], label: features[label]})
    source = _source(name, split, builder)
    images, labels = None, np.empty(len(source), np.int32)
    for start in range(0, len(source), _AT_ONCE):
        records = source.__getitems__(range(start, min(start + _AT_ONCE, len(source))))
        for index, record in enumerate(records, start):
            example = wanted.deserialize_example_np(record)
            pixels = example[image]
            if images is None:
                images = np.empty((len(source), *pixels.shape), np.uint8)
            if pixels.shape != images.shape[1:]:
                raise ValueError(
                    f"{name}: image {index} is {list(pixels.shape)}, "
                    f"the first is {list(images.shape[1:])}; "
                    "a data set in memory has images of one size: resize them beforehand"
                )
            images[index], labels[index] = pixels, example[label]
    assert images is not None  # A part of a split has at least one image.
    return Dataset(images, labels, tuple(features[label].names))


class Records:
    """The examples of a split of a prepared data set, read one at a time and not decoded.

    It is given to another process by its name and opened there anew. Unlike `read`, it takes images
    of any sizes; it raises what `read` raises, the moment it is made.
    """

    def __init__(self, name: str, split: str, root: Path):
        self.name, self.split, self.root = name, split, root
        builder = _builder(name, root)
        self._image, self._label = _keys(name, builder.info)
        features = builder.info.features
        self.classes = tuple(features[self._label].names)
        self._wanted = type(features)({key: features[key] for key in (self._image, self._label)})
        self._source = _source(name, split, builder)

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self.name, self.split, self.root)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        from tensorflow_datasets import decode

        as_stored = {self._image: decode.SkipDecoding()}
        (record,) = self._source.__getitems__([index])
        example = self._wanted.deserialize_example_np(record, decoders=as_stored)
        place, label = f"image {index} of {self.name} ({self.split})", int(example[self._label])
        if not 0 <= label < len(self.classes):
            raise ValueError(f"{place}: label {label} is outside 0 to {len(self.classes) - 1}")
        return Example(example[self._image], label, place)


_MARK = "features.json"
_AT_ONCE = 1024
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
        raise ModuleNotFoundError(f"{name} in {root} cannot be read: pip install {needed}")
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(name, data_dir=root)
    except registered.DatasetNotFoundError as error:
        raise DataNotFoundError(
            f"{name} is not prepared in {root}: {nearest(name, there)}"
        ) from error


def _source(name: str, split: str, builder: Any) -> Any:
    """The undecoded examples of a split."""
    from tensorflow_datasets import decode

    base, start, stop = parse_split(split, list(builder.info.splits))
    wanted = part(start, stop, builder.info.splits[base].num_examples)
    try:
        return builder.as_data_source(
            f"{base}[{wanted.start}:{wanted.stop}]",
            deserialize_method=decode.DeserializeMethod.RAW_BYTES,
        )
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
                raise ValueError(
                    f"{name} does not say what to learn from what (no supervised_keys), "
                    f"and its images {images} and class labels {labels} leave a choice"
                )
            (image,), (label,) = images, labels
    pixels, target = features[image], features[label]
    if pixels.np_dtype != np.uint8 or len(pixels.shape) != 3:
        raise ValueError(
            f"{name}: its input {image} is {pixels.np_dtype}{list(pixels.shape)}, "
            "expected uint8 images of height, width and channels"
        )
    if not isinstance(target, kinds.ClassLabel) or target.names is None:
        raise ValueError(f"{name}: its label {label} is {target}, expected a ClassLabel")
    return image, label
