"""Runs that are killed as the kernel kills, and go on by the same command: to the same bits."""

import json
import random
import shutil
import time

import pytest
from small_run import STEPS
from started import ended, finish, kill, lines_of, outcome, record, start

KILLS = 5  # in one test of the full number


def kill_at_random(folder, cache, draw, kills):
    """Starts one run again and again, and kills it, until it has ended or was killed so often.

    Returns the steps that it had begun when it was killed.
    """
    trace, at = folder / "trace", []
    while len(at) < kills:
        run = start(folder / "run", cache=cache, pause=0.02, trace=trace)
        seen = len(lines_of(trace))
        if draw.random() < 0.4:
            # While Python loads, the folder is looked at, programs are read, or at any step.
            time.sleep(draw.uniform(0.1, 5.0))
        else:
            more = draw.randint(1, 9)
            while run.poll() is None and len(lines_of(trace)) < seen + more:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.06))
        kill(run)
        if run.returncode == 0:
            break
        assert run.returncode == -9
        at.append(len(lines_of(trace)) - seen)
    return at


def check_killed(folder, cache, undisturbed, draw, kills):
    at: list[int] = []
    while len(at) < kills:
        place = folder / str(len(at))
        place.mkdir()
        at += kill_at_random(place, cache, draw, kills - len(at))
        finish(place / "run", cache=cache)
        assert outcome(place / "run") == undisturbed()[0], at
    return at


def test_a_run_killed_at_random_moments_ends_as_though_it_never_was(
    tmp_path, cache, undisturbed, observed
):
    at = check_killed(tmp_path, cache, undisturbed, random.Random(0), 3)
    observed("kill -9 at a random moment of a run", len(at))


@pytest.mark.full
@pytest.mark.parametrize("part", range(10))
def test_a_run_killed_often_ends_as_though_it_never_was(
    tmp_path, cache, undisturbed, observed, part
):
    at = check_killed(tmp_path, cache, undisturbed, random.Random(part), KILLS)
    observed("kill -9 at a random moment of a run", len(at))


EVERY_STEP = ("--config.checkpoint.every_steps=1", "--config.log_every_steps=1")


def check_taken_up(folder, cache, undisturbed, steps, *words):
    """Kills a run after the save of each of these steps, and takes it up in a new process."""
    trace = folder / "trace"
    for step in steps:
        run = start(folder / "run", *words, cache=cache, trace=trace, stop=[step])
        status, _, errors = ended(run)
        assert status == -9, errors
    out = finish(folder / "run", *words, cache=cache, trace=trace)
    assert f"going on at step {steps[-1]} of {STEPS}" in out
    assert record(folder / "run")["resumed"] == steps
    left, seen = undisturbed(*words)
    assert [first for first, *_ in seen] == list(range(STEPS))
    assert [json.loads(line) for line in lines_of(trace)] == seen
    # Rate, loss and accuracy of the steps are in the metrics.
    assert outcome(folder / "run") == left


def test_a_run_taken_up_at_a_step_sees_the_same_samples_rate_keys_and_loss(
    tmp_path, cache, undisturbed, observed
):
    check_taken_up(tmp_path, cache, undisturbed, [6, 15])
    observed("resumed in a new process at a step of 24", 2, "steps 6, 15")


@pytest.mark.full
@pytest.mark.parametrize("part", range(3))
def test_a_run_taken_up_at_every_step_sees_the_same_samples_rate_keys_and_loss(
    tmp_path, cache, undisturbed, observed, part
):
    """Each part takes up every third step, so that 3 steps are taken between two."""
    steps = list(range(1 + part, STEPS, 3))
    check_taken_up(tmp_path, cache, undisturbed, steps, *EVERY_STEP)
    observed("resumed in a new process at a step of 24", len(steps), "every step")


@pytest.mark.full
def test_a_run_whose_folder_moved_goes_on_where_it_lies(begun, tmp_path, cache, undisturbed):
    """A folder holds all that a run is: nothing in it names a place."""
    shutil.copytree(begun, tmp_path / "there")
    assert f"going on at step 6 of {STEPS}" in finish(tmp_path / "there", cache=cache)
    assert outcome(tmp_path / "there") == undisturbed()[0]


@pytest.mark.full
def test_the_comparison_sees_another_seed(tmp_path, cache, undisturbed):
    """What is compared differs where a run does: so the tests above can fail."""
    finish(tmp_path / "run", "--config.seed=1", cache=cache, trace=tmp_path / "trace")
    found, (expected, seen) = outcome(tmp_path / "run"), undisturbed()
    assert found.keys() == expected.keys()
    for name in ("digest", "metrics", "final", "checkpoints/params/", "checkpoints/opt/"):
        names = [each for each in found if each == name or each.startswith(name)]
        assert any(found[each] != expected[each] for each in names), name
    for line, other in zip(lines_of(tmp_path / "trace"), seen):
        first, *others = json.loads(line)
        assert first == other[0]
        assert all(a != b for a, b in zip(others, other[1:])), first
