"""What a trained network does with images, as a page shows it: mistakes, features, and maps.

    model = trained("runs/mine")
    seen = seen_by(model)           # {"confusion": ..., "mistakes": ..., "features": ..., ...}

Pictures are PNG files as data URIs; all else is what JSON can hold.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convjax import tree
from convjax.assemble import spec_of
from convjax.data.examples import Chosen
from convjax.insight.evaluation.mistakes import most_confident
from convjax.insight.evaluation.predictions import Predictor, finite
from convjax.insight.evaluation.scores import by_class, confusion, most_confused
from convjax.insight.explanation import pictures
from convjax.insight.features import MOST_FEATURES, first_kernel
from convjax.insight.inspection import cost
from convjax.insight.inspection.program import traced
from convjax.insight.passes import Called, called
from convjax.layer import Context
from convjax.surgery import capture
from convjax.trained import Trained, images_of
from convjax.training.feed import Images, Split

IMAGES = 10_000  # of a split that are looked at
CLASSES = 100  # whose confusion is drawn as a matrix
_MISTAKES, _PAIRS, _MAPS, _STAGES, _SIDE = 24, 12, 12, 6, 96


def seen_by(model: Trained) -> dict[str, Any]:
    """All that the page shows of a trained network on the split that it was tested on.

    Raises:
        UserError: if the split has no images, or logits are not finite.
    """
    split = model.split()
    few = chosen(split, IMAGES)
    found = finite(Predictor(model).predict(few), model.config.data.test)
    labels, predicted = found.labels, found.logits.argmax(1)
    matrix = confusion(labels, predicted, len(model.classes))
    mistakes = most_confident(found.logits, labels, _MISTAKES)
    of_mistakes = images_of(few, [mistake.number for mistake in mistakes])
    # An image that it knows: of the median class, whichever is there first.
    hits = np.flatnonzero(labels == predicted)
    example = int(hits[0]) if len(hits) else 0
    image = images_of(few, [example])
    return {
        "which": model.which,
        "split": model.config.data.test,
        "images": int(few.size),
        "of": int(split.size),
        "correct": int((labels == predicted).sum()),
        "classes": list(model.classes),
        "confusion": matrix.tolist() if len(matrix) <= CLASSES else None,
        "recall": [round(float(each), 4) for each in by_class(matrix).recall],
        "confused": [list(pair) for pair in most_confused(matrix, _PAIRS)],
        "mistakes": [
            {
                "picture": pictures.png(picture, _SIDE),
                "label": model.classes[mistake.label],
                "predicted": model.classes[mistake.predicted],
                "confidence": mistake.confidence,
                "number": mistake.number,
            }
            for picture, mistake in zip(of_mistakes, mistakes)
        ],
        "features": features(model),
        "example": {
            "picture": pictures.png(image[0], _SIDE),
            "label": model.classes[int(labels[example])],
            "predicted": model.classes[int(predicted[example])],
        },
        "stages": stages(model, image),
        "parameters": tree.count(model.params),
        "multiply_adds": sum(cost.of_parts(traced(model.net, spec_of(split, 1))).values()),
    }


def chosen(split: Split, most: int) -> Split:
    """At most so many images of a split, spread evenly over it."""
    if split.size <= most:
        return split
    numbers = np.arange(most) * split.size // most
    source = split.source
    if isinstance(source, Images):
        images, labels = (np.asarray(each)[numbers] for each in source)
        return split._replace(source=Images(images, labels))
    return split._replace(source=source._replace(examples=Chosen(source.examples, numbers)))


def features(model: Trained) -> dict[str, Any] | None:
    """The features of the first convolution, before training, as far as it is known, and now."""
    path = first_kernel(model.net, spec_of(model.split(), 1))
    if path is None:
        return None
    now = np.asarray(tree.leaves(model.params)[path], np.float32)[..., :MOST_FEATURES]
    before = _before(model, path)
    if before is not None and before.shape != now.shape:
        before = None
    both = [now] if before is None else [before, now]
    # One scale for all, so that what grew and what faded away can be seen.
    most = max(float(np.abs(each).max()) for each in both)
    drawn = [[_feature(each[..., n], most) for n in range(each.shape[-1])] for each in both]
    of = int(np.shape(tree.leaves(model.params)[path])[-1])
    return {
        "path": path.rpartition("/")[0] or path,
        "of": of,
        "before": drawn[0] if before is not None else None,
        "now": drawn[-1],
        "window": list(now.shape[:-2]),
        "channels": int(now.shape[-2]),
    }


def stages(model: Trained, image: np.ndarray) -> list[dict[str, Any]]:
    """What some layers make of an image `[1, height, width, channels]`, from the first to the last.

    They are the last ones before each change of the size of the maps, and the first convolution.
    """
    calls = [each for each in called(model.net, spec_of(model.split(), 1)) if _is_map(each)]
    picked = _picked(calls)
    if not picked:
        return []
    paths = [each.path for each in picked]
    seeing = capture(model.net, paths)

    @jax.jit
    def look(params: Any, state: Any, images: Any) -> Any:
        _, seen = seeing.apply(params, state, model.prepare(images), Context())[0]
        return jax.tree.map(lambda each: each.astype(jnp.float32), seen)

    seen = look(model.params, model.state, jnp.asarray(image))
    return [_stage(each, np.asarray(seen[each.path])[0]) for each in picked]


# -- What these are made of ------------------------------------------------------------------------


def _before(model: Trained, path: str) -> np.ndarray | None:
    """The kernel before training, if the run has kept it and it can be read."""
    try:
        content = io.BytesIO(model.log.beginning_file.read_bytes())
        with np.load(content, allow_pickle=False) as kept:
            return np.asarray(kept[path.replace("/", ".")], np.float32)
    # It was trained before this was kept, or its file is torn: the page says so.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _feature(kernel: np.ndarray, most: float) -> str:
    """A feature `[height, width, channels]` as a picture: in colours, or red and blue for signs."""
    if kernel.ndim == 2:  # Of images with one spatial axis.
        kernel = kernel[None]
    if kernel.shape[-1] == 3:
        grey = np.round(127.5 + 127.5 * kernel / (most or 1.0))
        return pictures.png(np.clip(grey, 0, 255).astype(np.uint8))
    return pictures.png(pictures.diverging(kernel.mean(-1), most))


def _is_map(call: Called) -> bool:
    """Whether a part without inner ones makes maps over two axes."""
    return not call.part.parts and len(call.made.shape) == 4


def _picked(calls: list[Called]) -> list[Called]:
    """The first convolution, and the last layer of each size; evenly chosen of many."""
    first = next((each for each in calls if each.kind == "conv"), None)
    last_of: Mapping[tuple[int, ...], Called] = {each.made.shape[1:3]: each for each in calls}
    own = [each for each in calls if each is first or each in last_of.values()]
    if len(own) <= _STAGES:
        return own
    return [own[round(n * (len(own) - 1) / (_STAGES - 1))] for n in range(_STAGES)]


def _stage(call: Called, maps: np.ndarray) -> dict[str, Any]:
    """The strongest maps of a layer's output `[height, width, channels]`."""
    strength = np.abs(maps).mean((0, 1))
    order = np.argsort(-strength, kind="stable")[:_MAPS]
    signed = bool((maps < 0).any())
    most = float(np.abs(maps[..., order]).max())
    drawn = [
        pictures.diverging(maps[..., n], most)
        if signed
        else pictures.sequential(maps[..., n], 0.0, most)
        for n in order
    ]
    return {
        "path": call.path,
        "kind": call.kind,
        "shape": list(maps.shape),
        "signed": signed,
        "maps": [
            {"picture": pictures.png(picture, _SIDE), "number": int(n)}
            for picture, n in zip(drawn, order)
        ],
    }
