"""What the tests of `convjax.ops` compare with: PyTorch, in its own layout, and SAME by search."""

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

conv_of_rank = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
conv_transpose_of_rank = {
    1: torch.conv_transpose1d,
    2: torch.conv_transpose2d,
    3: torch.conv_transpose3d,
}


@pytest.fixture
def x64():
    """64-bit numbers in JAX for the length of a test."""
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    """Normally distributed float64 numbers, the same each time."""
    return np.random.default_rng(seed).normal(size=shape)


def assert_close(actual, expected, tolerance=1e-10):
    """Equal in float64, but for the rounding of some hundreds of additions."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def channels_first(x):
    """[batch, *spatial, channels] of NumPy or JAX as the tensor [batch, channels, *spatial]."""
    return torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())


def channels_last(x):
    """The tensor [batch, channels, *spatial] as the array [batch, *spatial, channels]."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def conv_weight(kernel):
    """[*window, in / groups, out] as PyTorch's weight [out, in / groups, *window]."""
    rank = kernel.ndim - 2
    return torch.from_numpy(np.transpose(kernel, (rank + 1, rank, *range(rank))).copy())


def conv_transpose_weight(kernel, groups=1):
    """[*window, in / groups, out] as PyTorch's transposed weight [in, out / groups, *window]."""
    parts = np.split(kernel, groups, axis=-1)  # each [*window, in / groups, out / groups]
    rank = kernel.ndim - 2
    order = (rank, rank + 1, *range(rank))
    return torch.from_numpy(np.concatenate([np.transpose(part, order) for part in parts]))


def same_pads(size, window, stride=1, dilation=1, lower=False):
    """The fewest zeros that make ceil(size / stride) windows fit; the odd one at the end."""
    extent = (window - 1) * dilation + 1
    wanted = -(-size // stride)
    fits = (n for n in itertools.count() if (size + n - extent) // stride + 1 >= wanted)
    total = next(n for n in fits if size + n >= extent)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def pad_spatial(x, pairs, mode: Any = "constant"):
    """Pads the spatial dimensions of a NumPy array [batch, *spatial, channels]."""
    return np.pad(x, [(0, 0), *pairs, (0, 0)], mode=mode)


def compiled(function):
    """The function as one compiled program, of its arrays: quicker than one a primitive."""

    @functools.wraps(function)
    def call(*arguments, **options):
        arrays = {
            place: argument
            for place, argument in enumerate(arguments)
            if isinstance(argument, jax.Array | np.ndarray)
        }

        def program(arrays):
            both = (arrays.get(place, argument) for place, argument in enumerate(arguments))
            return function(*both, **options)

        return jax.jit(program)(arrays)

    return call
