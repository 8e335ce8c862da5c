"""Evaluation that is exact for any number of images, any batch size, any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from convjax.layer import Params, State
from convjax.training.metrics import Metrics, add, to_host
from convjax.training.step import Batch


def evaluate(
    step: Callable[[tuple[Params, State], Batch], Metrics],
    model: tuple[Params, State],
    batches: Iterable[Batch],
) -> Metrics:
    """Loss, correct ones and count over all images, each counted once, as Python numbers.

    Sums and counts are added up in Python's integers and double precision. The result depends on
    the batch size by no more than the rounding of the loss.

    step: a compiled evaluation step.
    batches: as `convjax.training.feed.evaluation` gives them: what fills up the last is masked out.
    """
    results = []
    for batch in batches:
        results.append(step(model, batch))
        # One call late: the device has its next batch before the host waits for the last one.
        if len(results) > 1:
            results[-2] = to_host(results[-2])
    return functools.reduce(add, map(to_host, results), Metrics())


def batch_size_for(batch_size: int, devices: int, images: int) -> int:
    """The batch size of an evaluation: a multiple of the devices, and hardly more than the images.

    >>> batch_size_for(500, devices=8, images=2000), batch_size_for(500, devices=8, images=13)
    (504, 16)
    """
    return -(-min(batch_size, images) // devices) * devices
