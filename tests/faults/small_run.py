"""A training run of 24 cheap steps with everything that a resume must bring back, and its hooks.

  SMALL_RUN='{"pause": 0.02}' python -m experiments.train --config=tests/faults/small_run.py

Batch norm, dropout, augmentation, mixing, momentum, a schedule, an average, a loss scale, a valid
split with patience and a best model; a save every 3 steps, evaluations that fall between saves.

`SMALL_RUN` in the environment, an object of JSON, makes the run observable from outside:

  trace    a file that gets a line for each step: its number, its images, its key
  pause    seconds that each step takes longer
  slow     a phase of SLOW, with `at`, the how manyth time, `seconds`, and `sign`, a file that is
           made when it has begun
  done     a file that gets a line for each step, when it is taken
  stop     steps after whose save the process kills itself
  gate     a file for which the first step waits
"""

import functools
import hashlib
import itertools
import json
import os
import signal
import time
from pathlib import Path

from convjax.config import (
    Augment,
    Average,
    Checkpoint,
    Data,
    Experiment,
    Model,
    Optimizer,
    Stop,
)

STEPS = 24


def get_config() -> Experiment:
    return Experiment(
        name="small",
        epochs=3,
        batch_size=12,
        eval_batch_size=16,
        eval_every_steps=4,
        log_every_steps=2,
        precision="float16",
        model=Model("small_run:network"),
        data=Data("small_run:images", valid="valid"),
        optimizer=Optimizer(
            "sgd",
            learning_rate=0.05,
            weight_decay=1e-3,
            schedule="cosine",
            warmup_steps=3,
            clip_norm=1.0,
            args={"momentum": 0.9, "nesterov": True},
        ),
        augment=Augment(("crop(1)", "flip"), "mixup(0.2)"),
        average=Average(0.9, reestimate=True),
        stop=Stop(patience=50),
        checkpoint=Checkpoint(every_steps=3, keep=2, best="loss"),
    )


def images(split, data_dir):
    """Three splits of small images whose class shows in their brightness."""
    import numpy as np

    from convjax.data import Dataset

    watch(os.environ.get("SMALL_RUN", "{}"))
    number, size = {"train": (0, 100), "valid": (1, 20), "test": (2, 30)}[split]
    draw = np.random.default_rng(number)
    labels = draw.integers(0, 3, size, np.int32)
    pixels = draw.integers(0, 120, (size, 8, 8, 3)) + 60 * labels[:, None, None, None]
    return Dataset(pixels.astype(np.uint8), labels, ("dark", "grey", "light"))


def network(classes):
    from convjax import batch_norm, conv, dense, dropout, flatten, max_pool, relu, serial

    return serial(
        *(conv(4, 3), batch_norm(), relu, max_pool(2)),
        *(flatten, dropout(0.3), dense(classes)),
    )


@functools.cache  # There are three splits, and one process to be watched.
def watch(text):
    """Puts what is asked for around functions of the package, which is imported by now."""
    asked = json.loads(text)
    from convjax.checkpoint import Checkpoints
    from convjax.session import Session

    if "slow" in asked:
        sign, at, seconds = (asked["slow"][key] for key in ("sign", "at", "seconds"))
        times = itertools.count(1)

        def reached():
            if next(times) == at:
                Path(sign).touch()
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    time.sleep(min(0.05, max(end - time.monotonic(), 0)))

        SLOW[asked["slow"]["phase"]](reached)
    if "gate" in asked:
        before(Session, "take_steps", lambda *_: wait_for(asked["gate"]))
    if "pause" in asked:
        before(Session, "take_steps", lambda *_: time.sleep(asked["pause"]))
    if "trace" in asked:
        before(Session, "take_steps", functools.partial(trace, asked["trace"]))
    if "done" in asked:
        after(Session, "take_steps", lambda *_: add_line(asked["done"], "a step"))
    if "stop" in asked:
        after(Checkpoints, "save", functools.partial(stop, asked["stop"]))


def trace(file, session, first, count, state):
    """Adds a line: which step, the images that it sees, and the key of its noise."""
    import jax
    import numpy as np

    batch, *_ = session.feed.take(first, count)
    pixels = hashlib.sha256(np.asarray(batch.images).tobytes()).hexdigest()
    line = [first, np.asarray(batch.numbers).tolist(), pixels]
    line += [np.asarray(batch.labels).tolist(), jax.random.key_data(state.key).tolist()]
    add_line(file, json.dumps(line))


def add_line(file, text):
    with open(file, "a") as lines:
        lines.write(text + "\n")


def stop(steps, checkpoints, step, *_):
    """Kills the process once the run's checkpoint of one of these steps is on the disk."""
    if step in steps and checkpoints.folder.name == "checkpoints":
        checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for(file):
    while not os.path.exists(file):
        time.sleep(0.01)


def before(owner, name, hook):
    function = getattr(owner, name)

    @functools.wraps(function)
    def both(*arguments, **keywords):
        hook(*arguments)
        return function(*arguments, **keywords)

    setattr(owner, name, both)


def after(owner, name, hook):
    function = getattr(owner, name)

    @functools.wraps(function)
    def both(*arguments, **keywords):
        value = function(*arguments, **keywords)
        hook(*arguments)
        return value

    setattr(owner, name, both)


def loading(reached):
    reached()


def compiling(reached):
    import jax

    before(jax.stages.Lowered, "compile", lambda *_: reached())


def training(reached):
    from convjax.session import Session

    before(Session, "take_steps", lambda *_: reached())


def evaluating(reached):
    """In the middle of an evaluation, before the batch after the first."""
    import convjax.judge

    evaluate = convjax.judge.evaluate

    def slowly(step, model, batches, *rest):
        def slow():
            for number, batch in enumerate(batches):
                if number == 1:
                    reached()
                yield batch

        return evaluate(step, model, slow(), *rest)

    convjax.judge.evaluate = slowly


def concluding(reached):
    from convjax.judge import Judge

    before(Judge, "conclude", lambda *_: evaluating(reached))


def saving(reached):
    """In the middle of a save, when something of it is to be on the disk."""
    fsync = os.fsync

    def slow(file):
        if "checkpoints" in os.readlink(f"/proc/self/fd/{file}"):
            reached()
        fsync(file)

    os.fsync = slow


def waiting_for_data(reached):
    from convjax.data.examples import InMemory

    before(InMemory, "__getitem__", lambda *_: reached())


SLOW = {
    "loading": loading,
    "compiling": compiling,
    "training": training,
    "evaluating": evaluating,
    "saving": saving,
    "waiting for data": waiting_for_data,
    "concluding": concluding,
}
