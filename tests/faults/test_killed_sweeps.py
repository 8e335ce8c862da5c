"""Sweeps whose workers are killed: each trial's result is there, once, and right."""

import collections
import os
import random
import signal
import subprocess
import sys
import time

from small_sweep import begin, result_of, trial_of
from started import HERE, ended, environment, lines_of

from convjax.sweep.store import Store

PAUSE = 0.1  # seconds between two kills


def start(folder, seed):
    return subprocess.Popen(
        [sys.executable, str(HERE / "small_sweep.py"), str(folder), str(seed), str(PAUSE)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that all of it can be killed at once
    )


def finish(folder, seed):
    """Runs the sweep to its end; returns how many workers were killed."""
    status, out, errors = ended(start(folder, seed), timeout=300)
    assert status == 0, errors
    return int(out)


def check(folder, sweep, count):
    """Every trial has one result, which is right; returns how many attempts were killed."""
    with Store(folder) as store:
        assert store.counts(sweep) == {"finished": count}
        rows = store.rows(sweep)
        assert [(row.trial, row.result) for row in rows] == [
            (trial, result_of(trial)) for trial in map(trial_of, range(count))
        ]
    audit = collections.Counter(lines_of(folder / "audit"))
    for row in rows:
        *before, last = [attempt.outcome for attempt in row.attempts]
        assert (set(before) <= {"killed"}, last) == (True, "finished"), row
        assert [attempt.number for attempt in row.attempts] == [*range(1, len(before) + 2)]
        assert 1 <= audit[f"began {row.trial.name}"] <= len(row.attempts)
        # A worker may be killed between its commit and its line; none is there twice.
        assert audit[f"finished {row.trial.name}"] <= 1
        *_, step = lines_of(folder / "trials" / row.trial.name / "steps")
        assert step == f"attempt {len(row.attempts)}"
        for one, other in zip(row.attempts, row.attempts[1:]):
            assert one.ended is not None
            assert one.ended <= other.began
    assert {line.split()[0] for line in audit} == {"began", "finished"}, "none had one together"
    return sum(len(row.attempts) - 1 for row in rows)


def test_of_a_sweep_whose_workers_are_killed_each_trial_finishes_once(tmp_path, repeats, observed):
    count = repeats(60, 1000)
    sweep = begin(tmp_path, count)
    kills = finish(tmp_path, seed=0)
    lost = check(tmp_path, sweep, count)
    assert kills > 0
    assert lost <= kills
    observed(f"a worker of 4 killed every {PAUSE} s", kills, f"{count} trials, {lost} in the midst")


def test_a_sweep_of_which_all_is_killed_at_once_goes_on(tmp_path, repeats, observed):
    times, draw = repeats(3, 20), random.Random(0)
    count = 40 * times
    sweep = begin(tmp_path, count)
    for seed in range(times):
        sweep_process = start(tmp_path, seed)
        finished = len(lines_of(tmp_path / "audit"))
        while len(lines_of(tmp_path / "audit")) < finished + 2:
            assert sweep_process.poll() is None, sweep_process.communicate()
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        os.killpg(sweep_process.pid, signal.SIGKILL)
        sweep_process.communicate()
    with Store(tmp_path) as store:
        assert store.counts(sweep).keys() & {"waiting", "running"}, "there was something to lose"
    finish(tmp_path, seed=times)
    check(tmp_path, sweep, count)
    observed("all processes of a sweep killed at once", times, f"{count} trials")
