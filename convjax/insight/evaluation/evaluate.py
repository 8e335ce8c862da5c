"""A trained network, looked at from all sides: what `experiments.evaluate --deep` tells.

    model = trained("runs/mine")
    found = evaluate(model, Wanted(features=True, corruptions="fog,snow"))
    print(evaluation_text.text(found.result))           # or
    write(model, found)                                 # into the run's folder, with pictures

A result is a dict of what JSON can hold.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from convjax import durable
from convjax.config import UserError
from convjax.data.splits import overlap
from convjax.insight.evaluation import corruptions as corrupting
from convjax.insight.evaluation import figures
from convjax.insight.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap
from convjax.insight.evaluation.calibration import BINS, Calibration, calibration, temperature
from convjax.insight.evaluation.mistakes import most_confident
from convjax.insight.evaluation.neighbours import NEIGHBOURS, TEMPERATURE, neighbour_votes
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
from convjax.runlog import RunError, write_json
from convjax.trained import Trained

Result = dict[str, Any]
_MISTAKES = 24
_MOST_BINS = 1000


@dataclass(frozen=True)
class Wanted:
    """What of an evaluation is wanted beside the scores.

    split: of the data, by default that which the run was tested on.
    bins: of the calibration error, 1 to 1000.
    features: whether a k-NN and a linear probe are asked, on features of the split `bank`, by
        default that which the run was trained on.
    corruptions: "all" or names, "fog,snow".
    """

    split: str | None = None
    bins: int = BINS
    features: bool = False
    bank: str | None = None
    corruptions: str | None = None


class Evaluation(NamedTuple):
    """A result, and the predictions that it was made of."""

    result: Result
    found: Predictions


def evaluate(model: Trained, wanted: Wanted = Wanted(), out: TextIO | None = None) -> Evaluation:
    """Scores, calibration, intervals and mistakes of a model on a split, and what else is wanted.

    out: where it is told, now and then, how far it is.

    Raises:
        UserError: before anything is computed, for what cannot be had; after, if logits are not
            finite.
    """
    begun = time.perf_counter()
    split = model.config.data.test if wanted.split is None else wanted.split
    names = _checked(model, wanted, split)
    predictor = Predictor(model, features=wanted.features)
    images = model.split(split)
    found = finite(predictor.predict(images), split)
    result = _scores(model, found, wanted.bins)
    result = {"run": str(model.log.folder), "split": split, "model": model.which} | result
    result["temperature"] = _temperature(model, predictor, split, found, wanted.bins)
    if wanted.features:
        bank = model.config.data.train if wanted.bank is None else wanted.bank
        _say(out, f"features of {bank}")
        result["features"] = _features(model, predictor, bank, found)
    if names:
        result["corruptions"] = _corrupted(model, predictor, split, names, out)
    result["seconds"] = time.perf_counter() - begun
    return Evaluation(result, found)


def write(model: Trained, evaluation: Evaluation) -> Path:
    """Puts an evaluation into the run's folder, `evaluation/SPLIT.*`; returns the path of the JSON.

    Beside it lie the logits and labels of all images as `.npz`, and the pictures of
    `convjax.insight.evaluation.figures`. Each file is replaced as a whole.

    Raises:
        RunError: if it cannot be written.
    """
    result, found = evaluation.result, evaluation.found
    stem = re.sub(r"[^\w.%:-]", "_", result["split"])
    stem += "" if model.which == "newest" else f"-{model.which}"
    folder = model.log.folder / "evaluation"
    numbers = [mistake["number"] for mistake in result["mistakes"]]
    pictures = {
        "confusion": figures.confusion_matrix(result),
        "reliability": figures.reliability_diagram(result),
    }
    if numbers:
        images = model.images(numbers, result["split"])
        pictures["mistakes"] = figures.mistakes(result, images)
    if "corruptions" in result:
        pictures["corruptions"] = figures.corruptions(result)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, logits=found.logits, labels=found.labels)
    target = folder / f"{stem}.json"
    try:
        folder.mkdir(exist_ok=True)
        durable.replace(folder / f"{stem}.npz", arrays.getvalue())
        for name in ("confusion", "reliability", "mistakes", "corruptions"):
            picture = folder / f"{stem}-{name}.png"
            if name in pictures:
                durable.replace(picture, pictures[name])
            else:  # That of an earlier evaluation does not belong to this one.
                picture.unlink(missing_ok=True)
        write_json(target, result)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}): make room, or evaluate without --deep"
        ) from error
    return target


# -- What it is made of ----------------------------------------------------------------------------


def _checked(model: Trained, wanted: Wanted, split: str) -> list[str]:
    """The names of the corruptions, once all that is wanted is known to be there."""
    if not 1 <= wanted.bins <= _MOST_BINS:
        raise UserError(f"--bins is {wanted.bins}: give 1 to {_MOST_BINS}")
    model.split(split)
    if (valid := model.config.data.valid) is not None and not _may_share(valid, split):
        model.split(valid)  # The temperature is fitted on it.
    if wanted.features:
        bank = model.config.data.train if wanted.bank is None else wanted.bank
        if _may_share(bank, split):
            raise UserError(
                f"--bank is {bank!r}, which has, or may have, images of the split {split!r} that "
                "is evaluated: the nearest image would be the image itself; give another --bank or "
                "--split, both in numbers or both in percentages"
            )
        model.split(bank)
    elif wanted.bank is not None:
        raise UserError("--bank is where features are looked up: give --features, too")
    if wanted.corruptions is None:
        return []
    return corrupting.names_of(wanted.corruptions, model.shape[-1])


def _may_share(one: str, other: str) -> bool:
    """Whether two splits have images in common, or may have.

    Of a part in percentages and one in numbers `overlap` cannot tell.
    """
    names = {split.partition("[")[0] for split in (one, other)}
    units = {"%" in split for split in (one, other) if "[" in split}
    return overlap(one, other) or (len(names) == 1 and len(units) == 2)


def _scores(model: Trained, found: Predictions, bins: int) -> Result:
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


def _temperature(
    model: Trained, predictor: Predictor, split: str, found: Predictions, bins: int
) -> Result | None:
    """Temperature scaling, fitted on other images than it is judged by.

    On the run's valid split, or on half of the judged split where there is none, drawn by a seed of
    its own, and judged on the other half.
    """
    valid = model.config.data.valid
    if valid is not None and not _may_share(valid, split):
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


def _features(model: Trained, predictor: Predictor, bank: str, found: Predictions) -> Result:
    """What the nearest images, and a linear map, make of the features."""
    known = finite(predictor.predict(model.split(bank)), bank)
    assert known.features is not None
    assert found.features is not None
    for features, name in ((known.features, bank), (found.features, "the evaluated split")):
        if not np.isfinite(features).all():
            raise UserError(f"features of {name} are not finite: evaluate without --features")
    k, classes = min(NEIGHBOURS, len(known.labels)), len(model.classes)
    votes = neighbour_votes(known.features, known.labels, found.features, classes=classes, k=k)
    probe = fit_probe(known.features, known.labels, classes=classes)
    read = probe.logits(found.features).argmax(1)
    return {
        "layer": predictor.layer,
        "size": known.features.shape[1],
        "bank": bank,
        "bank_images": len(known.labels),
        "neighbours": {
            "accuracy": float((votes.argmax(1) == found.labels).mean()),
            "k": k,
            "temperature": TEMPERATURE,
        },
        "probe": {
            "accuracy": float((read == found.labels).mean()),
            "steps": probe.steps,
            "slope": probe.slope,
            "converged": probe.converged,
        },
    }


def _corrupted(
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
        _say(out, f"{name}: " + " ".join(f"{each['accuracy']:.4f}" for each in found[name]))
    return found


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


def _say(out: TextIO | None, line: str) -> None:
    if out is not None:
        print(line, file=out, flush=True)
