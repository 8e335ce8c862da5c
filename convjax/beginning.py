"""What a run writes down when a sitting of it begins, and what it compares with the one before."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from convjax import runlog
from convjax.assemble import Assembled
from convjax.config import TOLD, UserError, differences, digest, read_json, to_dict
from convjax.keeper import Kept
from convjax.runlog import RunLog


def begin(
    log: RunLog, experiment: Assembled, pixels: tuple[np.ndarray, np.ndarray], kept: Kept
) -> None:
    """Cuts the metrics back to what was kept, and notes what the run goes on, or begins, with.

    pixels: mean and standard deviation of the channels of train.

    Raises:
        UserError: if the images are not those that the run began with. Nothing is changed then.
    """
    config, first = experiment.config, kept.step
    splits = {"train": experiment.train, **experiment.judged}
    images = {name: split.size for name, split in splits.items()}
    before, own = log.record(), digest(config)
    differing = differences(read_json(log.config_file), config)
    overridden = any(path not in TOLD for path in differing)
    if first and not overridden:
        _check_same(log, before, images, pixels)
    # First of all: nothing that follows may leave the folder as that of a finished run.
    log.reopen()
    log.cut(first, owes=kept.left.owes)
    if log.lines < kept.lines:
        lost = f"{log.metrics_file} has {log.lines} lines up to step {first}, and had {kept.lines}"
        print(f"warning: {lost}: some are lost, and do not come once more", file=sys.stderr)
    configs = before.get("configs", [])
    log.note(configs=[*configs, *[own] * (own not in configs)])
    if differing:
        log.create(to_dict(config))
    mean, std = pixels
    log.note(
        **runlog.environment(),
        start=before.get("start", runlog.now()),
        resumed=[*before.get("resumed", ()), *([first] if first else ())],
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
    had, then = before.get("images", images), before.get("pixels")
    changed = [
        f"{name} had {had[name]} images and has {count}"
        for name, count in images.items()
        if had.get(name, count) != count
    ]
    # Other machines may round sums otherwise.
    if then and not np.allclose([then["mean"], then["std"]], pixels, rtol=1e-4, atol=1e-6):
        changed.append("the mean and deviation of the pixels of train are others")
    if changed:
        raise UserError(
            f"the data have changed since {log.folder} began: {', '.join(changed)}; bring back "
            "what there was, or give another --workdir"
        )
