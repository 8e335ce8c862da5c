"""From what was computed to what the page shows: pictures, numbers as texts, short sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from convjax.insight.explanation import pictures
from convjax.insight.explanation.story.argued import arguments, places_of
from convjax.insight.explanation.story.features import LARGEST, convolution
from convjax.insight.explanation.story.findings import Excited, Findings
from convjax.insight.explanation.story.planned import STILL, Plan
from convjax.insight.explanation.story.words import number, percent, signed
from convjax.insight.passes import IMAGES
from convjax.trained import Trained


def chapters(model: Trained, plan: Plan, found: Findings, excited: Excited) -> dict[str, Any]:
    """What the template shows of one image, as texts, numbers, lists and data URIs."""
    return {
        "picture": pictures.png(found.pixels),
        "height": found.pixels.shape[0],
        "width": found.pixels.shape[1],
        "channels": found.pixels.shape[2],
        "classes": [_class(model, found, label) for label in found.classes],
        "label": None if found.label is None else model.classes[found.label],
        "right": found.label == found.classes[0],
        "ranking": _ranking(model, found),
        "convs": [convolution(plan, found, excited, each) for each in plan.convs],
        "left_out": plan.left_out,
        "repeated": plan.repeated,
        "looked_through": len(excited.pixels),
        "votes": arguments(model, plan, found),
        "places": places_of(found),
        "final": plan.final,
        "error": _error(model, plan, found),
        "maps": _maps(found),
        "seen": plan.seen,
        "painted": [pictures.png(each) for each in found.painted.get("", [])],
    }


# -- What the network says -------------------------------------------------------------------------


def _class(model: Trained, found: Findings, label: int) -> dict[str, Any]:
    share = _shares(found.logits)[label]
    return {
        "name": model.classes[label],
        "logit": number(found.logits[label]),
        "share": percent(share),
        "is_label": label == found.label,
    }


def _ranking(model: Trained, found: Findings, most: int = 10) -> list[dict[str, Any]]:
    """The classes with the greatest logits, and the label."""
    shares = _shares(found.logits)
    order = list(np.argsort(-found.logits, kind="stable")[:most])
    if found.label is not None and found.label not in order:
        order.append(found.label)
    return [
        {
            "name": model.classes[label],
            "logit": number(found.logits[label]),
            "share": percent(shares[label]),
            "width": round(100 * float(shares[label]), 2),
            "target": "1" if label == found.label else "0",
            "slope": f"{shares[label] - (label == found.label):+.3f}",
            "is_label": label == found.label,
        }
        for label in order
    ]


def _shares(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits.astype(np.float64) - logits.max())
    return raised / raised.sum()


# -- The error -------------------------------------------------------------------------------------


_WEIGHING = ("conv", "dense")


def _error(model: Trained, plan: Plan, found: Findings, most: int = 32) -> dict[str, Any] | None:
    if found.label is None:
        return None
    logits = found.logits.astype(np.float64)
    loss = np.logaddexp.reduce(logits) - logits[found.label]
    calls = {call.path: call for call in plan.calls}
    paths = [path for path in calls if path in found.norms and calls[path].kind not in STILL]
    paths, count = [*reversed(paths), IMAGES], len(paths) + 1
    if count > most:  # Of very many, those that weigh what they are given.
        paths = [path for path in paths if path == IMAGES or calls[path].kind in _WEIGHING]
        picked = np.linspace(0, len(paths) - 1, min(most, len(paths)))
        paths = [paths[place] for place in np.unique(np.round(picked).astype(int))]
    largest = max([*(found.norms[path] for path in paths), 1e-30])
    return {
        "loss": number(loss),
        "trained": _trained(model),
        "rows": [
            row for place, row in enumerate(_ranking(model, found)) if place < 5 or row["is_label"]
        ],
        "left_out": count - len(paths),
        "layers": [
            {
                "path": "the image" if path == IMAGES else path,
                "kind": "" if path == IMAGES else calls[path].kind,
                "norm": number(found.norms[path]),
                "width": round(100 * found.norms[path] / largest, 2),
            }
            for path in paths
        ],
        "image": pictures.png(pictures.diverging(found.error[IMAGES].sum(-1)), LARGEST),
    }


def _trained(model: Trained) -> str:
    """What the run minimised, where that was not the plain cross-entropy; else an empty text."""
    loss = model.config.loss
    said = [] if loss.name == "cross_entropy" else [f"the loss {loss.name}"]
    said += ["weighted classes"] * bool(loss.class_weights)
    if loss.label_smoothing:
        said.append(f"targets smoothed by {loss.label_smoothing:g}")
    return " and ".join(said)


# -- Maps of the image -----------------------------------------------------------------------------

_METHODS = (
    ("gradient", "Gradient", "how the score would change with each pixel"),
    ("smooth_grad", "SmoothGrad", "the mean gradient over 64 noisy copies of the image"),
    ("guided_gradient", "Guided backpropagation", "ReLUs hand back only what excites"),
    ("integrated_gradients", "Integrated gradients", "what each pixel adds, from grey to here"),
    ("grad_cam", "Grad-CAM", "the last maps, weighted by their slopes"),
    ("occlusion", "Occlusion", "what the score loses where the image is hidden"),
)


def _maps(found: Findings) -> list[dict[str, Any]]:
    """Each method with a picture for both classes."""
    made = []
    for name, title, text in _METHODS:
        maps = found.maps[name]
        entry: dict[str, Any] = {"name": name, "title": title, "text": text}
        entry |= {"pictures": None, "sums": None}
        if maps is not None:
            entry["pictures"] = [_heat(found, name, each) for each in maps]
            if name == "integrated_gradients":
                sums = [float(each.sum()) for each in maps]
                gains = [float(found.logits[k] - found.baseline[k]) for k in found.classes]
                entry["sums"] = [
                    f"sum {signed(total)}, score less that of grey {signed(gain)}"
                    for total, gain in zip(sums, gains)
                ]
        made.append(entry)
    return made


def _heat(found: Findings, name: str, heat: np.ndarray) -> str:
    if name == "grad_cam":
        return pictures.png(pictures.over(found.pixels, heat), 2 * LARGEST)
    signed = heat.sum(-1) if heat.ndim == 3 else heat
    most = float(np.quantile(np.abs(signed), 0.995))  # A few pixels would take all the colour.
    return pictures.png(pictures.diverging(signed, most), 2 * LARGEST)
