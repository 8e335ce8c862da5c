"""How noisy gradients are, and so how large a batch pays: the gradient noise scale.

    found = gradient_noise_scale(net, params, state, batches, group=8)
    found.scale, found.error            # in images: below it, larger batches save steps

McCandlish, Kaplan, Amodei and the OpenAI Dota team, An empirical model of large-batch training,
2018: B_simple = tr(S) / |G|^2, where G is the gradient of all data and S the covariance of the
gradients of single images. Both come from the lengths of gradients of small and of large batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.config import UserError
from convjax.insight.compiled import compiled
from convjax.insight.studies.batches import added, summed
from convjax.layer import Layer, Params, State
from convjax.training.loss import Loss, cross_entropy
from convjax.training.step import Batch, Prepare


class NoiseScale(NamedTuple):
    """Estimates, each with its standard error.

    scale: tr(S) / |G|^2, in images; NaN where |G|^2 is not told from 0.
    trace: tr(S), the variance of the gradient of one image.
    square: |G|^2, the squared length of the gradient of all data.
    small, large: the images of the two sizes of batches. groups: how many large ones there were.
    """

    scale: float
    error: float
    trace: float
    trace_error: float
    square: float
    square_error: float
    small: int
    large: int
    groups: int


def gradient_noise_scale(
    net: Layer,
    params: Params,
    state: State,
    batches: Sequence[Batch],
    *,
    group: int = 8,
    prepare: Prepare = jnp.asarray,
    loss: Loss = cross_entropy,
) -> NoiseScale:
    """The noise scale of the loss's gradient at these parameters.

    As in evaluation: batch norm is held at its running statistics, and nothing is dropped. Only so
    is the gradient of a batch the mean of its images' gradients, by which the estimates are
    unbiased.

    batches: small ones of one size, full, of images in random order, as `sampled` gives them; those
        that are not full, and that do not make up a whole group, are left out.
    group: how many of them are a large one.

    Raises:
        ValueError: for a group below 2, or where there are not two groups.
        UserError: if a gradient is not finite.
    """
    full = [each for each in batches if each.mask is None or bool(np.asarray(each.mask).all())]
    groups = len(full) // group if group > 1 else 0
    if groups < 2:
        raise ValueError(
            f"{len(full)} full batches are {groups} groups of {group}: two groups or more, of two "
            "batches or more, are needed"
        )
    small, large = np.zeros(groups), np.zeros(groups)
    for number in range(groups):
        own = full[number * group : (number + 1) * group]
        found = [_gradient(net, prepare, loss, params, state, batch) for batch in own]
        small[number] = np.mean([float(_square(each)) for each in found])
        # Of the sum: the mean of so many gradients is as many times shorter.
        large[number] = float(_square(added(found))) / group**2
    if not (np.isfinite(small).all() and np.isfinite(large).all()):
        raise UserError("a gradient is not finite: look at the run's loss")
    size = len(full[0].labels)
    return noise_scale(small, large, size, size * group)


def noise_scale(small: Any, large: Any, small_size: int, large_size: int) -> NoiseScale:
    """The noise scale, of squared lengths of gradients of small and of large batches.

    small: float `[groups]`, the mean over the small batches of each group. large: `[groups]`.
    The errors are those of the jackknife over the groups (Efron and Tibshirani 1993).

    >>> found = noise_scale([5.0, 7.0], [2.0, 3.0], 1, 4)
    >>> round(found.trace, 2), round(found.square, 2), round(found.scale, 2)
    (4.67, 1.33, 3.5)

    Raises:
        ValueError: for fewer than two groups, or sizes that are not `1 <= small < large`.
    """
    small, large = (np.asarray(each, np.float64) for each in (small, large))
    if small.shape != large.shape or small.ndim != 1 or len(small) < 2:
        raise ValueError(f"two groups or more are needed, got {small.shape} and {large.shape}")
    if not 1 <= small_size < large_size:
        raise ValueError(f"sizes are {small_size} and {large_size}: give 1 <= small < large")
    # McCandlish et al., appendix A.1.
    squares = (large_size * large - small_size * small) / (large_size - small_size)
    traces = (small - large) / (1 / small_size - 1 / large_size)
    count = len(small)
    trace, square = traces.mean(), squares.mean()
    without = [(each.sum() - each) / (count - 1) for each in (traces, squares)]
    scale, error = math.nan, math.nan
    if square > 0:
        scale = trace / square
        ratios = without[0] / np.where(without[1] > 0, without[1], np.nan)
        error = math.sqrt((count - 1) * np.mean((ratios - ratios.mean()) ** 2))
    errors = [np.std(each, ddof=1) / math.sqrt(count) for each in (traces, squares)]
    return NoiseScale(
        *(float(scale), float(error), float(trace), float(errors[0])),
        *(float(square), float(errors[1]), small_size, large_size, count),
    )


@compiled("net", "prepare", "loss")
def _gradient(
    net: Layer, prepare: Prepare, loss: Loss, params: Params, state: State, batch: Batch
) -> Params:
    """The gradient of the mean loss of a batch."""

    def mean(params: Params) -> Array:
        total, weight = summed(net, prepare, loss, params, state, batch)
        return total / weight

    return jax.grad(mean)(params)


@jax.jit
def _square(gradient: Params) -> Array:
    """The squared length of a gradient, float32."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(gradient)]
    return jnp.stack([jnp.vdot(leaf, leaf, precision="highest") for leaf in leaves]).sum()
