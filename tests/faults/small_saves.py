"""Saves of a few small arrays, one after the other as a run makes them, to be broken off anywhere.

  python small_saves.py FOLDER FIRST LAST

Each step adds a line to the metrics, notes its number, saves a checkpoint of which the newest two
stay, and every second one a best model of which the newest stays; then it prints its number.
"""

import sys
from pathlib import Path

import numpy as np

KEEP = 2


def arrays_of(step):
    """What is saved at a step: known to whoever knows the step."""
    draw = np.random.default_rng(step)
    return {
        "params": {
            "conv1": {"kernel": draw.normal(size=(3, 3, 2, 4)).astype(np.float32)},
            # Large enough to lie in a file of its own, of which Orbax has no checksum.
            "dense1": {"kernel": draw.normal(size=(64, 64)).astype(np.float32)},
        },
        "opt": [draw.normal(size=16).astype(np.float16), np.int32(step)],
        "key": draw.integers(0, 2**32, 2, np.uint32),
    }


def about(step):
    return {"seconds": step / 7, "best": [step, 0.5]}


def take(step, log, checkpoints, best):
    """All that is saved at a step."""
    log.log({"step": step, "loss": 1 / step})
    log.sync()
    log.note(status="running", step=step)
    checkpoints.save(step, arrays_of(step), about(step))
    if step % 2 == 0:
        best.save(step, arrays_of(step)["params"])
        for old in best.steps()[:-1]:
            best.delete(old)


def main(folder, first, last):
    from convjax.checkpoint import Checkpoints
    from convjax.runlog import RunLog

    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder)
    if not log.exists():
        log.create({"seed": 1})
    with Checkpoints(log.checkpoints, keep=KEEP) as checkpoints, Checkpoints(log.best) as best:
        for step in range(first, last + 1):
            take(step, log, checkpoints, best)
            print(step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
