"""The same six networks in each library, written and trained as its users do.

A module of this folder is one library: `NETWORKS` holds its networks by name, and `build` makes of
one of them, with given weights, the functions that are compared and timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Rival(NamedTuple):
    """What every library is asked to do, from the same weights.

    train_logits: logits of images `[batch, height, width, channels]` in training mode; it changes
        nothing.
    step: one step of training on the case's batch, which lies on the device: forward, backward,
        update and batch statistics. Returns the loss first, and what else is computed by then.
    predictor: from images to a function that computes their logits in inference mode.
    wait: waits until what the others returned is computed.
    device_peak: the most bytes of a GPU's memory that were held; None on the CPU.
    """

    train_logits: Callable[[np.ndarray], np.ndarray]
    step: Callable[[], tuple[Any, Any]]
    predictor: Callable[[np.ndarray], Callable[[], Any]]
    wait: Callable[[Any], Any]
    device_peak: Callable[[], int | None] = lambda: None


def jax_peak() -> int | None:
    """The `device_peak` of JAX's first device."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
