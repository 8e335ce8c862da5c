"""Images that are read one at a time, by their number: what streams are made of.

images = open_examples("image_folder", "train", "~/imagenet")    # nothing is decoded yet
images.classes, len(images), images[17].label
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from convjax.data.dataset import Dataset


class Example(NamedTuple):
    """One image with its label.

    image: the bytes of an image file, or pixels uint8 `[height, width, channels]`.
    place: what to call it in an error: a path, or the data set with a number.
    """

    image: bytes | np.ndarray
    label: int
    place: str


class Examples(Protocol):
    """Images by number. It goes to other processes, and threads read it at the same time."""

    @property
    def classes(self) -> Sequence[str]:
        """The name of each class."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, int32 `[N]`; None where only the images themselves would tell."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class InMemory:
    """A data set in memory, read image by image."""

    dataset: Dataset
    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.dataset.classes

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`."""
        return self.dataset.labels

    def __len__(self) -> int:
        return len(self.dataset.labels)

    def __getitem__(self, index: int) -> Example:
        images, labels, _ = self.dataset
        return Example(images[index], int(labels[index]), f"image {index} of {self.name}")


@dataclass(frozen=True)
class Chosen:
    """Some of other images, in the order of their numbers, int `[N]`."""

    examples: Examples
    numbers: np.ndarray

    @property
    def classes(self) -> Sequence[str]:
        """The name of each class."""
        return self.examples.classes

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, int32 `[N]`; None where only the images themselves would tell."""
        labels = self.examples.labels
        return None if labels is None else labels[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:
        return self.examples[int(self.numbers[index])]
