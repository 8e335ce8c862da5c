"""What each layer of a network sees of the image: its receptive field, from the network's program.

    fields = receptive_fields(net, jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"))
    fields["stage1/block2"].size, fields["stage1/block2"].stride

To every array of the program belongs, for each of its numbers, the interval of input rows (and of
columns ...) that it depends on. Each operation makes intervals of intervals, as it makes numbers of
numbers (`convjax.insight.inspection.intervals`): exactly, with strides, dilation, padding,
branches, resizing and reshaping. So it is what the network does that counts, not what its layers
are called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import jax
import numpy as np

from convjax.insight.inspection.intervals.propagate import propagate
from convjax.insight.inspection.intervals.span import EMPTY, Span
from convjax.insight.inspection.program import Program, traced
from convjax.layer import Layer, Spec

Number = int | float


@dataclass(frozen=True)
class ReceptiveField:
    """The part of the image that one place of a layer's output depends on; an entry a dimension.

    Output place i sees the input rows `offset + i * stride` up to and with
    `offset + i * stride + size - 1`; those that are not in the image are padding. It is so at all
    places but the outermost, where the image was padded by its own pixels ("REFLECT", "CIRCULAR",
    "EDGE"), and it is the smallest such form where the places of a layer differ, as those of a
    transposed convolution do, whose stride is a fraction: 0.5 where the output is twice as large as
    the image. A stride of 0 says that all places see the same. `at` is exact everywhere.

    For several outputs of one layer it is that of the first that sees the most.
    """

    size: tuple[int, ...]
    stride: tuple[Number, ...]
    offset: tuple[int, ...]
    image: tuple[int, ...]
    _seen: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)

    @property
    def sees_all(self) -> bool:
        """Whether every place sees the whole image, whichever place it is.

        Global pooling does, for instance, and all that is computed from what it makes.
        """
        return not any(self.stride) and self.size == self.image

    @property
    def places(self) -> tuple[int, ...]:
        """How many rows, columns ... of places there are."""
        return tuple(map(max, zip(*(seen.shape[:-1] for seen in self._seen))))

    def at(self, *place: int) -> tuple[tuple[int, int], ...]:
        """The first and the last row, column ... of the image that an output place depends on.

        place: row, column ... in the output; none for an output without them, such as logits.
        What lies between may not all be seen, as with a dilated window. Where nothing is seen at
        all, as between the strides of a transposed convolution, it is (0, -1).
        """
        found = []
        for seen in self._seen:
            if len(place) != seen.ndim - 1:
                raise ValueError(f"an output place has {seen.ndim - 1} numbers, got {place}")
            inside = tuple(i if n > 1 else 0 for i, n in zip(place, seen.shape[:-1]))
            low, high = seen[inside]
            found.append((int(low), int(high)))
        # A window in the padding above sees no columns, either.
        seen_at_all = all(low <= high for low, high in found)
        return tuple(found) if seen_at_all else ((0, -1),) * len(found)


def receptive_fields(net: Layer, spec: Spec) -> dict[str, ReceptiveField]:
    """The receptive field of every part of a network, by its path; in the order of their calls.

    spec: of the input, `[batch, *spatial, channels]`; of several inputs those of the same spatial
        size as the first with any are one image. There are no fields without an image.

    A part that is called several times has that of its last call. The path of the network itself,
    which comes last, is "".

    >>> from convjax import conv, max_pool, serial
    >>> net = serial(conv(8, 3), max_pool(2), conv(8, 3, dilation=2))
    >>> fields = receptive_fields(net, jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))
    >>> {path: (field.size, field.stride, field.offset) for path, field in fields.items()}
    {'conv1': ((3, 3), (1, 1), (-1, -1)),
     'max_pool1': ((4, 4), (2, 2), (-1, -1)),
     'conv2': ((12, 12), (2, 2), (-5, -5)),
     '': ((12, 12), (2, 2), (-5, -5))}
    """
    return of_program(traced(net, spec))


def of_program(program: Program) -> dict[str, ReceptiveField]:
    """The receptive fields of the parts of a program that is traced already."""
    avals = [program.jaxpr.in_avals[number] for number in program.images]
    image = next((aval.shape[1:-1] for aval in avals if len(aval.shape) > 2), ())
    if not image:
        return {}
    of_dimensions = []
    for dimension, size in enumerate(image):
        spans: list[Span | None] = [None] * len(program.jaxpr.in_avals)
        for number, aval in zip(program.images, avals):
            if aval.shape[1:-1] == image:
                spans[number] = Span.of_image(len(aval.shape), dimension + 1, size)
        of_dimensions.append(propagate(program.jaxpr, spans))
    fields = {}
    for path, part in program.parts.items():
        leaves = jax.tree.leaves(part.output)
        made = [
            _field([spans[path][number] for spans in of_dimensions], len(leaf.shape), image)
            for number, leaf in enumerate(leaves)
        ]
        found = [each for each in made if each is not None]
        if found:
            fields[path] = max(found, key=lambda each: math.prod(each.size))
    return fields


def _field(
    spans: Sequence[Span | None], rank: int, image: tuple[int, ...]
) -> ReceptiveField | None:
    """The field of an output of so many axes; None if it does not depend on the image."""
    parts = []
    for span, size in zip(spans, image):
        if span is None:
            return None
        # Batch and channels, or whatever the outer axes are, are taken together.
        outer = (1,) if rank == 1 else (1, rank)
        seen, nominal = np.split(span.bounds.min(outer[:rank]) if rank else span.bounds, 2)
        parts.append((*_affine(nominal, span.steps[1:-1], size), _ends(seen)))
    size, stride, offset, ends = zip(*parts)
    return ReceptiveField(size, stride, offset, image, ends)


def _ends(seen: np.ndarray) -> np.ndarray:
    """First and last row of what is seen at each place, `[*places, 2]`."""
    low, high = seen[0], -seen[1]
    nothing = low >= EMPTY // 2
    return np.stack([np.where(nothing, 0, low), np.where(nothing, -1, high)], -1)


def _affine(nominal: np.ndarray, steps: Sequence[Fraction], size: int) -> tuple[int, Number, int]:
    """Size, stride and offset of the intervals of all places, in one dimension of the image."""
    along = next((axis for axis, step in enumerate(steps) if step), None)
    others = tuple(axis + 1 for axis in range(nominal.ndim - 1) if axis != along)
    low, minus_high = nominal.min(others)
    some = low < EMPTY // 2
    if not some.any():  # It is padding altogether.
        return 0, 0, 0
    if along is None:
        first, last = max(int(low), 0), min(int(-minus_high), size - 1)
        return last - first + 1, 0, first
    step, count = steps[along], len(low)
    # The outermost quarters may see what was padded there from elsewhere in the image.
    inner = range(count // 4, count - count // 4)
    kept = [i for i in inner if some[i]] or [*np.flatnonzero(some)]
    begins = [int(low[i]) - int(i) * step for i in kept]
    ends = [int(-minus_high[i]) - int(i) * step for i in kept]
    first = math.floor(min(begins))
    whole = int(step) if step.denominator == 1 else float(step)
    return math.ceil(max(ends)) - first + 1, whole, first
