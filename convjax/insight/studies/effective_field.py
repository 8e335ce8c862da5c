"""How much of its receptive field a layer uses: the gradient of its centre by the image.

    found = effective_fields(net, params, state, images, ["conv3"])["conv3"]
    found.map                           # [height, width]: how much each pixel moves the centre
    found.deviation, found.share        # its extent in pixels; how much of the field that could be

Luo, Li, Urtasun and Zemel, Understanding the effective receptive field in deep convolutional
neural networks, 2016: it is a Gaussian whose width grows like the square root of the depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.config import UserError
from convjax.insight.compiled import compiled
from convjax.insight.inspection.receptive import receptive_fields
from convjax.insight.passes import called
from convjax.layer import Context, Layer, Params, Spec, State, spec_of
from convjax.surgery import capture

# What lies within two deviations of a Gaussian's middle; Luo et al., section 4.
EDGE = 1 - 0.9545


class EffectiveField(NamedTuple):
    """What the middle place of a layer's output goes by in the image, over many images.

    map: float64 `[*spatial]`, the mean over the images of the absolute gradient, summed over the
        channels of the image, of the sum over the channels of that place.
    place: the place in the layer's output.
    centre: float `[dimensions]`, the middle of the map's mass, in pixels.
    deviation: float `[dimensions]`, its standard deviation about that, in pixels.
    size: int `[dimensions]`, the receptive field in theory, as far as it lies in the image.
    share: of the pixels of that, those with a gradient of more than 4.55 % of the largest.
    """

    map: np.ndarray
    place: tuple[int, ...]
    centre: np.ndarray
    deviation: np.ndarray
    size: np.ndarray
    share: float


def effective_fields(
    net: Layer,
    params: Params,
    state: State,
    images: Any,
    paths: Iterable[str],
    *,
    size: int = 50,
) -> dict[str, EffectiveField]:
    """The effective receptive fields of these layers, by path.

    images: as the network sees them, `[count, *spatial, channels]`; those of a data set for a
        trained network, or `random_images`. They are taken `size` at once.
    paths: of parts that `spatial` lists.

    Raises:
        ValueError: for another path.
        UserError: if the gradients are not finite.
    """
    paths = tuple(paths)
    images = jnp.asarray(images)
    places = _places(net, spec_of(images[:1]), paths)
    if not len(images):
        raise ValueError("an effective receptive field needs an image or more")
    size = min(size, len(images))
    totals = {path: np.zeros(images.shape[1:-1]) for path in paths}
    for first in range(0, len(images), size):
        few = images[first : first + size]
        counts = jnp.arange(size) < len(few)
        few = jnp.pad(few, ((0, size - len(few)), *((0, 0),) * (few.ndim - 1)))
        for path, each in _maps(net, tuple(places.items()), params, state, few, counts).items():
            totals[path] += np.asarray(each, np.float64)
    fields = receptive_fields(net, spec_of(images[:1]))
    found = {}
    for path, total in totals.items():
        if not np.isfinite(total).all():
            raise UserError(f"the gradients that reach the image from {path} are not finite")
        ends = fields[path].at(*places[path]) if path in fields else ()
        found[path] = _measured(total / len(images), places[path], ends)
    return found


def spatial(net: Layer, spec: Spec) -> list[str]:
    """The parts whose effective field can be told: called once, with places in their output."""
    return [
        call.path
        for call in called(net, spec)
        if len(call.made.shape) > 2 and math.prod(call.made.shape[1:-1]) > 1
    ]


def random_images(count: int, shape: Sequence[int], *, seed: int = 0) -> Array:
    """Images of standard normal noise, float32 `[count, *shape]`, as Luo et al. have them."""
    return jax.random.normal(jax.random.key(seed), (count, *shape), jnp.float32)


def _places(net: Layer, spec: Spec, paths: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The middle place of each layer."""
    made = {call.path: call.made for call in called(net, spec)}
    known = spatial(net, spec)
    if unknown := [path for path in paths if path not in known]:
        raise ValueError(
            f"{', '.join(unknown)}: no part that is called once and has places in its output; "
            f"these are {', '.join(known) or 'none'}"
        )
    return {path: tuple(size // 2 for size in made[path].shape[1:-1]) for path in paths}


@compiled("net", "places")
def _maps(
    net: Layer,
    places: tuple[tuple[str, tuple[int, ...]], ...],
    params: Params,
    state: State,
    images: Array,
    counts: Array,
) -> dict[str, Array]:
    """The absolute gradients of the layers' places, summed over images that count and channels."""
    paths = [path for path, _ in places]

    def scores(images: Array) -> dict[str, Array]:
        (_, seen), _ = capture(net, paths).apply(params, state, images, Context())
        # In evaluation images are independent of each other: one sum, one backward pass.
        return {path: seen[path][:, *place].astype(jnp.float32).sum() for path, place in places}

    made, pull = jax.vjp(scores, images)
    found = {}
    for path in paths:
        (gradient,) = pull({each: jnp.float32(each == path) for each in made})
        amount = jnp.abs(gradient.astype(jnp.float32)).sum(-1)
        counting = counts.reshape(-1, *(1,) * (amount.ndim - 1))
        found[path] = jnp.where(counting, amount, 0).sum(0)
    return found


def _measured(
    field: np.ndarray, place: tuple[int, ...], ends: Sequence[tuple[int, int]]
) -> EffectiveField:
    """The extent of a map, in the part of the image `ends` that could be seen at all."""
    dimensions, mass = range(field.ndim), field.sum()
    centre, deviation = np.full((2, field.ndim), np.nan)
    for axis in dimensions if mass else ():
        along = field.sum(tuple(other for other in dimensions if other != axis)) / mass
        pixels = np.arange(len(along))
        centre[axis] = (along * pixels).sum()
        deviation[axis] = math.sqrt((along * (pixels - centre[axis]) ** 2).sum())
    ends = ends or [(0, size - 1) for size in field.shape]
    size = np.array(
        [
            max(0, min(last, pixels - 1) - max(first, 0) + 1)
            for (first, last), pixels in zip(ends, field.shape)
        ]
    )
    seen = int((field > EDGE * field.max()).sum())
    return EffectiveField(field, place, centre, deviation, size, seen / max(int(size.prod()), 1))
