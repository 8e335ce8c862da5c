"""The random numbers of `jax.random`, made by NumPy on the host, where nothing has to be compiled.

    normal(np.array([0, 42], np.uint32), 1000)      # jax.random.normal(jax.random.key(42), (1000,))

A key is the two uint32 of `jax.random.key_data`, of JAX's own kind of keys (threefry2x32). Bits are
equal to JAX's; normal numbers are equal to rounding (1e-6), as NumPy's logarithm is another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def fold_in(key: np.ndarray, data: int) -> np.ndarray:
    """The key, uint32 `[2]`, that `jax.random.fold_in` makes of another and of a number.

    data: 0 to 2**32 - 1.
    """
    return np.concatenate(hash_counts(key, np.zeros(1, np.uint32), np.array([data], np.uint32)))


def uniform(key: np.ndarray, size: int, low: float, high: float) -> np.ndarray:
    """Uniform numbers over [low, high), float32 `[size]`: those of `jax.random.uniform`."""
    return _by_chunks(key, size, lambda numbers: _between(numbers, low, high))


def normal(key: np.ndarray, size: int) -> np.ndarray:
    """Numbers of mean 0 and deviation 1, float32 `[size]`: those of `jax.random.normal`."""
    low = float(np.nextafter(np.float32(-1), np.float32(0)))

    def finish(numbers: np.ndarray) -> np.ndarray:
        return _SQRT2 * erf_inv(_between(numbers, low, 1.0))

    return _by_chunks(key, size, finish)


def truncated_normal(key: np.ndarray, size: int) -> np.ndarray:
    """A normal distribution cut at -2 and 2, as `jax.random.truncated_normal(key, -2.0, 2.0)`."""
    edge = np.nextafter(np.float32(2), np.float32(0))

    def finish(numbers: np.ndarray) -> np.ndarray:
        return np.clip(_SQRT2 * erf_inv(_between(numbers, -_ERF_SQRT2, _ERF_SQRT2)), -edge, edge)

    return _by_chunks(key, size, finish)


def bits(key: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The random bits at these positions, uint32: those of `jax.random.bits(key, (stop,))`.

    They are a function of key and position (`jax_threefry_partitionable`, JAX's default).
    """
    position = np.arange(start, stop, dtype=np.uint64)
    high, low = hash_counts(
        key, (position >> np.uint64(32)).astype(np.uint32), position.astype(np.uint32)
    )
    high ^= low
    return high


def hash_counts(
    key: np.ndarray, high: np.ndarray, low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds, of a key uint32 `[2]` and counters uint32 `[n]`; two of `[n]`.

    Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, 2011.
    """
    schedule = np.array([*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)], np.uint32)
    high, low = high + schedule[0], low + schedule[1]
    spare = np.empty_like(low)
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            high += low
            np.right_shift(low, np.uint32(32 - rotation), out=spare)
            low <<= np.uint32(rotation)
            low |= spare
            low ^= high
        high += schedule[(block + 1) % 3]
        low += schedule[(block + 2) % 3]
        low += np.uint32(block + 1)
    return high, low


def erf_inv(x: np.ndarray) -> np.ndarray:
    """The inverse of the error function for float32 in (-1, 1), as XLA computes it.

    Giles, Approximating the erfinv function, GPU Computing Gems, 2010.
    """
    w = -np.log1p(-x * x)
    result = _polynomial(_CENTRE, w - np.float32(2.5))
    tail = w >= 5  # The outer 0.34 % of the numbers.
    result[tail] = _polynomial(_TAIL, np.sqrt(w[tail]) - np.float32(3))
    result *= x
    return result


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_SQRT2 = np.float32(np.sqrt(2))
_ERF_SQRT2 = 0.9544997215270996  # erf(2 / sqrt 2), in float32
_CHUNK = 1 << 14  # As much as stays in a core's cache from one line to the next.
_CENTRE = np.array(
    (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087)
    + (-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
    np.float32,
)
_TAIL = np.array(
    (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773)
    + (-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
    np.float32,
)


def _by_chunks(
    key: np.ndarray, size: int, finish: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """What `finish` makes of uniform numbers over [0, 1), float32 `[size]`."""
    result = np.empty(size, np.float32)
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        # The upper 23 bits become the fraction of a number in [1, 2).
        one_to_two = bits(key, start, stop) >> np.uint32(9) | np.uint32(0x3F800000)
        result[start:stop] = finish(one_to_two.view(np.float32) - np.float32(1))
    return result


def _between(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    first, last = np.float32(low), np.float32(high)
    # Rounded once, as by the fused multiply-add of XLA: else small numbers lose their last digits.
    wide = numbers * np.float64(last - first) + np.float64(first)
    return np.maximum(wide.astype(np.float32), first)


def _polynomial(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    result = np.full_like(x, coefficients[0])
    for each in coefficients[1:]:
        result *= x
        result += each
    return result
