"""The chapter of a convolution: its features, where they match best, and what becomes of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convjax import tree
from convjax.insight.explanation import pictures
from convjax.insight.explanation.attribution import is_maps
from convjax.insight.explanation.matches import Match, seen_from, strongest
from convjax.insight.explanation.story.findings import FEATURES, Excited, Findings
from convjax.insight.explanation.story.planned import Followed, Plan
from convjax.insight.explanation.story.words import number, signed
from convjax.insight.passes import Called

LARGEST = 96  # pixels of the side of a map


def convolution(
    plan: Plan, found: Findings, excited: Excited, followed: Followed
) -> dict[str, Any]:
    """What the page shows of a convolution, and of what follows it up to the next one."""
    conv, path = followed.conv, followed.conv.path
    maps = found.there[path]
    field = plan.fields[path]
    best = strongest(maps, FEATURES)
    leaves = tree.leaves(plan.network[1])
    kernel = leaves.get(f"{path}/kernel")
    # A feature that sees pixels is itself a picture.
    first = (
        kernel is not None
        and conv.given.shape[1:] == found.pixels.shape
        and field.size == kernel.shape[:2]
        and kernel.shape[2] in (1, 3)
    )
    columns = [{"title": "matches", "kind": "dot products"}]
    columns += [{"title": call.path, "kind": call.kind} for call in followed.after]
    stages = [maps, *(found.there[call.path] for call in followed.after)]
    rows = [
        _feature(found, excited, path, match, field, stages, kernel if first else None)
        for match in best
    ]
    if path in found.painted:
        for row, pixels in zip(rows, found.painted[path]):
            row["painted"] = pictures.png(pixels, LARGEST)
    height, width, features = maps.shape
    error = np.sqrt((found.error[path] ** 2).sum(-1))
    return {
        "path": path,
        "text": _told(found, features, height, width, field, first, len(excited.pixels)),
        "first": first,
        "columns": columns,
        "kept": [_kept(found, call) for call in followed.after],
        "rows": rows,
        "sum": _product(plan, found, conv, best[0], field, kernel) if first else None,
        "error": pictures.png(pictures.sequential(error, 0.0), LARGEST),
        "error_norm": number(found.norms.get(path, float(np.sqrt((error**2).sum())))),
    }


def _told(
    found: Findings, features: int, height: int, width: int, field: Any, first: bool, looked: int
) -> str:
    """What a convolution does here, in a few sentences."""
    patch = " x ".join(str(size) for size in field.size)
    all_of_it = all(size >= whole for size, whole in zip(field.size, found.pixels.shape))
    patch = f"patches of {patch} pixels{', as large as the image,' if all_of_it else ''}"
    one = "1 feature" if features == 1 else f"{features} features, each"
    sentences = [f"{one} compared with {patch} at {height} x {width} places."]
    if features > FEATURES:
        sentences.append(f"Shown are the {FEATURES} that match best here.")
    if first:
        sentences.append("The first column is the feature itself.")
    elif looked:
        sentences.append(
            "What a deeper feature looks for is shown by the patch that excites it most, of "
            f"{looked} images."
        )
    return " ".join(sentences)


def _feature(
    found: Findings,
    excited: Excited,
    path: str,
    match: Match,
    field: Any,
    stages: Sequence[np.ndarray],
    kernel: Any,
) -> dict[str, Any]:
    """One feature: its picture, its match maps from layer to layer, where it matches best."""
    rows, columns = seen_from(field.at(*match.place), found.pixels.shape[:2])
    pictured = None
    if kernel is not None:
        weights = np.asarray(kernel[..., match.feature])
        colour = pictures.colours_of if weights.shape[-1] == 3 else _one_channel
        pictured = pictures.png(colour(weights))
    patch = None
    if path in excited.found:
        most = excited.found[path]
        place = tuple(map(int, most.places[match.feature]))
        pixels = excited.pixels[int(most.images[match.feature])]
        patch = pictures.png(pixels[seen_from(field.at(*place), pixels.shape[:2])], LARGEST)
    maps = [_signed_map(stages[0][..., match.feature])]
    maps += [_map(stage[..., match.feature]) for stage in stages[1:]]
    return {
        "number": match.feature,
        "value": number(match.value),
        "row": match.place[0],
        "column": match.place[1],
        "filter": pictured,
        "excites": patch,
        "painted": None,
        "maps": maps,
        "top": rows.start,
        "left": columns.start,
        "tall": rows.stop - rows.start,
        "wide": columns.stop - columns.start,
    }


def _kept(found: Findings, call: Called) -> dict[str, str]:
    """What a part lets through, in words."""
    made = found.there[call.path]
    given = found.there.get(f"{call.path}/input")
    name = f"{call.path} ({call.kind})"
    if given is None:
        text = "shifts and scales each feature; it keeps all places"
    elif given.shape == made.shape:
        same = float(np.isclose(made, given, rtol=1e-3, atol=1e-6).mean())
        zero = float(((made == 0) & (given != 0)).mean())
        parts = [f"{same:.0%} of the numbers pass as they are"]
        if zero > 0:
            parts.append(f"{zero:.0%} become 0")
        if 1 - same - zero > 0.005:
            parts.append(f"{1 - same - zero:.0%} are changed")
        text = ", ".join(parts)
    else:
        before, after = given.shape, made.shape
        text = (
            f"{before[0]} x {before[1]} places become {after[0]} x {after[1]}: it keeps "
            f"{made.size / given.size:.0%} as many numbers"
        )
    return {"name": name, "text": text}


def _product(
    plan: Plan, found: Findings, conv: Called, match: Match, field: Any, kernel: Any
) -> dict[str, str] | None:
    """The best match of a first layer as what it is: patch times filter, and the sum."""
    weights = np.asarray(kernel[..., match.feature], np.float32)
    if field.size != weights.shape[:2]:
        return None  # A dilated window sees fewer pixels than its field has.
    rows, columns = (
        first + int(index * step) + np.arange(size)
        for first, index, step, size in zip(field.offset, match.place, field.stride, field.size)
    )
    height, width = found.image.shape[:2]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    patch = found.image[np.clip(rows, 0, height - 1)][:, np.clip(columns, 0, width - 1)]
    patch = np.where(inside[..., None], patch, 0)
    product = patch * weights
    bias = tree.leaves(plan.network[1]).get(f"{conv.path}/bias")
    bias = 0.0 if bias is None else float(bias[match.feature])
    total = float(product.sum())
    if abs(total + bias - match.value) > 0.02 * (np.abs(product).sum() + abs(bias)):
        return None  # Padded by pixels of its own, or with a kernel that is made of this one.
    return {
        "patch": _signed_map(patch.mean(-1)),
        "filter": _signed_map(weights.mean(-1)),
        "product": _signed_map(product.sum(-1)),
        "total": number(total),
        "bias": signed(bias),
        "value": number(total + bias),
        "number": str(match.feature),
    }


def _map(numbers: np.ndarray) -> str:
    if not is_maps(numbers[None, ..., None]):
        return pictures.png(pictures.sequential(numbers.reshape(1, 1), 0.0))
    return pictures.png(pictures.sequential(numbers), LARGEST)


def _signed_map(numbers: np.ndarray) -> str:
    return pictures.png(pictures.diverging(numbers), LARGEST)


def _one_channel(weights: np.ndarray) -> np.ndarray:
    return pictures.diverging(weights[..., 0])
