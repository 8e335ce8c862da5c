"""What a run writes down when a sitting of it begins, and what it compares with the one before."""

from __future__ import annotations

from typing import Any

import numpy as np

from convjax import runlog
from convjax.assemble import Assembled
from convjax.config import UserError, digest, to_dict
from convjax.runlog import RunLog


def begin(
    log: RunLog,
    experiment: Assembled,
    pixels: tuple[np.ndarray, np.ndarray],
    first: int,
    owes: bool,
) -> None:
    """Cuts the metrics back to the step `first`, and notes what the run goes on, or begins, with.

    pixels: mean and standard deviation of the channels of train.
    owes: whether the evaluations of that step are to come once more.

    Raises:
        UserError: if the images are not those that the run began with. Nothing is changed then.
    """
    splits = {"train": experiment.train, **experiment.judged}
    images = {name: split.size for name, split in splits.items()}
    before, own = log.record(), digest(experiment.config)
    configs = before.get("configs", [])
    if first and own in configs:
        _check_same(log, before, images, pixels)
    log.cut(first, owes=owes)
    if own not in configs:
        log.create(to_dict(experiment.config))
        configs = [*configs, own]
    mean, std = pixels
    log.note(
        **runlog.environment(),
        status="running",
        configs=configs,
        start=before.get("start", runlog.now()),
        resumed=[*before.get("resumed", ()), *([first] if first else ())],
        end=None,
        error=None,
        pixels={"mean": mean.tolist(), "std": std.tolist()},
        classes=experiment.train.classes,
        images=images,
        unreadable={name: len(split.faults.errors) for name, split in splits.items()},
    )


def _check_same(
    log: RunLog,
    before: dict[str, Any],
    images: dict[str, int],
    pixels: tuple[np.ndarray, np.ndarray],
) -> None:
    had, then = before["images"], before["pixels"]
    changed = [
        f"{name} had {had[name]} images and has {count}"
        for name, count in images.items()
        if had[name] != count
    ]
    # Other machines may round sums otherwise.
    if not np.allclose([then["mean"], then["std"]], pixels, rtol=1e-4, atol=1e-6):
        changed.append("the mean and deviation of the pixels of train are others")
    if changed:
        raise UserError(
            f"the data have changed since {log.folder} began: {', '.join(changed)}; bring back "
            "what there was, or give another --workdir"
        )
