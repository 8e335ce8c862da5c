"""Which images make up a batch: a pure function of seed, epoch and step.

    batch_indices(seed=0, epoch=3, step=17, size=10_000, batch_size=128)

The order is the same for ever, on every machine and with every version of NumPy and Python: it is
made of raw bits of Philox, whose stream NumPy guarantees, and of a stable sort. NumPy gives no such
guarantee for `Generator.permutation` (NEP 19).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from convjax.data.views import NUMBERS


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order in which an epoch sees the images: a permutation of `range(size)`, int32 `[size]`.

    Image i has the i-th 64-bit number of Philox4x64-10 with the key (seed, epoch); the images are
    seen in rising order of these numbers (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", 2011). The array is read-only, as it is remembered for the next call.

    seed, epoch: 0 to 2**64 - 1. Raises ValueError outside of that.

    >>> epoch_order(seed=0, epoch=0, size=5)
    array([0, 2, 1, 4, 3], dtype=int32)
    """
    for name, value in ("seed", seed), ("epoch", epoch):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} {value} is outside 0 to 2**64 - 1")
    if not 0 <= size < 2**31:
        raise ValueError(f"a data set of {size} images is outside 0 to 2**31 - 1")
    return _epoch_order(int(seed), int(epoch), int(size))


def batch_indices(seed: int, epoch: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """The images of one training batch, int32 `[batch_size]`; step counts from 0 in each epoch.

    Raises ValueError for a step that the epoch does not have.
    """
    steps = steps_per_epoch(size, batch_size)
    if not 0 <= step < steps:
        raise ValueError(
            f"step {step} is outside 0 to {steps - 1}: "
            f"an epoch has {steps} batches of {batch_size} from {size} images"
        )
    return epoch_order(seed, epoch, size)[step * batch_size : (step + 1) * batch_size]


def random_numbers(seed: int, epoch: int, place: int, count: int) -> np.ndarray:
    """The numbers of `count` images from a place in an epoch on, float64 `[count, NUMBERS]`.

    They are the upper 53 bits of raw numbers of Philox4x64-10, in [0, 1). The counter's last word
    is 1, where that of the epoch's order is 0: the two have no number in common.
    """
    counter = np.array([place * NUMBERS // 4, 0, 0, 1], np.uint64)  # four numbers a count
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter)
    bits = philox.random_raw(count * NUMBERS).reshape(count, NUMBERS)
    return (bits >> np.uint64(11)) * 2.0**-53


def steps_per_epoch(size: int, batch_size: int) -> int:
    """The number of full training batches; the images left over wait for another epoch's order.

    Raises ValueError where not even one batch is full.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch size {batch_size} for {size} images: choose a batch size from 1 to {size}"
            if size >= 1
            else f"batch size {batch_size} for {size} images: there is nothing to train on"
        )
    return size // batch_size


def eval_batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every image once and in order, in batches of one size: int32 and bool `[batch_size]` each.

    The mask is True for what counts. A last short batch is filled up with image 0, masked out.

    >>> for indices, mask in eval_batches(size=3, batch_size=2):
    ...     print(indices, mask)
    [0 1] [ True  True]
    [2 0] [ True False]
    """
    if size < 0 or batch_size < 1:
        raise ValueError(f"batch size {batch_size} for {size} images: expected at least 1 and 0")
    return _eval_batches(size, batch_size)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, float32 `[C]`, in units of [0, 1].

    images: uint8 `[N, ..., C]`. The sums are exact, in integers: no order of images changes them.
    A channel that never varies has the deviation 0: do not divide by it.

    >>> channel_statistics(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
    (array([0.5], dtype=float32), array([0.5], dtype=float32))
    """
    if images.dtype != np.uint8 or images.size == 0:
        raise ValueError(f"expected uint8 images, got {images.dtype}{list(images.shape)}")
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), _AT_ONCE):
        pixels = images[start : start + _AT_ONCE].reshape(-1, images.shape[-1])
        for channel in range(len(counts)):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    moments = [_mean_and_deviation(histogram.tolist()) for histogram in counts]
    mean, std = np.array(moments, np.float32).T
    return mean, std


_AT_ONCE = 1024


@functools.lru_cache(maxsize=2)  # The steps of an epoch come one after another.
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(bits, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


def _eval_batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, size, batch_size):
        indices = np.arange(start, start + batch_size)
        mask = indices < size
        yield np.where(mask, indices, 0).astype(np.int32), mask


def _mean_and_deviation(histogram: list[int]) -> tuple[float, float]:
    count = sum(histogram)
    total = sum(value * n for value, n in enumerate(histogram))
    squares = sum(value * value * n for value, n in enumerate(histogram))
    variance = (count * squares - total * total) / (count * count)  # of Python's exact integers
    return total / (255 * count), variance**0.5 / 255
