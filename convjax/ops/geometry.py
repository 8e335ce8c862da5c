"""How a window lies over an image, and the two moves that all plain algorithms are made of.

`shifted` cuts out what each tap of the window sees; `painted` is its transpose.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from convjax.ops.padding import Pairs

Tap = tuple[int, ...]


class Geometry(NamedTuple):
    """Where a window goes over an image; one entry a spatial dimension, and the groups.

    size: the image, before padding. groups: equal slices of the channels, each with kernels of
    its own.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: Pairs
    groups: int = 1

    @property
    def out(self) -> tuple[int, ...]:
        """The number of places where the window goes.

        >>> Geometry((8,), (3,), (2,), (1,), ((1, 1),)).out
        (4,)
        """
        return tuple(
            (n + low + high - (w - 1) * gap - 1) // step + 1
            for n, w, step, gap, (low, high) in zip(
                self.size, self.window, self.stride, self.dilation, self.pads, strict=True
            )
        )

    @property
    def taps(self) -> list[Tap]:
        """The places within the window, in row-major order."""
        return list(itertools.product(*map(range, self.window)))

    @property
    def offsets(self) -> list[Tap]:
        """How far each tap is from the first, in pixels."""
        return [
            tuple(place * gap for place, gap in zip(tap, self.dilation, strict=True))
            for tap in self.taps
        ]


def shifted(x: Array, geometry: Geometry, filler: ArrayLike = 0) -> list[Array]:
    """What each tap sees at all places: as many arrays `[batch, *out, channels]` as taps.

    x: `[batch, *size, channels]`; filler: what the padding is.
    """
    config = [(0, 0, 0), *((low, high, 0) for low, high in geometry.pads), (0, 0, 0)]
    x = lax.pad(x, np.asarray(filler, x.dtype), config)
    reach = [(n - 1) * step + 1 for n, step in zip(geometry.out, geometry.stride, strict=True)]
    return [
        lax.slice(
            x,
            (0, *offset, 0),
            (len(x), *map(operator.add, offset, reach), x.shape[-1]),
            (1, *geometry.stride, 1),
        )
        for offset in geometry.offsets
    ]


def painted(piece: Callable[[int, Any], Array], g: Any, geometry: Geometry) -> Array:
    """Adds up what each tap paints onto the image: `[batch, *size, channels]`.

    piece: `(number of the tap, g as that tap sees it) -> [batch, *places, channels]`.
    g: `[batch, *out, anything]`, or a tree of such arrays, padded with zeros where a tap reaches
        beyond it.

    Every pixel of one remainder by the stride is painted by the same taps; so each remainder is a
    sum of shifted arrays, and the remainders are interleaved.
    """
    rank = len(geometry.size)
    length = [-(-n // step) for n, step in zip(geometry.size, geometry.stride, strict=True)]
    numbers = {tap: number for number, tap in enumerate(geometry.taps)}
    # For each dimension and each remainder the taps that meet it, with where they begin in g.
    meet: list[list[dict[int, int]]] = []
    for window, step, gap, (low, _) in zip(
        geometry.window, geometry.stride, geometry.dilation, geometry.pads, strict=True
    ):
        begin = [
            [divmod(rest + low - place * gap, step) for place in range(window)]
            for rest in range(step)
        ]
        meet.append([{at: i for at, (i, rest) in enumerate(each) if not rest} for each in begin])
    starts: dict[Tap, dict[int, Tap]] = {}
    for phase in itertools.product(*map(range, geometry.stride)):
        of_phase = [each[rest] for each, rest in zip(meet, phase, strict=True)]
        starts[phase] = {
            numbers[tap]: tuple(each[at] for each, at in zip(of_phase, tap, strict=True))
            for tap in itertools.product(*of_phase)
        }
    every = [start for taps in starts.values() for start in taps.values()]
    pads = [
        (max(0, -min(at)), max(0, max(at) + n - have))
        for at, n, have in zip(zip(*every, strict=True), length, geometry.out, strict=True)
    ]
    config = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
    g = jax.tree.map(lambda each: lax.pad(each, np.asarray(0, each.dtype), config), g)

    def seen(start: Tap) -> Any:
        first = [at + low for at, (low, _) in zip(start, pads, strict=True)]
        last = [*map(operator.add, first, length)]
        return jax.tree.map(lambda each: each[(slice(None), *map(slice, first, last))], g)

    images: dict[Tap, Array | None] = {
        phase: total([piece(number, seen(start)) for number, start in taps.items()])
        if taps
        else None
        for phase, taps in starts.items()
    }
    shape = next(image for image in images.values() if image is not None)
    whole = {
        phase: jnp.zeros_like(shape) if image is None else image for phase, image in images.items()
    }
    return interleave(whole, geometry.stride)[(slice(None), *map(slice, geometry.size[:rank]))]


def interleave(phases: dict[Tap, Array], stride: Sequence[int]) -> Array:
    """One image of its parts: pixel `p` comes from the part `p % stride`, at `p // stride`.

    phases: for each remainder `[batch, *places, channels]`.
    """
    for axis in reversed(range(len(stride))):
        if stride[axis] == 1:
            continue
        rows: dict[Tap, list[Array]] = {}
        for phase, image in phases.items():
            rows.setdefault((*phase[:axis], 0, *phase[axis + 1 :]), []).append(image)
        phases = {
            phase: jnp.stack(images, axis + 2).reshape(
                *images[0].shape[: axis + 1],
                images[0].shape[axis + 1] * len(images),
                *images[0].shape[axis + 2 :],
            )
            for phase, images in rows.items()
        }
    return phases[(0,) * len(stride)]


def total(arrays: Sequence[Array]) -> Array:
    """Their sum, without the zero that `sum` begins with."""
    return functools.reduce(operator.add, arrays)


def divisor(n: int, most: int) -> int:
    """The largest divisor of `n` that is at most `most`; 1 if that is less than 1.

    >>> divisor(12, 5)
    4
    """
    return max(d for d in range(1, max(min(n, most), 1) + 1) if n % d == 0)


def flat(x: Array) -> Array:
    """All places as rows: `[places, channels]`."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
