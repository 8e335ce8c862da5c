"""Evaluation that is exact for any number of images, any batch size, any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable

from convjax.data.batches import eval_batches
from convjax.layer import Params, State
from convjax.training.feed import Images, fetch
from convjax.training.metrics import Metrics, add, to_host
from convjax.training.parallel import Mapper
from convjax.training.step import Batch


def evaluate(
    step: Callable[[tuple[Params, State], Batch], Metrics],
    mapper: Mapper,
    model: tuple[Params, State],
    data: Images,
    batch_size: int,
) -> Metrics:
    """Loss, correct ones and count over all images, each counted once, as Python numbers.

    A last short batch is filled up and the filling masked out; sums and counts are added up in
    Python's integers and double precision. The result depends on the batch size by no more than
    the rounding of the loss.

    step: a compiled evaluation step.
    batch_size: images a step, over all devices; rounded up to a multiple of their number.
    """
    size = batch_size_for(batch_size, len(mapper.devices))
    results = []
    for indices, mask in eval_batches(len(data.labels), size):
        results.append(step(model, mapper.shard(fetch(data, indices, mask))))
        # One call late: the device has its next batch before the host waits for the last one.
        if len(results) > 1:
            results[-2] = to_host(results[-2])
    return functools.reduce(add, map(to_host, results), Metrics())


def batch_size_for(batch_size: int, devices: int) -> int:
    """The batch size of an evaluation: rounded up to a multiple of the devices.

    >>> batch_size_for(500, devices=8)
    504
    """
    return -(-batch_size // devices) * devices
