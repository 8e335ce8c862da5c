"""Which ReLUs are dead: never above 0, whatever of a whole split the network sees.

    for layer in census(net, params, state, batches):
        print(layer.path, layer.dead_channels, layer.share_of_units)

A unit is a channel at a place; a dead channel is dead at every place. No gradient reaches what lies
before it (Lu, Shin, Su and Karniadakis, Dying ReLU and initialization, 2020).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.config import UserError
from convjax.insight.compiled import compiled
from convjax.layer import Context, Layer, Params, State, plan, spec_of
from convjax.surgery import capture
from convjax.training.step import Batch, Prepare

# What they give is above 0 just where what they are given is, but for leaky ones, that cannot die.
ACTIVATIONS = ("relu", "relu6", "gelu", "gelu_tanh", "silu", "mish", "hard_swish")


class Census(NamedTuple):
    """Of one activation, or of one call of it, over all images.

    path: of the layer; with `[0]`, ... for the copies in a `stack`, and the calls in a `loop`.
    highest: float32 `[*places, channels]`, the largest output of each unit.
    dead_channels: int, the channels that are dead at every place.
    units, dead_units: how many there are.
    active: the share of the outputs, of all units and images, that are above the threshold.
    images: how many were looked at.
    """

    path: str
    kind: str
    highest: np.ndarray
    dead_channels: np.ndarray
    units: int
    dead_units: int
    active: float
    images: int

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.highest.shape[-1]


class _Seen(NamedTuple):
    """Of the images so far, by layer: the largest outputs, and how many were above."""

    highest: dict[str, Array]
    above: Mapping[str, Any]


def census(
    net: Layer,
    params: Params,
    state: State,
    batches: Iterable[Batch],
    *,
    prepare: Prepare = jnp.asarray,
    kinds: Collection[str] = ACTIVATIONS,
    threshold: float = 0.0,
) -> list[Census]:
    """The dead units of every activation that is a part of the network, in the order of the calls.

    An activation that a wire calls by itself, as in `relu(net.conv1(x))`, is no part, and is not
    seen: make it one, `compose(wire, relu=relu, ...)`.

    batches: of all images, once; the network sees them as in evaluation.
    kinds: of the parts that count.
    threshold: a unit is alive if it is once above this.

    Raises:
        UserError: if the network has no such part, or there are no images.
    """
    found: _Seen | None = None
    images, paths, kind_of = 0, (), {}
    for batch in batches:
        if found is None:
            kind_of = _activations(net, prepare, batch, kinds)
            paths = tuple(kind_of)
        new = _seen(net, prepare, paths, threshold, params, state, batch)
        images += int(np.asarray(batch.mask).sum()) if batch.mask is not None else len(batch.labels)
        if found is None:
            found = _Seen(new.highest, {path: _wide(each) for path, each in new.above.items()})
        else:
            found = _Seen(
                {
                    path: jnp.maximum(each, new.highest[path])
                    for path, each in found.highest.items()
                },
                {path: each + _wide(new.above[path]) for path, each in found.above.items()},
            )
    if found is None:
        raise UserError("there are no images to look for dead units by")
    above = found.above
    return [
        _census(path, kind_of[path.partition("[")[0]], highest, above[path], images, threshold)
        for path, highest in sorted(found.highest.items(), key=lambda each: _order(each[0], paths))
    ]


def _census(
    path: str, kind: str, highest: Array, above: Any, images: int, threshold: float
) -> Census:
    there = np.asarray(highest, np.float32)
    # A unit that is not a number is broken, but not dead.
    dead = there <= threshold
    channels = np.flatnonzero(dead.all(tuple(range(there.ndim - 1))))
    active = float(above) / max(there.size * images, 1)
    return Census(path, kind, there, channels, there.size, int(dead.sum()), active, images)


def _activations(
    net: Layer, prepare: Prepare, batch: Batch, kinds: Collection[str]
) -> dict[str, str]:
    """The kinds of the parts that count, by path."""
    spec = spec_of(jax.eval_shape(prepare, batch.images))
    makers = plan(net, spec).makers.items()
    found = {path: made.layer.kind for path, made in makers if made.layer.kind in kinds and path}
    if not found:
        there = sorted({made.layer.kind for _, made in makers})
        raise UserError(
            f"the network has no activation of the kinds {', '.join(kinds)} among its parts, "
            f"which are of the kinds {', '.join(there)}"
        )
    return found


@compiled("net", "prepare", "paths", "threshold")
def _seen(
    net: Layer,
    prepare: Prepare,
    paths: tuple[str, ...],
    threshold: float,
    params: Params,
    state: State,
    batch: Batch,
) -> _Seen:
    """Of one batch, by path; a layer that is called several times has several."""
    images = prepare(batch.images)
    counts = {path: len(maker.counts) for path, maker in plan(net, spec_of(images)).makers.items()}
    (_, outputs), _ = capture(net, paths).apply(params, state, images, Context())
    highest: dict[str, Array] = {}
    above: dict[str, Array] = {}
    for path in paths:
        for name, output in _calls(path, outputs[path], counts[path]):
            output = output.astype(jnp.float32)
            if batch.mask is not None:
                mask = batch.mask.reshape(-1, *(1,) * (output.ndim - 1))
                output = jnp.where(mask, output, -jnp.inf)
            highest[name] = output.max(0)
            above[name] = (output > threshold).sum(dtype=jnp.int32)
    return _Seen(highest, above)


def _calls(path: str, output: Any, outer: int) -> list[tuple[str, Array]]:
    """What each call of a part gave, with its own name where there are several."""
    if isinstance(output, tuple):
        return [
            pair
            for number, each in enumerate(output)
            for pair in _calls(f"{path}[{number}]", each, outer)
        ]
    if outer:
        return [
            pair
            for number in range(output.shape[0])
            for pair in _calls(f"{path}[{number}]", output[number], outer - 1)
        ]
    return [(path, output)]


def _order(name: str, paths: Sequence[str]) -> list[int]:
    """The place of a call among all: dictionaries come out of a program in the alphabet's order."""
    path, *calls = name.split("[")
    return [paths.index(path), *(int(each.rstrip("]")) for each in calls)]


def _wide(count: Array) -> np.ndarray:
    """A count as one that many batches do not overflow."""
    return np.asarray(count, np.int64)
