"""Images with labels: where they come from, and in which order they are seen.

    train = convjax.data.load("fashion_mini", "train")          # images, labels, classes
    batch_indices(seed=0, epoch=3, step=17, size=10_000, batch_size=128)   # the same for ever

A data set is three NumPy arrays in memory; one that is too large for that is a stream
(`convjax.data.stream`). Importing this package takes NumPy and nothing else.
"""

from convjax.data.batches import (
    batch_indices,
    channel_statistics,
    epoch_order,
    eval_batches,
    steps_per_epoch,
)
from convjax.data.dataset import DataError, DataNotFoundError, Dataset, FileError, ImageError
from convjax.data.examples import Example, Examples
from convjax.data.idx import IdxError, read_idx, write_idx
from convjax.data.sources import load, load_readable, names, open_examples, open_readable

__all__ = [
    "DataError",
    "DataNotFoundError",
    "Dataset",
    "Example",
    "Examples",
    "FileError",
    "IdxError",
    "ImageError",
    "batch_indices",
    "channel_statistics",
    "epoch_order",
    "eval_batches",
    "load",
    "load_readable",
    "names",
    "open_examples",
    "open_readable",
    "read_idx",
    "steps_per_epoch",
    "write_idx",
]
