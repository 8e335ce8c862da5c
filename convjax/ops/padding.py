"""The one grammar of padding that convolutions and pools share.

`padding` is one of

- `"SAME"`: as many zeros as make the output `ceil(size / stride)`; the odd one goes to the end
  (TensorFlow's and JAX's rule); `"SAME_LOWER"`: the odd one goes to the front;
- `"VALID"`: none;
- `"CIRCULAR"`, `"REFLECT"`, `"EDGE"`: as many as SAME, filled from the far side, from the mirror
  image without the edge itself, or with the edge (`jnp.pad`'s wrap, reflect and edge);
- an int, one int a dimension, or one `(low, high)` pair a dimension: that many zeros.

A max pool pads with the lowest number rather than with zeros, and an average does not count what
was padded, so that padding never wins.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from convjax.ops.arguments import describe, spatial

Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]

_fills = {"CIRCULAR": "wrap", "REFLECT": "reflect", "EDGE": "edge"}
_names = ("SAME", "SAME_LOWER", "VALID", *_fills)


def padded(
    op: str,
    x: Array,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...],
) -> tuple[Array, Pairs]:
    """`x`, filled where the padding copies pixels, and the (low, high) that are still to be padded.

    Raises ValueError for an unknown name, and where the window does not fit the padded `x`.
    """
    sizes = spatial(op, x)
    if isinstance(padding, str) and padding in _fills:
        pairs = same(sizes, window, stride, dilation)
        x = jnp.pad(x, ((0, 0), *pairs, (0, 0)), mode=_fills[padding])
        return x, ((0, 0),) * len(sizes)
    if isinstance(padding, str):
        if padding not in _names:
            raise ValueError(f"{op}: unknown padding {padding!r}: take one of {', '.join(_names)}")
        lower = padding == "SAME_LOWER"
        pairs = same(sizes, window, stride, dilation, lower)
        pairs = ((0, 0),) * len(sizes) if padding == "VALID" else pairs
    else:
        pairs = explicit(op, padding, len(sizes))
    for size, extent, (low, high) in zip(sizes, extents(window, dilation), pairs, strict=True):
        if low + size + high < extent:
            raise ValueError(
                f"{op}: a window of {window} with dilation {dilation} does not fit {describe(x)} "
                f'padded by {pairs}: take a smaller window, or padding="SAME"'
            )
    return x, pairs


def same(
    sizes: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    lower: bool = False,
) -> Pairs:
    """The (low, high) of SAME, or of SAME_LOWER.

    >>> same(sizes=(8, 7), window=(3, 3), stride=(2, 2), dilation=(1, 1))
    ((0, 1), (1, 1))
    """
    rule = "SAME_LOWER" if lower else "SAME"
    pairs = lax.padtype_to_pads(sizes, extents(window, dilation), stride, rule)
    return tuple((int(low), int(high)) for low, high in pairs)


def explicit(op: str, padding: int | Sequence, rank: int) -> Pairs:
    """An int, ints or pairs as one (low, high) pair a dimension; an error where they are neither.

    >>> explicit("conv", (1, (0, 2)), rank=2)
    ((1, 1), (0, 2))
    """
    if isinstance(padding, numbers.Integral):
        entries: list = [padding] * rank
    elif isinstance(padding, Sequence):
        entries = list(padding)
    else:
        raise TypeError(f"{op}: padding must be a name, an int, ints or pairs, got {padding!r}")
    pairs = [(entry, entry) if isinstance(entry, numbers.Integral) else entry for entry in entries]
    if len(pairs) != rank or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise ValueError(
            f"{op}: padding={padding!r} does not fit {rank} spatial dimension(s): give one int, "
            f"{rank} ints or {rank} (low, high) pairs, none of them negative"
        )
    return tuple((int(low), int(high)) for low, high in pairs)


def extents(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """How many pixels a dilated window spans.

    >>> extents((3, 5), (2, 1))
    (5, 5)
    """
    return tuple((size - 1) * step + 1 for size, step in zip(window, dilation, strict=True))
