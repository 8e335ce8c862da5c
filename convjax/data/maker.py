"""A batch of a stream as a function of its number alone, whoever makes it.

make = Maker(images, random_resized_crop(224), 256, share_of(256, Part()), seed=0)
make(17, np.zeros(make.size, np.uint8))      # Batch(images, labels, mask), in that memory
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from convjax.data.batches import batch_indices, random_numbers, steps_per_epoch
from convjax.data.decode import decode
from convjax.data.examples import Examples
from convjax.data.views import NUMBERS, View


class Batch(NamedTuple):
    """Images uint8 `[batch, height, width, channels]`, labels int32 `[batch]`, and what counts.

    mask: bool `[batch]`, or None where all count. What it leaves out is black and of class 0.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None


class Part(NamedTuple):
    """Which part of every batch is read: that of host `number`, from 0, of so many hosts."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True)
class Maker:
    """From the number of a batch to the batch: of training, or without a seed of evaluation.

    batch_size, share: of all hosts together, and which rows of that are this one's.
    """

    examples: Examples
    view: View
    batch_size: int
    share: slice
    seed: int | None = None

    def __call__(self, number: int, memory: np.ndarray) -> Batch:
        """The batch in that memory, which is all 0: uint8 `[size]`."""
        images, labels, mask = batch = self.arrays(memory)
        indices, uniform = self._drawn(number)
        if mask is not None:
            mask[:] = indices < len(self.examples)
        for row, index in enumerate(indices.tolist()):
            if index < len(self.examples):
                images[row], labels[row] = seen(self.examples, self.view, index, uniform[row])
        return batch

    @property
    def rows(self) -> int:
        """How many images of each batch are this host's."""
        return self.share.stop - self.share.start

    @property
    def size(self) -> int:
        """Bytes of a batch: its images, and then labels and mask."""
        return self._labels_at + 5 * self.rows

    def arrays(self, memory: np.ndarray) -> Batch:
        """The arrays of a batch, in that memory."""
        shape = self.rows, self.view.height, self.view.width, self.view.channels
        images = memory[: math.prod(shape)].reshape(shape)
        labels, mask = np.split(memory[self._labels_at :], [4 * self.rows])
        return Batch(
            images, labels.view(np.int32), mask.view(np.bool_) if self.seed is None else None
        )

    def _drawn(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Which images, and the random numbers of each; an index beyond the last fills up."""
        if self.seed is None:
            indices = np.arange(self.batch_size) + number * self.batch_size
            return indices[self.share], np.zeros((self.rows, NUMBERS))
        size = len(self.examples)
        epoch, step = divmod(number, steps_per_epoch(size, self.batch_size))
        indices = batch_indices(self.seed, epoch, step, size, self.batch_size)
        place = step * self.batch_size + self.share.start
        return indices[self.share], random_numbers(self.seed, epoch, place, self.rows)

    @property
    def _labels_at(self) -> int:
        images = self.rows * self.view.height * self.view.width * self.view.channels
        return -(-images // 64) * 64  # where numbers of any kind may lie


def seen(examples: Examples, view: View, index: int, uniform: np.ndarray) -> tuple[np.ndarray, int]:
    """What a view sees of an image, uint8 `[height, width, channels]`, and its label."""
    image, label, place = examples[index]
    return decode(image, place, view, uniform), label


def share_of(batch_size: int, part: Part) -> slice:
    """The rows of a batch that are a host's. Raises ValueError where they cannot be shared."""
    number, of = part
    if batch_size < 1 or not 0 <= number < of or batch_size % of:
        raise ValueError(
            f"part {number} of {of} of batches of {batch_size}: give a batch size that is a "
            "multiple of the parts, which count from 0"
        )
    each = batch_size // of
    return slice(number * each, (number + 1) * each)
