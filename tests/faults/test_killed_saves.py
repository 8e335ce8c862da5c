"""A process that is killed at each of its calls that change names, or wait for the disk."""

import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from small_saves import KEEP, about, arrays_of
from started import HERE, ended, environment, on_one_core

from convjax.checkpoint import Checkpoints
from convjax.runlog import RunLog

SAVES = 4
# strace counts each of these by itself, and for each thread.
CALLS = {
    "rename": ("rename", "renameat", "renameat2"),
    "fsync": ("fsync", "fdatasync"),
    "mkdir": ("mkdir", "mkdirat"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
}
AT_ONCE = 10  # kills in one test


class Killed(NamedTuple):
    """How far a process came: steps that it had saved, and whether it was killed at all."""

    saved: int
    killed: bool


def save_until(strace, folder, call, number):
    """Saves until a thread begins its `number`-th such call, at which all are killed."""
    calls = ",".join(f"?{name}" for name in CALLS[call])  # Not every machine has all of them.
    inject = ("-f", "-qq", "-e", f"trace={calls}", "-o", f"{folder}.calls")
    words = [strace, *inject, "-e", f"inject={calls}:signal=KILL:when={number}"]
    words += [sys.executable, str(HERE / "small_saves.py"), str(folder), "1", str(SAVES)]
    with on_one_core():
        run = subprocess.Popen(
            words,
            env=environment(PYTHONDONTWRITEBYTECODE="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    status, out, errors = ended(run)
    assert status in (0, -9), errors
    return Killed(len(out.splitlines()), status == -9)


def check(folder, saved):
    """What must hold of the folder of a process that had saved so many steps when it was killed."""
    # The step that was under way is there as a whole, or not at all.
    steps, log = (saved, min(saved + 1, SAVES)), RunLog(folder)
    assert log.record().get("step", 0) in steps
    assert [line["step"] for line in log.metrics()] in [[*range(1, step + 1)] for step in steps]
    if not log.exists():
        assert saved == 0
        return
    with Checkpoints(log.checkpoints, keep=KEEP) as checkpoints:
        newest = checkpoints.newest()
        assert (newest or 0) in steps
        if newest is not None:
            check_restored(checkpoints, newest)
        again = (newest or 0) + 1
        checkpoints.save(again, arrays_of(again), about(again))
        check_restored(checkpoints, again)
        assert checkpoints.steps() == [step for step in (newest, again) if step]
    with Checkpoints(log.best) as best:
        assert (best.newest() or 0) in {step // 2 * 2 for step in steps}
        for step in best.steps():
            found = best.restore(arrays_of(step)["params"], step)[0]
            assert_equal(found, arrays_of(step)["params"])
    for kept in (log.checkpoints, log.best):
        assert all(path.name.isdecimal() for path in kept.iterdir()), "nothing unfinished is left"


def check_restored(checkpoints, step):
    state, extra = checkpoints.restore(arrays_of(step))
    assert_equal(state, arrays_of(step))
    assert extra == about(step)


def assert_equal(found, expected):
    if isinstance(expected, dict | list):
        keys = expected if isinstance(expected, dict) else range(len(expected))
        assert len(found) == len(expected)
        for key in keys:
            assert_equal(found[key], expected[key])
    else:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize(("call", "number"), [("rename", 12), ("fsync", 45), ("unlink", 9)])
def test_a_process_killed_while_it_saves_leaves_the_newest_step_whole(
    strace, tmp_path, call, number, observed
):
    saved, killed = save_until(strace, tmp_path / "run", call, number)
    assert killed
    check(tmp_path / "run", saved)
    observed(f"killed at the K-th {call} of saving", 1)


@pytest.mark.full
@pytest.mark.parametrize(
    ("call", "first"),
    [
        *(("fsync", first) for first in range(1, 150, AT_ONCE)),
        *(("rename", first) for first in range(1, 40, AT_ONCE)),
        *(("unlink", first) for first in range(1, 80, AT_ONCE)),
        *(("mkdir", first) for first in range(1, 20, AT_ONCE)),
    ],
)
def test_a_process_killed_at_each_call_leaves_the_newest_step_whole(
    strace, tmp_path, call, first, observed
):
    kills = 0
    for number in range(first, first + AT_ONCE):
        folder = tmp_path / str(number)
        saved, killed = save_until(strace, folder, call, number)
        if not killed:
            assert saved == SAVES
            break  # There is no such call any more: every K was tried.
        check(folder, saved)
        kills += 1
    observed(f"killed at the K-th {call} of saving", kills, "every K")
