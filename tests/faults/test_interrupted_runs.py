"""SIGTERM and Ctrl-C in every phase of a run: it saves what is finished, ends, and can go on."""

import os
import random
import signal
import time

import pytest
from small_run import STEPS
from started import ended, finish, lines_of, newest_step, outcome, record, start, wait_until

STREAMED = ("--config.data.view=whole(8, 8)", "--config.data.eval_view=whole(8, 8)")
# Of each phase how often it comes in a run.
TIMES = {
    "loading": 1,
    "compiling": 2,
    "training": STEPS,
    "evaluating": 16,
    "saving": 40,
    "waiting for data": 200,
    "concluding": 2,
}
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
PROMPTLY = 6.0  # seconds in which a run ends, on a busy machine, what it was doing included


def words_of(phase):
    return STREAMED if phase == "waiting for data" else ()


def interrupt(folder, cache, phase, at, number, seconds=0.5, twice=False):
    """Starts a run and sends it a signal once it is in that phase; returns how long it took."""
    sign, done = folder / "sign", folder / "done"
    sign.unlink(missing_ok=True)
    slow = {"phase": phase, "at": at, "seconds": seconds, "sign": sign}
    run = start(folder / "run", *words_of(phase), cache=cache, slow=slow, done=done, pause=0.01)
    wait_until(sign.exists, run)
    begun = time.monotonic()
    # Ctrl-C reaches every process of a terminal, and `kill` the one that it names.
    send = os.killpg if number == signal.SIGINT else os.kill
    send(run.pid, number)
    if twice:
        time.sleep(0.3)
        begun = time.monotonic()
        send(run.pid, number)
    status, _, errors = ended(run)
    took = time.monotonic() - begun
    assert status == STATUS[number], (status, errors)
    return took, errors


def check_interrupted(folder, cache, phase, at, number):
    """After one signal the last finished step is saved."""
    took, errors = interrupt(folder, cache, phase, at, number)
    assert took < PROMPTLY
    assert len(errors.splitlines()) == 1, errors
    if phase != "loading":  # There is no folder then.
        assert record(folder / "run")["status"] == "interrupted"
        assert (newest_step(folder / "run") or 0) == len(lines_of(folder / "done"))


def check_interrupted_twice(folder, cache, phase, at, number):
    """After two signals nothing is saved, and no minute is waited."""
    took, _ = interrupt(folder, cache, phase, at, number, seconds=60, twice=True)
    assert took < 1


def test_a_run_interrupted_again_and_again_ends_as_though_it_never_was(
    tmp_path, cache, undisturbed, observed
):
    check_interrupted(tmp_path, cache, "training", 11, signal.SIGTERM)
    check_interrupted(tmp_path, cache, "evaluating", 3, signal.SIGINT)
    check_interrupted_twice(tmp_path, cache, "training", 4, signal.SIGTERM)
    finish(tmp_path / "run", cache=cache)
    assert outcome(tmp_path / "run") == undisturbed()[0]
    observed("SIGTERM or SIGINT while training", 1)
    observed("SIGTERM or SIGINT while evaluating", 1)
    observed("SIGTERM or SIGINT twice", 1)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", TIMES)
def test_a_signal_in_any_phase_saves_the_last_finished_step(
    tmp_path, cache, undisturbed, observed, phase, number
):
    draw = random.Random(f"{phase} {number}")
    for each in range(5):
        at = draw.randint(1, TIMES[phase])
        folder = tmp_path / str(each)
        folder.mkdir()
        check_interrupted(folder, cache, phase, at, number)
        finish(folder / "run", *words_of(phase), cache=cache)
        assert outcome(folder / "run") == undisturbed(*words_of(phase))[0], at
    observed(f"SIGTERM or SIGINT while {phase}", 5)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", TIMES)
def test_a_second_signal_ends_a_run_at_once_in_any_phase(
    tmp_path, cache, undisturbed, observed, phase, number
):
    draw = random.Random(f"twice {phase} {number}")
    for each in range(2):
        at = draw.randint(1, TIMES[phase])
        folder = tmp_path / str(each)
        folder.mkdir()
        check_interrupted_twice(folder, cache, phase, at, number)
        finish(folder / "run", *words_of(phase), cache=cache)
        assert outcome(folder / "run") == undisturbed(*words_of(phase))[0], at
    observed("SIGTERM or SIGINT twice", 2)
