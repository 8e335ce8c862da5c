"""Batches of a data set that is too large for memory, decoded while the device computes.

    images = open_examples("image_folder", "train", "~/imagenet")
    view = random_resized_crop(224)
    with train_batches(images, view, seed=0, batch_size=256, start=step) as batches:
        for images, labels, _ in batches:              # uint8 [256, 224, 224, 3], int32 [256]

Batch n is a function of the seed and of n alone, whoever decodes it: a stream that begins at n goes
on exactly where another one stopped. Grain's threads and processes do the work.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grain
import numpy as np
from absl import flags

from convjax.config import UserError
from convjax.data.batches import batch_indices, random_numbers, steps_per_epoch
from convjax.data.examples import Examples
from convjax.data.maker import Batch, Maker, Part, seen, share_of
from convjax.data.views import View
from convjax.data.workers import (
    AHEAD,
    Workers,
    begin_worker,
    cores,
    counts,
    end,
    new_memory,
    shared_folder,
    taken_over,
)


class StreamError(UserError, RuntimeError):
    """A stream that cannot go on: the message says at which batch, and why."""


def train_batches(
    examples: Examples,
    view: View,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    workers: Workers = Workers(),
    part: Part = Part(),
) -> Stream:
    """The batches from `start` to before `stop`, counted from the first of training; or for ever.

    Their images are those of `batch_indices`: each epoch has an order of its own. The random
    numbers of an image are Philox4x64-10 with the key (seed, epoch), counted by its place in the
    epoch, so that an image is cropped anew in each epoch and the same way on every machine.

    batch_size: of all hosts together; each reads `batch_size / part.of` images.

    Raises ValueError for numbers that do not fit together; ImageError, from the stream, for a file
    that cannot be read.
    """
    epoch = start // steps_per_epoch(len(examples), batch_size)
    if not 0 <= start < 2**31 or (stop is not None and stop < start):
        raise ValueError(f"batches from {start} to {stop}: give 0 <= start <= stop, start < 2**31")
    batch_indices(seed, epoch, 0, len(examples), batch_size)  # or an error
    make = Maker(examples, _sized(view), batch_size, share_of(batch_size, part), seed)
    return Stream(make, start, 2**31 if stop is None else stop, workers)


def eval_batches(
    examples: Examples,
    view: View,
    *,
    batch_size: int,
    workers: Workers = Workers(),
    part: Part = Part(),
) -> Stream:
    """Every image once and in order, in batches of one size; a mask leaves out what fills the last.

    The view's random numbers are all 0. The arguments are those of `train_batches`, and so are the
    errors.
    """
    make = Maker(examples, _sized(view), batch_size, share_of(batch_size, part))
    return Stream(make, 0, -(-len(examples) // batch_size), workers)


def sample(examples: Examples, view: View, count: int = 1024) -> np.ndarray:
    """Images spread evenly over the data set, uint8 `[count, height, width, channels]`.

    For statistics of a set that is too large for all of it: `channel_statistics(sample(...))`. They
    are always the same, seen with random numbers of their own, and fewer where there are fewer.
    """
    count, view = min(count, len(examples)), _sized(view)
    chosen = np.arange(count) * len(examples) // count
    uniform = random_numbers(seed=0, epoch=0, place=0, count=count)

    def image(row: int) -> np.ndarray:
        return seen(examples, view, int(chosen[row]), uniform[row])[0]

    with ThreadPoolExecutor(cores()) as pool:
        return np.stack(list(pool.map(image, range(count))))


class Stream(Iterator[Batch]):
    """An iterator over batches, to be closed: as a context, by `close`, or by reading to its end.

    Its first batch is decoded when it is asked for; from then on the workers are ahead.
    """

    def __init__(self, make: Maker, start: int, stop: int, workers: Workers):
        processes, threads = counts(workers)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags: their defaults.
        self.next_batch = start
        folder = shared_folder(make.size, processes, threads) if processes else None
        numbers = grain.MapDataset.range(start, stop).map(_Decode(make, folder))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        batches = numbers.to_iter_dataset(options)
        if folder is not None:
            ahead = grain.MultiprocessingOptions(processes, per_worker_buffer_size=AHEAD)
            begin = functools.partial(begin_worker, folder)
            batches = batches.mp_prefetch(ahead, worker_init_fn=begin)
        self._make = make
        self._iterator: Iterator[Batch | str] = iter(batches)
        # Whatever becomes of the stream, its processes end, at the latest with this one.
        self._finalizer = weakref.finalize(self, end, self._iterator, folder)

    def __next__(self) -> Batch:
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except (RuntimeError, OSError) as error:
            self.close()
            if isinstance(error, UserError):
                raise
            if isinstance(error, OSError):
                raise StreamError(
                    f"batch {self.next_batch} was not read: {error}; is there room in memory "
                    "that processes share?"
                ) from error
            if "terminated unexpectedly" not in str(error):
                raise
            raise StreamError(
                f"batch {self.next_batch} was not read: a process that decodes ended ({error}); "
                "exit code -9 is a lack of memory: take fewer processes"
            ) from error
        except BaseException:
            self.close()
            raise
        self.next_batch += 1
        return self._make.arrays(taken_over(batch)) if isinstance(batch, str) else batch

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes and threads; a closed stream has no more batches."""
        self._finalizer()
        self._iterator = iter(())  # Grain's would complain if it outlived Python's modules.


@dataclass(frozen=True)
class _Decode:
    """What a worker does: the batch itself, or the path of a file in memory that holds it."""

    make: Maker
    folder: str | None

    def __call__(self, number: int) -> Batch | str:
        if self.folder is None:
            return self.make(number, np.zeros(self.make.size, np.uint8))
        path = os.path.join(self.folder, str(number))
        self.make(number, new_memory(path, self.make.size))
        return path


def _sized(view: View) -> View:
    if not view.height:
        raise ValueError("a view without a size: images of a batch have one, such as whole(32, 32)")
    return view
