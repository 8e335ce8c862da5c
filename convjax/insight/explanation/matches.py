"""The features of a convolution: where in an image each matches best, and what excites it most.

    places = strongest(maps, 8)                          # of one image's maps, [h, w, features]
    rows, columns = seen_from(fields["conv2"].at(*places[0].place), (28, 28))
    found = most_exciting(net, params, state, batches, ["conv2"])    # over many images

A map of matches is what a convolution puts out: the inner product of a feature with every patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.insight.compiled import SHORT, compiled
from convjax.layer import Context, Layer, Params, State
from convjax.surgery import capture


class Match(NamedTuple):
    """A feature where it matches best: its number, the place in its map, and the value there."""

    feature: int
    place: tuple[int, ...]
    value: float


class Exciting(NamedTuple):
    """Of each feature of a layer, what excited it most of many images.

    values: float32 `[features]`. images: int `[features]`, counted from the first. places: int
    `[features, spatial axes]`, in the maps.
    """

    values: np.ndarray
    images: np.ndarray
    places: np.ndarray


def strongest(maps: Any, count: int) -> list[Match]:
    """The features with the greatest values of all, each at its best place, the greatest first.

    maps: of one image, `[*spatial, features]`.

    >>> strongest(np.array([[[0, 5], [3, 1]]]), 2)              # one row, two columns, two features
    [Match(feature=1, place=(0, 0), value=5.0), Match(feature=0, place=(0, 1), value=3.0)]
    """
    maps = np.asarray(maps, np.float32)
    sizes, flat = maps.shape[:-1], maps.reshape(-1, maps.shape[-1])
    best = flat.max(0)
    return [
        Match(int(feature), _place(int(flat[:, feature].argmax()), sizes), float(best[feature]))
        for feature in np.argsort(-best, kind="stable")[:count]
    ]


def seen_from(spans: Sequence[tuple[int, int]], sizes: Sequence[int]) -> tuple[slice, ...]:
    """What of an image lies in these spans of rows, columns, ...; what is padding is left out.

    spans: the first and the last of each, as `ReceptiveField.at` has them.
    sizes: of the image.

    >>> seen_from([(-1, 1), (3, 6)], (5, 6))
    (slice(0, 2, None), slice(3, 6, None))
    """
    parts = []
    for (first, last), size in zip(spans, sizes):
        # Of what sees only padding, the nearest pixel stands for it.
        start = min(max(first, 0), size - 1)
        parts.append(slice(start, max(min(last + 1, size), start + 1)))
    return tuple(parts)


def most_exciting(
    net: Layer, params: Params, state: State, batches: Iterable[Array], paths: Sequence[str]
) -> dict[str, Exciting]:
    """What excites each feature of these layers most, of all images.

    batches: images as the network sees them; batches of one size are one program.
    paths: parts that put out maps, `[batch, *spatial, features]`, and are called once.

    Raises:
        ValueError: if there are no images.
    """
    best: dict[str, Exciting] = {}
    first = 0
    for images in batches:
        peaks = _peaks(net, params, state, images, paths=tuple(paths))
        for path, (values, numbers, flat, sizes) in peaks.items():
            values, numbers = np.asarray(values), np.asarray(numbers) + first
            places = np.stack(np.unravel_index(np.asarray(flat), np.asarray(sizes)), -1)
            old = best.get(path)
            if old is not None:
                more = values > old.values
                values = np.where(more, values, old.values)
                numbers = np.where(more, numbers, old.images)
                places = np.where(more[:, None], places, old.places)
            best[path] = Exciting(values, numbers, places)
        first += len(images)
    if not best:
        raise ValueError("most_exciting was given no images: give one batch or more")
    return best


@compiled("net", "paths", runs=SHORT)
def _peaks(
    net: Layer, params: Params, state: State, images: Array, *, paths: tuple[str, ...]
) -> dict[str, tuple[Array, Array, Array, Array]]:
    """The greatest value of each feature, its image, its place in the flat map, the map's sizes."""
    (_, seen), _ = capture(net, paths).apply(params, state, images, Context())
    peaks = {}
    for path in paths:
        batch, *sizes, features = seen[path].shape
        flat = seen[path].astype(jnp.float32).reshape(batch, -1, features)
        of_images, places = flat.max(1), flat.argmax(1)
        numbers = of_images.argmax(0)
        chosen = jnp.take_along_axis(places, numbers[None], 0)[0]
        peaks[path] = (of_images.max(0), numbers, chosen, jnp.array(sizes, jnp.int32))
    return peaks


def _place(flat: int, sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(flat, sizes))
