"""What a score loses where a part of the image is hidden: maps that need no gradient.

drop = occlusion(net, params, state, images, classes, window=7, stride=2)   # [batch, h, w]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.insight.compiled import SHORT, compiled
from convjax.insight.explanation.attribution import at_once, scores
from convjax.layer import Layer, Params, State
from convjax.ops.arguments import each_dimension

Size = int | Sequence[int]


def occlusion(
    net: Layer,
    params: Params,
    state: State,
    images: Array,
    classes: Array,
    *,
    window: Size | None = None,
    stride: Size | None = None,
    baseline: float | Array = 0.0,
) -> Array:
    """By how much the score falls where the image is hidden, float32 `[batch, *spatial]`.

    Of classes `[several, batch]` it has as many maps of each image, `[several, batch, *spatial]`.

    The window that hides it slides in steps of the stride and to the very edges. A pixel is
    given the mean over all windows that cover it.

    window: its size, by default a quarter of the image, rounded up.
    stride: by default a third of the window, at least 1.
    baseline: what the window is filled with; 0 is the mean colour of normalised images.

    Zeiler and Fergus, Visualizing and understanding convolutional networks, 2014 (arXiv 1311.2901),
    who show the score itself.

    Raises:
        ValueError: for a window that is larger than the image, and for a stride that is larger than
            the window, which would leave pixels out.
    """
    sizes = images.shape[1:-1]
    rank = len(sizes)
    windows = tuple(-(-size // 4) for size in sizes)
    if window is not None:
        windows = each_dimension("occlusion", "window", window, rank)
    steps = tuple(max(1, size // 3) for size in windows)
    if stride is not None:
        steps = each_dimension("occlusion", "stride", stride, rank)
    if any(wide > size for wide, size in zip(windows, sizes)):
        raise ValueError(
            f"occlusion: a window of {windows} does not fit an image of {sizes}: give a smaller one"
        )
    if any(step > wide for step, wide in zip(steps, windows)):
        raise ValueError(
            f"occlusion: a stride of {steps} leaves out pixels between windows of {windows}: give "
            "a stride no larger than the window"
        )
    baseline = jnp.asarray(baseline, images.dtype)
    hidden = _hidden(sizes, windows, steps)
    return _drops(net, params, state, images, classes, hidden, baseline)


@compiled("net", runs=SHORT)
def _drops(
    net: Layer,
    params: Params,
    state: State,
    images: Array,
    classes: Array,
    hidden: Any,
    baseline: Array,
) -> Array:
    """The mean drop over the windows that cover each pixel; hidden: bool `[windows, *spatial]`."""
    batch, *shape = images.shape
    some = at_once(images.shape)
    # Windows that hide nothing come first, to give the whole score, and fill up the last step:
    # their drop is 0, and they cover no pixel.
    short = -(len(hidden) + 1) % some
    hidden = jnp.pad(hidden, ((1, short), *[(0, 0)] * (len(shape) - 1)))
    in_steps = hidden.reshape(-1, some, *shape[:-1])
    labels = jnp.tile(classes, some)

    def of_some(hidden: Array) -> Array:
        seen = jnp.where(hidden[:, None, ..., None], baseline, images[None])
        seen = seen.reshape(some * batch, *shape)
        found = scores(net, params, state, seen, labels).reshape(-1, some, batch)
        return found.swapaxes(0, 1).reshape(some, -1)  # a column for each class of each image

    left = lax.map(of_some, in_steps).reshape(len(hidden), -1)
    covered = hidden.reshape(len(hidden), -1).astype(jnp.float32)
    total = jnp.matmul((left[:1] - left).T, covered, precision="highest")
    return (total / covered.sum(0)[None]).reshape(*classes.shape, *shape[:-1])


def _hidden(sizes: Sequence[int], windows: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    """Which pixels each window hides, bool `[windows, *sizes]`."""
    axes = []
    for size, wide, step in zip(sizes, windows, steps):
        starts = np.unique(np.append(np.arange(0, size - wide + 1, step), size - wide))
        pixels = np.arange(size)
        axes.append((pixels >= starts[:, None]) & (pixels < starts[:, None] + wide))
    hidden = np.ones((1,), bool)
    for axis in axes:  # Each window is the product of one part of every axis.
        hidden = hidden[:, None, ..., None] & axis.reshape(
            1, len(axis), *[1] * (hidden.ndim - 1), -1
        )
        hidden = hidden.reshape(-1, *hidden.shape[2:])
    return hidden
