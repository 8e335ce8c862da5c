"""The chapter of the votes: what each feature, and each place, argued for and against a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convjax.insight.explanation import pictures
from convjax.insight.explanation.story.findings import Findings
from convjax.insight.explanation.story.planned import Plan
from convjax.insight.explanation.story.words import number, signed
from convjax.insight.explanation.votes import Votes
from convjax.trained import Trained


def arguments(model: Trained, plan: Plan, found: Findings, most: int = 5) -> dict[str, Any]:
    """The `most` features that say most for and against each of both classes, and the sums."""
    votes = found.votes
    if not isinstance(votes, Votes):
        return {"reason": votes, "classes": []}
    names, about = _names(plan, found, votes)
    classes = []
    for label in found.classes:
        terms = votes.of(label)[0]
        order = np.argsort(-terms, kind="stable")
        in_favour = [_row(votes, label, each, names) for each in order[:most] if terms[each] > 0]
        opposed = [
            _row(votes, label, each, names) for each in order[::-1][:most] if terms[each] < 0
        ]
        positive, negative = terms[terms > 0].sum(), terms[terms < 0].sum()
        classes.append(
            {
                "name": model.classes[label],
                "for": in_favour,
                "against": opposed,
                "positive": signed(positive),
                "negative": signed(negative),
                "bias": signed(votes.bias[label]),
                "logit": signed(found.logits[label]),
            }
        )
    return {
        "reason": None,
        "path": votes.path,
        "about": about,
        "features": votes.features.shape[1],
        "classes": classes,
    }


def _row(votes: Votes, label: int, feature: int, names: Callable[[int], str]) -> dict[str, Any]:
    """One feature and what it adds to a logit; the bar of the greatest is full."""
    terms = votes.of(label)[0]
    return {
        "name": names(feature),
        "value": number(votes.features[0, feature]),
        "weight": signed(votes.weights[feature, label]),
        "term": signed(terms[feature]),
        "width": round(100 * abs(float(terms[feature])) / float(np.abs(terms).max()), 2),
    }


def _names(plan: Plan, found: Findings, votes: Votes) -> tuple[Callable[[int], str], str]:
    """What a feature of the last layer is called, by its number, and what all of them are."""
    features = votes.features[0]
    if plan.final is not None:
        maps = found.there[plan.final]
        width, channels = maps.shape[1:]
        if features.size == maps.size and np.allclose(features, maps.ravel(), atol=1e-5):

            def at_place(each: int) -> str:
                place, channel = divmod(int(each), channels)
                return f"{channel} at ({place // width}, {place % width})"

            return at_place, ", with row and column in their maps"
        if features.size == channels and np.allclose(features, maps.mean((0, 1)), atol=1e-4):
            return lambda each: f"map {each}", ", each the mean of a map"
    return lambda each: f"unit {each}", ""


def places_of(found: Findings) -> list[dict[str, Any]] | None:
    """What each place of the last maps adds to the logits of both classes."""
    if found.places is None or min(found.places.shape[1:]) < 2:
        return None
    most = float(np.abs(found.places).max())
    made = []
    for each, label in enumerate(found.classes):
        places = found.places[each]
        bias = float(found.votes.bias[label]) if isinstance(found.votes, Votes) else 0.0
        total, logit = float(places.sum()), float(found.logits[label])
        exact = abs(total + bias - logit) <= 1e-3 * (float(np.abs(places).sum()) + abs(bias))
        made.append(
            {
                "picture": pictures.png(pictures.diverging(places, most)),
                "total": signed(total),
                "bias": signed(bias),
                "logit": signed(logit),
                "exact": exact,
            }
        )
    return made
