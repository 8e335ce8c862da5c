"""NaN and infinities planted in loss, gradients, statistics and parameters, at steps by chance."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import ops, run, tree
from convjax.combine import serial
from convjax.config import Checkpoint, Data, Experiment, Model, Optimizer, Stop
from convjax.data import Dataset
from convjax.layers import batch_norm, conv, dense
from convjax.runlog import RunLog
from convjax.session import Diverged
from convjax.training import optimizer as optimizers
from convjax.training import schedule, watch
from convjax.training.average import moving_average
from convjax.training.loss import cross_entropy
from convjax.training.metrics import to_host
from convjax.training.optimizer import hyper_of
from convjax.training.state import init_state
from convjax.training.step import Batch, make_step

STEPS, PATIENCE = 16, 4
SPEC = jax.ShapeDtypeStruct((8, 4, 4, 2), jnp.float32)
ARGS = {"momentum": 0.9}


def length(x):
    """Adds the length of each picture, whose slope is 0 / 0 for a blank one."""
    return x + jnp.sqrt(jnp.square(x).sum((1, 2, 3), keepdims=True))


def stretched(x):
    """Each picture from 0 to 1: 0 / 0 for one of a single colour."""
    low, high = (of((1, 2, 3), keepdims=True) for of in (x.min, x.max))
    return (x - low) / (high - low)


def network(classes, first=length):
    return serial(
        *(conv(3, 3, bias=False), first, batch_norm(), ops.relu),
        *(ops.flatten, dense(classes)),
    )


def brittle(classes):
    return serial(stretched=stretched, net=network(classes))


def batch(number):
    draw = np.random.default_rng(number)
    images = draw.standard_normal(SPEC.shape, np.float32)
    return Batch(images, draw.integers(0, 5, len(images)).astype(np.int32))


def in_a_picture(value):
    def plant(good):
        images = good.images.copy()
        images[3] = value
        return good._replace(images=images), 0.05

    return plant


# What is planted, as a function of the batch to one with it and the learning rate; and the first
# thing that is computed of it and is bad.
FAULTS = {
    "the loss": (lambda good: (good._replace(labels=good.labels + 5), 0.05), "loss"),
    "a gradient": (in_a_picture(0), "gradient of conv1/kernel"),
    "statistics: NaN": (in_a_picture(np.nan), "batch statistic norm1/mean"),
    "statistics: infinity": (in_a_picture(-np.inf), "batch statistic norm1/mean"),
    "parameters": (lambda good: (good, np.inf), "parameter conv1/kernel"),
}


@functools.cache
def program():
    sgd = optimizers.make("sgd", schedule.make("constant", steps=STEPS), args=ARGS)
    net = network(5)
    step = make_step(net, sgd, cross_entropy, average=moving_average(0.9), patience=PATIENCE)
    begin = init_state(net, sgd, jax.random.key(0), SPEC, hyper(0.05), averaged=True)
    return jax.jit(step), begin


def hyper(rate):
    return hyper_of(rate, args=ARGS)


def kept(state):
    return state.params, state.state, state.opt, state.average


def test_numbers_that_are_planted_harm_no_step_but_their_own(repeats, observed):
    """What is left of a run is, to the bit, that of its good steps alone."""
    step, begin = program()
    planted = 0
    for seed in range(repeats(6, 30)):
        draw = np.random.default_rng(seed)
        share = draw.choice([0.2, 0.5, 0.8])
        plan = [draw.choice(list(FAULTS)) if draw.random() < share else "" for _ in range(STEPS)]
        state = good = begin
        row, skipped, told = [], 0, -1
        names = watch.names(begin.params, begin.state)
        for number, fault in enumerate(plan):
            over = len(row) >= PATIENCE
            given, rate = FAULTS[fault][0](batch(number)) if fault else (batch(number), 0.05)
            state, metrics = step(state, given, hyper(rate))
            if fault and not over:
                told = told if row else names.index(FAULTS[fault][1])
                row, skipped = [*row, number], skipped + 1
            elif not over:
                row = []
                good, _ = step(good._replace(step=jnp.int32(number)), given, hyper(rate))
            assert to_host(metrics)[2:] == (0 if fault or over else 8, bool(fault) and not over)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept(state)))
            expected = (skipped, len(row), row[0] if row else -1, told)
            assert tuple(map(int, state.watch)) == expected, (seed, plan)
            assert watch.diverged(state.watch, PATIENCE) == (len(row) >= PATIENCE)
        assert tree.digest(kept(state)) == tree.digest(kept(good)), (seed, plan)
        planted += skipped
    what = "NaN planted in loss, gradients, statistics, parameters"
    note = f"{planted} of {repeats(6, 30) * STEPS} steps skipped, all else as without them"
    observed(what, repeats(6, 30), note)


def pictures(split, data_dir, blank=1):
    """Of those to train on, so many are of a single colour."""
    training = split == "train"
    images = np.random.default_rng(training).integers(0, 200, (40, 4, 4, 1), np.uint8)
    images[: blank if training else 0] = 255
    return Dataset(images, np.arange(40, dtype=np.int32) % 3, ("a", "b", "c"))


blank = functools.partial(pictures, blank=40)


def experiment(data):
    return Experiment(
        epochs=3,
        batch_size=5,
        eval_batch_size=40,
        log_every_steps=8,
        model=Model("test_numbers:brittle"),
        data=Data(f"test_numbers:{data}"),
        optimizer=Optimizer("sgd", 0.05),
        stop=Stop(bad_steps=3),
        checkpoint=Checkpoint(every_steps=2),
    )


def test_a_run_passes_over_a_bad_picture_in_each_epoch(tmp_path, observed):
    run.train(experiment("pictures"), tmp_path, out=io.StringIO())
    log = RunLog(tmp_path)
    assert (log.record()["status"], log.record()["skipped"]) == ("finished", 3)
    train = [line for line in log.metrics() if line["split"] == "train"]
    assert [line["skipped"] for line in train] == [1, 1, 1]
    assert [line["count"] for line in train] == [35, 35, 35]
    assert all(np.isfinite(line["loss"]) for line in log.metrics())
    observed("a bad picture in each epoch of a run", 1, "3 steps skipped, all else finite")


@pytest.mark.parametrize("debug", [False, True])
def test_a_run_of_bad_pictures_ends_as_diverged(tmp_path, observed, debug):
    with pytest.raises(Diverged) as error:
        run.train(experiment("blank"), tmp_path, out=io.StringIO(), debug_nans=debug)
    told = (
        "step 0: stretched (stretched) is the first whose output is not finite"
        if debug
        else "diverged: 3 steps in a row were skipped, the first is step 0, where the batch "
        "statistic net/norm1/mean was not finite"
    )
    assert str(error.value).startswith(told)
    record = RunLog(tmp_path).record()
    assert record["status"] == "diverged"
    assert told in record["error"]
    observed("a run of bad pictures alone", 1, "told with step and layer")
