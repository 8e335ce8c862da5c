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
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import jax
import numpy as np

from convjax import durable
from convjax.config import UserError
from convjax.insight.evaluation import corruptions as corrupting
from convjax.insight.evaluation import figures, results
from convjax.insight.evaluation.calibration import BINS
from convjax.insight.evaluation.predictions import Predictions, Predictor, finite, last_layer
from convjax.insight.evaluation.results import Result, may_share
from convjax.runlog import RunError, write_json
from convjax.trained import Trained

MEMORY = 4 << 30  # bytes that the features of a split may take
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
    result = results.scores(model, found, wanted.bins)
    result = {"run": str(model.log.folder), "split": split, "model": model.which} | result
    result["temperature"] = results.temperature_scaling(model, predictor, split, found, wanted.bins)
    if wanted.features:
        bank = model.config.data.train if wanted.bank is None else wanted.bank
        probed = _feature_bytes(model, bank) <= MEMORY
        if out is not None:
            less = "" if probed else f"; no probe, whose features take more than {MEMORY >> 30} GiB"
            print(f"features of {bank}{less}", file=out, flush=True)
        result["features"] = results.of_features(model, predictor, bank, found, probed)
    if names:
        result["corruptions"] = results.corrupted(model, predictor, split, names, out)
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
    if (valid := model.config.data.valid) is not None and not may_share(valid, split):
        model.split(valid)  # The temperature is fitted on it.
    if wanted.features:
        bank = model.config.data.train if wanted.bank is None else wanted.bank
        if may_share(bank, split):
            raise UserError(
                f"--bank is {bank!r}, which has, or may have, images of the split {split!r} that "
                "is evaluated: the nearest image would be the image itself; give another --bank or "
                "--split, both in numbers or both in percentages"
            )
        model.split(bank)
        if (needed := _feature_bytes(model, split)) > MEMORY:
            part = f"--split='{split.partition('[')[0]}[:10%]'"
            raise UserError(
                f"--features keeps those of {split!r}, {needed / 2**30:.1f} GiB, and may take "
                f"{MEMORY >> 30} GiB: evaluate a part, as in {part}"
            )
    elif wanted.bank is not None:
        raise UserError("--bank is where features are looked up: give --features, too")
    if wanted.corruptions is None:
        return []
    return corrupting.names_of(wanted.corruptions, model.shape[-1])


def _feature_bytes(model: Trained, split: str) -> int:
    """The memory of the features of all images of a split."""
    _, width = last_layer(model.net, jax.ShapeDtypeStruct((1, *model.shape), np.float32))
    return 4 * width * model.split(split).size
