"""What steps and evaluations see: images out of memory, off the devices, or off the disk.

    feed = training(split, order, mapper, at_once=20)
    program = mapper.compile(feed.program(step), donate=True)      # `feed.specs` are its shapes
    state, metrics = program(state, batch, hyper, *rest)           # batch, *rest = feed.take(n, 20)

All three give the same batches: which images they are is a function of seed and step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.compiler import spec_on
from convjax.data import Dataset, Examples, batch_indices, channel_statistics, eval_batches
from convjax.data.dataset import Faults
from convjax.data.views import View
from convjax.training.metrics import Metrics
from convjax.training.parallel import Mapper
from convjax.training.step import Batch, Step


class Images(NamedTuple):
    """All images of a split with their labels, on the host (NumPy) or on the devices."""

    images: np.ndarray | Array
    labels: np.ndarray | Array


class OnDisk(NamedTuple):
    """Images that are decoded when they are wanted: by so many processes, or by threads if 0."""

    examples: Examples
    view: View
    processes: int = 0


class Split(NamedTuple):
    """A split of a data set: its images, wherever they are, and the names of their classes.

    faults: the images that cannot be read and are left out.
    """

    source: Images | OnDisk
    classes: tuple[str, ...]
    faults: Faults = Faults(0)

    @property
    def size(self) -> int:
        """How many images there are."""
        source = self.source
        return len(source.examples if isinstance(source, OnDisk) else source.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        if isinstance(self.source, OnDisk):
            view = self.source.view
            return view.height, view.width, view.channels
        _, height, width, channels = self.source.images.shape
        return height, width, channels

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel, of all images in memory, or of 1,024."""
        on_disk = isinstance(self.source, OnDisk)
        return channel_statistics(self.sample(1024 if on_disk else self.size))

    def sample(self, count: int) -> np.ndarray:
        """Images spread evenly over the split, or all if there are fewer, uint8."""
        if isinstance(self.source, OnDisk):
            from convjax.data.stream import sample

            return sample(self.source.examples, self.source.view, count)
        count = min(count, self.size)
        return np.asarray(self.source.images)[np.arange(count) * self.size // max(count, 1)]


def in_memory(dataset: Dataset) -> Split:
    """A data set in memory as a split."""
    return Split(Images(dataset.images, dataset.labels), dataset.classes)


class Order(NamedTuple):
    """Which images make up the batches of a run: those of `convjax.data.batch_indices`."""

    seed: int
    size: int
    batch_size: int

    def batch(self, number: int) -> np.ndarray:
        """The images of a batch, counted from the first of the run, int32 `[batch]`."""
        epoch, place = divmod(number, self.size // self.batch_size)
        return batch_indices(self.seed, epoch, place, self.size, self.batch_size)


class Feed(NamedTuple):
    """Where the batches of a run come from.

    at_once: the most steps that one call takes.
    program: `(step, more) -> (state, batch, hyper, *rest) -> (state, metrics, *more)`, what is to
        be compiled; `more` gives, of a state, what a step shows besides before there was any.
    specs: shapes and shardings of batch and rest.
    take: `(first, count) -> (batch, *rest)`, on the devices, for the batches from `first` on.
    close: ends what decodes.
    """

    at_once: int
    program: Callable[..., Callable[..., Any]]
    specs: tuple[Any, ...]
    take: Callable[[int, int], tuple[Any, ...]]
    close: Callable[[], None] = lambda: None


# state -> what a step shows beside state and metrics, before the first
More = Callable[[Any], tuple[Any, ...]]


def training(split: Split, order: Order, mapper: Mapper, at_once: int = 1) -> Feed:
    """The feed that suits where the images are, and what computes.

    In memory they go to the devices, all at once and once and for all, to be gathered inside the
    step; but on a CPU, where NumPy gathers a batch of 128 out of 60,000 images in the time of a
    compiled program (0.3 ms of 28x28 on 2 cores of an AMD EPYC), only for more steps than one a
    call.
    """
    if isinstance(split.source, OnDisk):
        return _streamed(split, split.source, order, mapper)
    if at_once > 1 or mapper.devices[0].platform != "cpu":
        return _resident(split.source, order, mapper, at_once)
    return _gathered(split, split.source, order, mapper)


def gathered(data: Images, numbers: np.ndarray) -> Batch:
    """The images of these numbers `[..., batch]`, on the host."""
    return Batch(data.images[numbers], data.labels[numbers], numbers=numbers)


def taken(data: Images, numbers: Array) -> Batch:
    """The images of these numbers `[batch]`, inside a compiled program."""
    images, labels = (jnp.take(each, numbers, axis=0, mode="clip") for each in data)
    return Batch(images, labels, numbers=numbers)


def repeated(
    step: Callable[[Array, Any], tuple[Any, ...]], count: Array, state: Any, *shown: Any
) -> tuple[Any, ...]:
    """So many steps inside a compiled program: the state after them, and their metrics together.

    step: `(number, state) -> (state, metrics, *shown)`. shown: what there is before the first.
    """

    def one(number: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, metrics, *_ = carry
        state, own, *shown = step(number, state)
        return state, Metrics(*map(jnp.add, metrics, own)), *shown

    none = Metrics(jnp.float32(0), *(jnp.int32(0) for _ in range(3)))
    return lax.fori_loop(0, count, one, (state, none, *shown))


def evaluation(split: Split, batch_size: int, mapper: Mapper) -> Iterator[Batch]:
    """Every image of the split once, on the devices, in batches of one size with a mask."""
    rows = _rows(batch_size, mapper)
    source = split.source
    if isinstance(source, Images):
        images, labels = source
        for indices, mask in eval_batches(len(labels), batch_size):
            taken = indices[rows]
            yield mapper.shard(Batch(images[taken], labels[taken], mask[rows]))
        return
    from convjax.data.prefetch import prefetch
    from convjax.data.stream import Part, Workers
    from convjax.data.stream import eval_batches as decoded

    workers, part = Workers(source.processes), Part(*mapper.part)
    batches = decoded(
        source.examples, source.view, batch_size=batch_size, workers=workers, part=part
    )
    with prefetch(batches, place=lambda batch: mapper.shard(Batch(*batch))) as ready:
        yield from ready


def evaluation_spec(split: Split, batch_size: int, mapper: Mapper) -> Batch:
    """Shapes and shardings of the batches of `evaluation`."""
    spec = _batch_spec(split, batch_size, mapper)
    mask = spec_on(jax.ShapeDtypeStruct((batch_size,), bool), mapper.split)
    return spec._replace(mask=mask, numbers=None)


def _nothing(state: Any) -> tuple[Any, ...]:
    return ()


def _itself(step: Step, more: More = _nothing) -> Callable[..., Any]:
    return step


def _gathered(split: Split, data: Images, order: Order, mapper: Mapper) -> Feed:
    """Batches that NumPy gathers on the host."""
    rows = _rows(order.batch_size, mapper)

    def take(first: int, count: int) -> tuple[Batch]:
        return (mapper.shard(gathered(data, order.batch(first)[rows])),)

    return Feed(1, _itself, (_batch_spec(split, order.batch_size, mapper),), take)


def _resident(data: Images, order: Order, mapper: Mapper, at_once: int) -> Feed:
    """Images that live on the devices as uint8 and are gathered there, many steps a call."""
    rows = _rows(order.batch_size, mapper)
    placed = mapper.replicate(Images(*map(np.asarray, data)))

    def program(step: Step, more: More = _nothing) -> Callable[..., Any]:
        def steps(state: Any, numbers_BN: Array, hyper: Any, count: Array, data: Images) -> Any:
            def one(n: Array, state: Any) -> tuple[Any, ...]:
                return step(state, taken(data, numbers_BN[:, n]), hyper)

            return repeated(one, count, state, *more(state))

        return steps

    def take(first: int, count: int) -> tuple[Any, ...]:
        numbers = np.zeros((order.batch_size, at_once), np.int32)
        for n in range(count):
            numbers[:, n] = order.batch(first + n)
        return mapper.shard(numbers[rows]), np.int32(count), placed

    numbers = jax.ShapeDtypeStruct((order.batch_size, at_once), np.int32)
    count = jax.ShapeDtypeStruct((), np.int32)
    rest = spec_on((count, placed), mapper.whole)
    return Feed(at_once, program, (spec_on(numbers, mapper.split), *rest), take)


def _streamed(split: Split, source: OnDisk, order: Order, mapper: Mapper) -> Feed:
    """Batches that are decoded from disk, and on the devices before they are wanted."""
    from convjax.data.prefetch import Prefetch, prefetch
    from convjax.data.stream import Part, Workers, train_batches

    rows = _rows(order.batch_size, mapper)
    ready: Prefetch | None = None
    expected = 0

    def begin(first: int) -> Prefetch:
        batches = train_batches(
            source.examples,
            source.view,
            seed=order.seed,
            batch_size=order.batch_size,
            start=first,
            workers=Workers(source.processes),
            part=Part(*mapper.part),
        )
        return prefetch(batches, place=lambda batch: mapper.shard(Batch(*batch)))

    def take(first: int, count: int) -> tuple[Batch]:
        nonlocal ready, expected
        if ready is None or first != expected:
            close()
            ready = begin(first)
        expected = first + 1
        numbers = mapper.shard(order.batch(first)[rows])
        return (next(ready)._replace(numbers=numbers),)

    def close() -> None:
        if ready is not None:
            ready.close()

    spec = _batch_spec(split, order.batch_size, mapper)
    return Feed(1, _itself, (spec,), take, close)


def _batch_spec(split: Split, size: int, mapper: Mapper) -> Batch:
    """Shapes and shardings of a batch of training."""
    images = jax.ShapeDtypeStruct((size, *split.shape), np.uint8)
    each = jax.ShapeDtypeStruct((size,), np.int32)
    return spec_on(Batch(images, each, numbers=each), mapper.split)


def _rows(batch_size: int, mapper: Mapper) -> slice:
    """The rows of every batch that this process reads."""
    number, of = mapper.part
    return slice(batch_size * number // of, batch_size * (number + 1) // of)
