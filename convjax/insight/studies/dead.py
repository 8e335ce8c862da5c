"""Which ReLUs are dead: never above 0, whatever of a whole split the network sees.

    for layer in census(net, params, state, batches):
        print(layer.path, layer.dead_channels, layer.share_of_units)

A unit is a channel at a place; a dead channel is dead at every place. No gradient reaches what lies
before it (Lu, Shin, Su and Karniadakis, Dying ReLU and initialization, 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.config import UserError
from convjax.insight import relus
from convjax.insight.compiled import compiled
from convjax.layer import Context, Layer, Params, State, plan, spec_of
from convjax.surgery import capture
from convjax.training.step import Batch, Prepare

# What they give is above 0 just where what they are given is, but for leaky ones, that cannot die.
ACTIVATIONS = ("relu", "relu6", "gelu", "gelu_tanh", "silu", "mish", "hard_swish")


class Census(NamedTuple):
    """Of one activation, or of one call of it, over all images.

    path: of the layer; with `[0]`, ... for the copies in a `stack`, and the calls in a `loop`.
    kind: of the layer, or "relu in KIND" for a ReLU that a layer, such as a block, calls itself.
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
    """The dead units of every activation of a network, in the order of the calls.

    ReLUs count wherever they are called (`convjax.insight.relus`): those that a wire calls itself,
    as in `relu(net.conv1(x))`, have the path of the wire's layer and stand after its parts. Other
    activations count where they are parts. ReLUs in branches of `lax.cond` do not count.

    batches: of all images, once; the network sees them as in evaluation.
    kinds: that count; ReLUs of a wire do if "relu" does.
    threshold: a unit is alive if it is once above this.

    Raises:
        UserError: if the network has no such activation, or there are no images.
    """
    found: _Seen | None = None
    images, parts, wires, kind_of = 0, (), (), {}
    for batch in batches:
        if found is None:
            kind_of = _activations(net, prepare, batch, kinds)
            parts = tuple(path for path, kind in kind_of.items() if kind in kinds)
            wires = tuple(path for path in kind_of if path not in parts)
        new = _seen(net, prepare, parts, wires, threshold, params, state, batch)
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
    if not found.highest:
        raise UserError(
            "the network calls its ReLUs in branches of lax.cond only, where none can be counted: "
            "take jnp.where, or a layer for each branch"
        )
    above, paths = found.above, list(kind_of)
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
    """The kinds of the activations that count, by path, in the order of the calls."""
    spec = spec_of(jax.eval_shape(prepare, batch.images))
    makers = plan(net, spec).makers
    found = {path: made.layer.kind for path, made in makers.items() if made.layer.kind in kinds}
    found.pop("", None)
    if "relu" in kinds:
        for path, kind in relus.called(net, spec):
            if path not in found:
                found[path] = f"relu in {kind or 'the network'}"
    if not found:
        there = sorted({made.layer.kind for made in makers.values()})
        raise UserError(
            f"the network has no activation of the kinds {', '.join(kinds)} among its parts, "
            f"which are of the kinds {', '.join(there)}"
        )
    last = {
        path: max(number for number, each in enumerate(makers) if _is_in(each, path))
        for path in found
    }
    return {path: found[path] for path in sorted(found, key=lambda path: last[path])}


def _is_in(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}/")


@compiled("net", "prepare", "parts", "wires", "threshold")
def _seen(
    net: Layer,
    prepare: Prepare,
    parts: tuple[str, ...],
    wires: tuple[str, ...],
    threshold: float,
    params: Params,
    state: State,
    batch: Batch,
) -> _Seen:
    """Of one batch, by path; a layer that is called several times has several."""
    images = prepare(batch.images)
    highest: dict[str, Array] = {}
    above: dict[str, Array] = {}
    for path, output in _outputs(net, parts, wires, params, state, images):
        output = output.astype(jnp.float32)
        if batch.mask is not None:
            mask = batch.mask.reshape(-1, *(1,) * (output.ndim - 1))
            output = jnp.where(mask, output, -jnp.inf)
        highest[path] = output.max(0)
        above[path] = (output > threshold).sum(dtype=jnp.int32)
    return _Seen(highest, above)


def _outputs(
    net: Layer,
    parts: tuple[str, ...],
    wires: tuple[str, ...],
    params: Params,
    state: State,
    images: Array,
) -> list[tuple[str, Array]]:
    """What each call of the activations gave, `[batch, ...]`, by the path of that call."""
    place_of = relus.places(net, images)
    seeing = capture(net, parts) if parts else net

    def path_of(scopes: str) -> str | None:
        place = place_of(scopes)
        return None if place is None else place.path

    def kept(scopes: str, relu: Callable[[Array], Array], x: Array) -> tuple[Array, Array | None]:
        y = relu(x)
        return y, y if path_of(scopes) in wires else None

    def run(images: Array) -> Any:
        return seeing.apply(params, state, images, Context())[0]

    if not wires:
        found, noted = run(images), []
    else:
        found, noted = relus.with_relus(run, kept)(images)
    seen = found[1] if parts else {}
    scans = {path: len(maker.counts) for path, maker in plan(net, spec_of(images)).makers.items()}
    made = [each for path in parts for each in _calls(path, seen[path], scans[path])]
    for path in wires:
        calls = [each for each in noted if path_of(each.scopes) == path]
        for number, each in enumerate(calls):
            name = f"{path}[{number}]" if len(calls) > 1 else path
            made += _calls(name, each.value, each.scans)
    return made


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
