"""All that is computed for the story of one image: a few programs, the same for every image.

plan = planned(model)                           # which convolutions are told of
found = findings(model, plan, pixels, label)    # arrays on the host, for `chapters`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.config import UserError
from convjax.data import views
from convjax.insight.compiled import ONCE, compiled
from convjax.insight.explanation.attribution import (
    cam,
    guided_gradient,
    integrated_gradients,
    smooth_grad,
)
from convjax.insight.explanation.matches import Exciting, most_exciting, strongest
from convjax.insight.explanation.occlusion import occlusion
from convjax.insight.explanation.story.planned import Plan
from convjax.insight.explanation.visualise import visualise
from convjax.insight.explanation.votes import Votes, by_place, votes_of
from convjax.insight.passes import IMAGES, Called, passes
from convjax.layer import Layer, Params, State
from convjax.trained import Trained
from convjax.training.feed import OnDisk, Split


class Findings(NamedTuple):
    """What the network does with one image.

    pixels: uint8 `[height, width, channels]`. image: the same as the network sees it.
    label: its class, if that is known. classes: the two that are told: that of the greatest logit,
        and the label if it is another, else the second.
    there: activations by path, without the batch axis; what goes into a part is at `PATH/input`.
    error: the gradient of the cross-entropy by path, `IMAGES` too.
    slopes: the gradient of the scores of the two classes by path, `[2, ...]`.
    norms: the norm of the error's gradient by path, of every part that has none inside.
    votes: of the last dense layer, or why there are none.
    places: what each place of the last maps adds to the scores of both, `[2, height, width]`.
    maps: by method, for each of the two classes; None for what is not defined.
    baseline: the logits of an image of zeros.
    painted: by path, uint8 images that gradient ascent has painted for the features that match
        best; those of the two classes at "".
    """

    pixels: np.ndarray
    image: np.ndarray
    label: int | None
    classes: tuple[int, int]
    logits: np.ndarray
    there: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    slopes: dict[str, np.ndarray]
    norms: dict[str, float]
    votes: Votes | str
    places: np.ndarray | None
    maps: dict[str, np.ndarray | None]
    baseline: np.ndarray
    painted: dict[str, np.ndarray]


class Excited(NamedTuple):
    """What excites each feature most, by path, and the images that it is found in."""

    found: dict[str, Exciting]
    pixels: np.ndarray


FEATURES = 8  # of a convolution, that are told of: those that match best


def findings(
    model: Trained,
    plan: Plan,
    pixels: np.ndarray,
    label: int | None,
    *,
    workers: Executor,
    steps: int = 0,
    paint_features: bool = False,
) -> Findings:
    """Computes what the story of an image tells.

    pixels: uint8 `[height, width, channels]`.
    workers: in which its programs are compiled, and run, side by side.
    steps: of gradient ascent; 0 paints nothing.
    paint_features: whether features are painted, too, and not only classes.
    """
    image = np.asarray(jax.jit(model.prepare)(pixels[None]))
    head = plan.head.path if isinstance(plan.head, Called) else None
    kept = [call.path for each in plan.convs for call in (each.conv, *each.after)]
    kept += [path for path in (plan.final, plan.seen, head) if path]
    kept += [f"{path}/input" for path in plan.inputs]
    measured = [call.path for call in plan.calls if not call.part.parts]
    there, back, norms, told = _told(
        *plan.seeing,
        jnp.asarray(image),
        jnp.int32(-1 if label is None else label),
        kept=tuple(dict.fromkeys(kept)),
        measured=tuple(measured),
    )
    there, back, norms, told = jax.tree.map(np.asarray, (there, back, norms, told))
    logits = there[""][0].astype(np.float32)
    if not np.isfinite(logits).all():
        raise UserError(
            f"{model.log.folder}: the network's logits of this image are not finite; "
            "explain another --model, or train the run again"
        )
    classes = int(told[0]), int(told[1])

    given = (model.net, model.params, model.state, jnp.asarray(image), jnp.asarray(told)[:, None])
    both = workers.submit(_by_points, *given)
    wanted = {"": classes}
    if paint_features:
        paths = [each.conv.path for each in plan.convs]
        wanted |= {path: [m.feature for m in strongest(there[path][0], FEATURES)] for path in paths}
    images = workers.submit(_painted, model, plan, wanted, steps) if steps else None
    hidden = workers.submit(occlusion, *given)
    guided = workers.submit(_guided, *given) if plan.relus else None
    votes, places = _argued(plan, there, back)
    cams = cam(there[plan.seen][2:4], back[plan.seen][2:4]) if plan.seen is not None else None
    smooth, integrated = both.result()
    maps: dict[str, np.ndarray | None] = {
        "gradient": back[IMAGES][2:4].astype(np.float32),
        "smooth_grad": np.asarray(smooth[:, 0]),
        "guided_gradient": np.asarray(guided.result()[:, 0]) if guided else None,
        "integrated_gradients": np.asarray(integrated[:, 0]),
        "grad_cam": None if cams is None else np.asarray(cams),
        "occlusion": np.asarray(hidden.result()[:, 0]),
    }
    return Findings(
        pixels,
        np.asarray(image[0], np.float32),
        label,
        classes,
        logits,
        {path: np.asarray(each[0], np.float32) for path, each in there.items()},
        {path: np.asarray(each[0], np.float32) for path, each in back.items()},
        {path: np.asarray(each[2:4], np.float32) for path, each in back.items()},
        {path: float(each) for path, each in norms.items()},
        votes,
        places,
        maps,
        there[""][4].astype(np.float32),
        images.result() if images else {},
    )


def excited(model: Trained, plan: Plan, split: Split, count: int) -> Excited:
    """What of `count` images excites each feature of the told convolutions most."""
    pixels = split.sample(count) if count else np.zeros((0, *model.shape), np.uint8)
    paths = [each.conv.path for each in plan.convs]
    if not paths or not len(pixels):
        return Excited({}, pixels)
    size = min(_BATCH, len(pixels))
    whole = pixels[: len(pixels) - len(pixels) % size]  # One program, for one size of batch.
    batches = (
        jax.jit(model.prepare)(whole[start : start + size]) for start in range(0, len(whole), size)
    )
    return Excited(most_exciting(*plan.network, batches, paths), whole)


def image_of(split: Split, index: int) -> tuple[np.ndarray, int]:
    """An image of a split, uint8 `[height, width, channels]`, and its label.

    Raises:
        UserError: if there is no image of that number, or it cannot be read.
    """
    if not 0 <= index < split.size:
        raise UserError(
            f"--index={index}: the split has images 0 to {split.size - 1}; give one of these"
        )
    source = split.source
    if isinstance(source, OnDisk):
        from convjax.data.maker import seen

        return seen(source.examples, source.view, index, np.full(views.NUMBERS, 0.5))
    return np.asarray(source.images[index]), int(source.labels[index])


_BATCH = 100  # images that are looked through at once

_guided = compiled("net", runs=ONCE)(guided_gradient)  # of a single image


def _by_points(*given: Any) -> tuple[Array, Array]:
    """SmoothGrad and integrated gradients: one after the other, for they are one program."""
    return smooth_grad(*given), integrated_gradients(*given)


def _argued(
    plan: Plan, there: Mapping[str, Any], back: Mapping[str, Any]
) -> tuple[Votes | str, np.ndarray | None]:
    """The votes of the last dense layer, or why there are none, and those of the last places."""
    votes: Votes | str = plan.head if isinstance(plan.head, str) else ""
    if isinstance(plan.head, Called):
        path = plan.head.path
        try:
            votes = votes_of(
                *(plan.head, *plan.network[1:]),
                features=there[f"{path}/input"][:1],
                made=there[path][:1],
                slopes=back[path][1:2],
                logits=there[""][:1],
            )
        except ValueError as error:
            votes = str(error)
    if plan.final is None:
        return votes, None
    return votes, np.asarray(by_place(there[plan.final][2:4], back[plan.final][2:4]))


def _painted(
    model: Trained, plan: Plan, features: Mapping[str, Sequence[int]], steps: int
) -> dict[str, np.ndarray]:
    """Images that gradient ascent paints for features by path, classes at "", in one program."""
    channels = {call.path: call.made.shape[-1] for call in plan.calls} | {"": len(model.classes)}
    rows, first, where = sum(map(len, features.values())), 0, {}
    wanted = {}
    for path, numbers in features.items():
        where[path] = slice(first, first + len(numbers))
        wanted[path] = np.zeros((rows, channels[path]), np.float32)
        wanted[path][np.arange(first, first + len(numbers)), list(numbers)] = 1
        first += len(numbers)
    # Where parts are called several times, the network as it is has the smaller program.
    network = plan.network if len(features) > 1 else (model.net, model.params, model.state)
    images = visualise(*network, wanted, shape=model.shape, prepare=model.prepare, steps=steps)
    pixels = np.round(255 * np.asarray(images)).astype(np.uint8)
    return {path: pixels[rows] for path, rows in where.items()}


@compiled("net", "kept", "measured", runs=ONCE)
def _told(
    net: Layer,
    params: Params,
    state: State,
    image: Array,
    label: Array,
    *,
    kept: tuple[str, ...],
    measured: tuple[str, ...],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Array]:
    """Activations, gradients, norms of the error's gradients, and the two classes that are told.

    Row 0 has the gradients of the error, row 1 those of the sum of all logits, rows 2 and 3 those
    of the scores of both classes; row 4 is an image of zeros, and has none.

    label: -1 if it is not known; the error is then that of the greatest logit.
    """

    def told(logits: Array) -> Array:
        _, (first, second) = lax.top_k(logits[0], 2)
        other = (label < 0) | (label == first)
        return jnp.stack([first, jnp.where(other, second, label)])

    def cotangents(logits: Array) -> Array:
        logits = logits.astype(jnp.float32)
        both = jax.nn.one_hot(told(logits), logits.shape[-1], dtype=jnp.float32)
        # Of both classes the second is the label, unless the first is.
        wanted = jnp.where((label < 0) | (label == told(logits)[0]), both[0], both[1])
        error = jax.nn.softmax(logits[0]) - wanted
        return jnp.stack([error, jnp.ones_like(error), *both, jnp.zeros_like(error)])

    images = jnp.concatenate([image, image, image, image, jnp.zeros_like(image)])
    paths = tuple(dict.fromkeys((*kept, *measured)))
    there, back = passes(net, params, state, images, cotangents, paths)
    norms = {
        path: jnp.sqrt((back[path][0].astype(jnp.float32) ** 2).sum())
        for path in (*measured, IMAGES)
    }
    return (
        {path: there[path] for path in (*kept, "")},
        {path: back[path] for path in (*kept, IMAGES)},
        norms,
        told(there[""].astype(jnp.float32)),
    )
