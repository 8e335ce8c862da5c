"""What an evaluation tells, part by part: each as what JSON can hold.

predictor = Predictor(model, features=True)
found = predictor.predict(model.split("test"))
scores(model, found, bins=15) | {"features": of_features(model, predictor, "train", found, True)}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

import jax
import numpy as np

from convjax.config import UserError
from convjax.data.splits import overlap
from convjax.insight.evaluation import corruptions as corrupting
from convjax.insight.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap
from convjax.insight.evaluation.calibration import Calibration, calibration, temperature
from convjax.insight.evaluation.mistakes import most_confident
from convjax.insight.evaluation.neighbours import NEIGHBOURS, TEMPERATURE, Nearest
from convjax.insight.evaluation.predictions import Predictions, Predictor, finite
from convjax.insight.evaluation.probe import fit_probe
from convjax.insight.evaluation.scores import (
    by_class,
    confusion,
    macro_f1,
    most_confused,
    negative_log_likelihood,
    rank_of_label,
)
from convjax.trained import Trained

Result = dict[str, Any]
_MISTAKES = 24


def scores(model: Trained, found: Predictions, bins: int) -> Result:
    """All that the predictions alone tell."""
    logits, labels = found.logits, found.labels
    classes, images = len(model.classes), len(labels)
    predicted, rank = logits.argmax(1), rank_of_label(logits, labels)
    loss = negative_log_likelihood(logits, labels)
    matrix = confusion(labels, predicted, classes)
    names = ["accuracy", "loss", "macro_f1", *(["top5"] if classes > 5 else [])]

    def statistics(numbers: np.ndarray) -> list[float]:
        ranks = rank[numbers]
        of = confusion(labels[numbers], predicted[numbers], classes)
        values = [(ranks == 0).mean(), loss[numbers].mean(), macro_f1(of)]
        return [*values, (ranks < 5).mean()][: len(names)]

    values = statistics(np.arange(images))
    ends = zip(*(each.tolist() for each in bootstrap(statistics, images)))
    shown, calibrated = by_class(matrix), calibration(logits, labels, bins)
    return {
        "images": images,
        "classes": list(model.classes),
        "correct": int((rank == 0).sum()),
        **{
            name: {"value": float(value), "low": low, "high": high}
            for name, value, (low, high) in zip(names, values, ends)
        },
        # Without an interval: with images drawn twice it comes out larger than it is.
        "calibration_error": {"value": calibrated.reliability.error},
        "intervals": {"method": "bootstrap percentiles", "level": LEVEL, "resamples": RESAMPLES},
        "by_class": [
            {"class": name, "precision": p, "recall": r, "f1": f1, "images": count}
            for name, p, r, f1, count in zip(model.classes, *(each.tolist() for each in shown))
        ],
        "confusion": matrix.tolist(),
        "most_confused": [
            {"label": label, "predicted": taken, "count": count}
            for label, taken, count in most_confused(matrix, 10)
        ],
        "reliability": _reliability(calibrated),
        "mistakes": [mistake._asdict() for mistake in most_confident(logits, labels, _MISTAKES)],
    }


def temperature_scaling(
    model: Trained, predictor: Predictor, split: str, found: Predictions, bins: int
) -> Result | None:
    """Temperature scaling, fitted on other images than it is judged by.

    On the run's valid split, or on half of the judged split where there is none, drawn by a seed of
    its own, and judged on the other half.
    """
    valid = model.config.data.valid
    if valid is not None and not may_share(valid, split):
        fitted, judged = finite(predictor.predict(model.split(valid)), valid), found
        name = valid
    elif len(found.labels) > 1:
        order = np.random.default_rng(0).permutation(len(found.labels))
        fitted, judged = (
            Predictions(found.logits[half], found.labels[half])
            for half in np.split(order, [len(order) // 2])
        )
        name = f"half of {split}"
    else:
        return None
    best = temperature(fitted.logits, fitted.labels)
    before = calibration(judged.logits, judged.labels, bins)
    after = calibration(judged.logits / np.float64(best), judged.labels, bins)
    return {
        "temperature": best,
        "fitted_on": name,
        "fitted_images": len(fitted.labels),
        "judged_images": len(judged.labels),
        "before": _reliability(before),
        "after": _reliability(after),
    }


def of_features(
    model: Trained, predictor: Predictor, bank: str, found: Predictions, probed: bool
) -> Result:
    """What the nearest images of a split, and a linear map, make of the features.

    The split goes by once. probed: whether there is a linear map, for which all of its features are
    kept.
    """
    assert found.features is not None
    _finite_features(found.features, "the evaluated split")
    split, kept = model.split(bank), []
    k, classes = min(NEIGHBOURS, split.size), len(model.classes)
    nearest = Nearest(found.features, k)
    for part in predictor.stream(split):
        assert part.features is not None
        _finite_features(part.features, bank)
        nearest.see(part.features, part.labels)
        if probed:
            kept.append((part.features, part.labels))
    votes = nearest.votes(classes)
    result = {
        "layer": predictor.layer,
        "size": found.features.shape[1],
        "bank": bank,
        "bank_images": nearest.known,
        "neighbours": {
            "accuracy": float((votes.argmax(1) == found.labels).mean()),
            "k": k,
            "temperature": TEMPERATURE,
        },
        "probe": None,
    }
    if probed:
        probe = fit_probe(*map(np.concatenate, zip(*kept)), classes=classes)
        read = probe.logits(found.features).argmax(1)
        result["probe"] = {
            "accuracy": float((read == found.labels).mean()),
            "steps": probe.steps,
            "slope": probe.slope,
            "converged": probe.converged,
        }
    return result


def corrupted(
    model: Trained, predictor: Predictor, split: str, names: Sequence[str], out: TextIO | None
) -> Result:
    """Accuracy and loss through each corruption at each severity.

    An image whose logits are not finite counts as a mistake, and is counted.
    """
    images, key = model.split(split), jax.random.key(0)
    found: Result = {}
    for name in names:
        found[name] = []
        for severity in corrupting.SEVERITIES:
            change = corrupting.corruption(name, severity, model.shape)
            seen = predictor.predict(images, lambda *of, change=change: change(key, *of))
            good = np.isfinite(seen.logits).all(1)
            hit = (seen.logits.argmax(1) == seen.labels) & good
            loss = negative_log_likelihood(seen.logits[good], seen.labels[good])
            found[name].append(
                {
                    "severity": severity,
                    "accuracy": float(hit.mean()),
                    "loss": float(loss.mean()) if len(loss) else None,
                    "not_finite": int((~good).sum()),
                }
            )
        if out is not None:
            told = " ".join(f"{each['accuracy']:.4f}" for each in found[name])
            print(f"{name}: {told}", file=out, flush=True)
    return found


def may_share(one: str, other: str) -> bool:
    """Whether two splits have images in common, or may have.

    Of a part in percentages and one in numbers `overlap` cannot tell.
    """
    names = {split.partition("[")[0] for split in (one, other)}
    units = {"%" in split for split in (one, other) if "[" in split}
    return overlap(one, other) or (len(names) == 1 and len(units) == 2)


def _finite_features(features: np.ndarray, what: str) -> None:
    if not np.isfinite(features).all():
        raise UserError(f"features of {what} are not finite: evaluate without --features")


def _reliability(found: Calibration) -> Result:
    edges, count, confidence, accuracy = (each.tolist() for each in found.reliability)
    return {
        "edges": edges,
        "count": count,
        "confidence": confidence,
        "accuracy": accuracy,
        "error": found.reliability.error,
        "largest": found.reliability.largest,
        "loss": found.loss,
    }
