"""The loss around a trained network: along a line through its parameters, or over a plane.

    one, other = directions(net, params, seed=0)
    plane = landscape(net, params, state, batches, (one, other), steps=21)
    plane.loss[10, 10]                                  # in the middle: the loss itself

Li, Xu, Taylor, Studer and Goldstein, Visualizing the loss landscape of neural nets, 2018: each
filter of a random direction is as long as the filter that it moves, so that landscapes of networks
with other scales can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax import tree
from convjax.insight.compiled import compiled
from convjax.insight.studies.batches import added
from convjax.layer import Context, Layer, Params, Spec, State, fold, plan
from convjax.training.loss import Loss, cross_entropy
from convjax.training.step import Batch, Prepare


class Landscape(NamedTuple):
    """The mean loss at the parameters plus a share of each direction.

    shares: float `[steps]`, from -radius to radius, along each direction.
    loss: float, `[steps]` of a line and `[steps, steps]` of a plane, the first direction first.
    centre: the loss at the parameters themselves.
    """

    shares: np.ndarray
    loss: np.ndarray
    centre: float


def directions(net: Layer, params: Params, spec: Spec, *, seed: int = 0, count: int = 2):
    """So many random directions, pytrees like the parameters, normalised filter by filter.

    A filter is all that makes one output channel: the last axis of a kernel counts them, and each
    copy in a `stack` has its own. Biases, scales and whatever else has one axis stay where they
    are, as in the paper.

    spec: of a batch of images as the network sees them.

    >>> from convjax import dense
    >>> net, spec = dense(2), jax.ShapeDtypeStruct((1, 3), "float32")
    >>> params, _ = net.init(jax.random.key(0), spec)
    >>> (one,) = directions(net, params, spec, count=1)
    >>> lengths = [jnp.linalg.norm(each["kernel"], axis=0) for each in (one, params)]
    >>> bool(jnp.allclose(*lengths)), float(jnp.abs(one["bias"]).max())
    (True, 0.0)

    Raises:
        ValueError: for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}: give 1 or more directions")
    copies = {path: len(maker.counts) for path, maker in plan(net, spec).makers.items()}
    leaves = tree.leaves(params)
    found = []
    for number in range(count):
        key = jax.random.fold_in(jax.random.key(seed), number)
        drawn = [
            _filters_like(leaf, _outer(path, copies), fold(key, path))
            for path, leaf in leaves.items()
        ]
        found.append(jax.tree.unflatten(jax.tree.structure(params), drawn))
    return tuple(found)


def landscape(
    net: Layer,
    params: Params,
    state: State,
    batches: Sequence[Batch],
    along: Sequence[Params],
    *,
    prepare: Prepare = jnp.asarray,
    loss: Loss = cross_entropy,
    radius: float = 1.0,
    steps: int = 21,
    at_once: int = 1,
) -> Landscape:
    """The mean loss over all batches on a line or a plane around the parameters, in evaluation.

    Batch norm keeps the statistics that it has. All points of a batch are one compiled program.

    along: one direction, or two.
    radius: the largest share of them. steps: how many points along each; odd, so that the middle
    one is the network itself.
    at_once: how many networks are evaluated side by side; more pay on an accelerator.

    Raises:
        ValueError: for other directions than one or two, or steps that are even or below 3.
    """
    if len(along) not in (1, 2):
        raise ValueError(f"a landscape has one direction or two, not {len(along)}")
    if steps < 3 or steps % 2 == 0:
        raise ValueError(f"steps is {steps}: give an odd number from 3 on")
    if not radius > 0:
        raise ValueError(f"radius is {radius}: give a number above 0")
    shares = np.linspace(-radius, radius, steps)
    shares[steps // 2] = 0.0
    points = np.stack(np.meshgrid(*[shares] * len(along), indexing="ij"), -1)
    points = jnp.asarray(points.reshape(-1, len(along)), jnp.float32)
    parts = [
        _losses(net, prepare, loss, at_once, params, state, tuple(along), points, batch)
        for batch in batches
    ]
    totals, weight = added(parts)
    # In double precision: the loss of many batches is told to more digits than the sum has.
    found = (np.asarray(totals, np.float64) / float(weight)).reshape((steps,) * len(along))
    return Landscape(shares, found, float(found[(steps // 2,) * len(along)]))


@compiled("net", "prepare", "loss", "at_once")
def _losses(
    net: Layer,
    prepare: Prepare,
    loss: Loss,
    at_once: int,
    params: Params,
    state: State,
    along: tuple[Params, ...],
    points: Array,
    batch: Batch,
) -> tuple[Array, Array]:
    """The summed losses of a batch at points `[points, directions]`, and its weight."""
    images = prepare(batch.images)

    def at(point: Array) -> tuple[Array, Array]:
        def moved(leaf: Array, *ways: Array) -> Array:
            steps = (share.astype(way.dtype) * way for share, way in zip(point, ways))
            return leaf + sum(steps, jnp.zeros((), leaf.dtype))

        logits, _ = net.apply(jax.tree.map(moved, params, *along), state, images, Context())
        total, weight = loss(logits, batch.labels, batch.mask, 0.0)
        return total, weight.astype(jnp.float32)

    totals, weights = lax.map(at, points, batch_size=at_once if at_once > 1 else None)
    return totals, weights[0]


def _filters_like(leaf: Array, outer: int, key: Array) -> Array:
    """Random numbers like a leaf, each filter as long as the leaf's own.

    outer: how many axes are those of copies.
    """
    if leaf.ndim - outer < 2:
        return jnp.zeros_like(leaf)
    drawn = jax.random.normal(key, leaf.shape, jnp.float32)
    axes = tuple(range(outer, leaf.ndim - 1))
    own, theirs = (
        jnp.sqrt(jnp.square(each.astype(jnp.float32)).sum(axes, keepdims=True))
        for each in (leaf, drawn)
    )
    return (drawn * (own / theirs)).astype(leaf.dtype)


def _outer(path: str, copies: dict[str, int]) -> int:
    """The axes of copies that a leaf has, by the layer that it belongs to."""
    layers = [
        layer for layer in copies if path == layer or path.startswith(f"{layer}/") or not layer
    ]
    return copies[max(layers, key=len)] if layers else 0
