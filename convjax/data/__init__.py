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
from convjax.data.dataset import DataNotFoundError, Dataset
from convjax.data.examples import Example, Examples
from convjax.data.idx import IdxError, read_idx, write_idx
from convjax.data.sources import load, names, open_examples

__all__ = [
    "DataNotFoundError",
    "Dataset",
    "Example",
    "Examples",
    "IdxError",
    "batch_indices",
    "channel_statistics",
    "epoch_order",
    "eval_batches",
    "load",
    "names",
    "open_examples",
    "read_idx",
    "steps_per_epoch",
    "write_idx",
]
