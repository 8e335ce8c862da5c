"""What the trials of tests/test_sweep_launch.py train: pictures, and networks that misbehave."""

import ctypes
import subprocess
import time

import jax.numpy as jnp
import numpy as np

from convjax import ops
from convjax.combine import serial
from convjax.data import Dataset
from convjax.layers import batch_norm, conv, dense, dropout


def pictures(split, data_dir):
    """Forty bright or dark pictures to train on, and thirteen to test."""
    size = {"train": 40, "test": 13}[split]
    draw = np.random.default_rng(size)
    labels = draw.integers(0, 3, size).astype(np.int32)
    light = labels[:, None, None, None] * 60 + draw.integers(0, 100, (size, 6, 6, 1))
    return Dataset(light.astype(np.uint8), labels, ("dark", "grey", "light"))


def noisy(classes, dropout_rate=0.2):
    """A network with batch statistics and noise of its own."""
    return serial(
        *(conv(4, 3, bias=False), batch_norm(), ops.relu, dropout(dropout_rate)),
        *(conv(4, 3, stride=2, bias=False), batch_norm(), ops.relu),
        *(ops.global_avg_pool, dense(classes)),
    )


def tiny(classes, width=3, ends="well"):
    """A network that ends well, or as it is told."""
    if ends == "segfault":
        ctypes.string_at(0)
    elif ends == "hang":
        print("started", subprocess.Popen(["sleep", "1000"]).pid)
        time.sleep(1000)
    elif ends == "memory":
        np.ones(2**60, np.uint8)
    elif ends == "error":
        raise RuntimeError("a mistake of whoever wrote the network")
    bad = [lambda x: x * jnp.nan] if ends == "nan" else []
    return serial(
        *(conv(width, 3, bias=False), batch_norm(), ops.relu, *bad),
        *(ops.global_avg_pool, dense(classes)),
    )
