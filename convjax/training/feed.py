"""From indices to a batch: images stay uint8 and are gathered where that is fastest."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.training.parallel import Mapper
from convjax.training.step import Batch


class Images(NamedTuple):
    """All images of a split with their labels, on the host (NumPy) or on the devices."""

    images: np.ndarray | Array
    labels: np.ndarray | Array


def settle(data: Images, mapper: Mapper) -> Images:
    """The images where `fetch` is to find them: on the devices, or on the host if that is the CPU.

    On the CPU, NumPy gathers a batch of 128 out of 60,000 images in the time of a compiled program
    (0.3 ms of 28x28 on 2 cores of an AMD EPYC), without a second copy of them all.
    """
    if mapper.devices[0].platform == "cpu":
        return data
    return mapper.replicate(data)


def fetch(data: Images, indices: np.ndarray, mask: np.ndarray | None = None) -> Batch:
    """The batch of the images with these indices, int32 `[batch]`."""
    if isinstance(data.images, np.ndarray):
        return Batch(data.images[indices], data.labels[indices], mask)
    images, labels = _take(data, indices)
    return Batch(images, labels, mask)


@jax.jit
def _take(data: Images, indices: Array) -> tuple[Array, Array]:
    images, labels = (jnp.take(each, indices, axis=0, mode="clip") for each in data)
    return images, labels
