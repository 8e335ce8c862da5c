"""Many processes that are started on one run's folder at once: one trains, the others say who."""

import socket
import time

import pytest
from started import ended, finish, kill, outcome, record, start, wait_until


def check_one_wins(folder, cache, count):
    """Starts so many, of which the one that trains waits until the others have ended."""
    workdir, gate = folder / "run", folder / "gate"
    runs = [start(workdir, cache=cache, gate=gate) for _ in range(count)]
    try:
        end = time.monotonic() + 30 + 8 * count
        while sum(run.poll() is None for run in runs) > 1 and time.monotonic() < end:
            time.sleep(0.02)
        [winner] = [run for run in runs if run.poll() is None]
        for run in runs:
            if run is not winner:
                status, out, errors = ended(run)
                assert (status, out) == (2, ""), errors
                [line] = errors.splitlines()
                assert line.startswith(f"error: {workdir} belongs to process {winner.pid} on ")
                assert socket.gethostname() in line
        wait_until((workdir / "run.json").exists, winner)
        assert record(workdir)["status"] == "running"
        gate.touch()
        assert ended(winner)[0] == 0
    finally:
        for run in runs:
            if run.poll() is None:
                kill(run)


def test_of_processes_started_at_once_one_trains_and_the_others_say_who(
    tmp_path, cache, undisturbed, observed
):
    check_one_wins(tmp_path, cache, 3)
    assert outcome(tmp_path / "run") == undisturbed()[0]
    observed("processes started on one folder at once", 3)


@pytest.mark.full
@pytest.mark.parametrize("count", [2, 5, 8, 13, 20, 50, 100])
def test_of_many_processes_started_at_once_one_trains_and_the_others_say_who(
    tmp_path, cache, undisturbed, observed, count
):
    check_one_wins(tmp_path, cache, count)
    assert outcome(tmp_path / "run") == undisturbed()[0]
    observed("processes started on one folder at once", count, "2 to 100 at once")


@pytest.mark.full
def test_the_folder_of_a_process_that_was_killed_is_free_again(
    tmp_path, cache, undisturbed, observed
):
    for _ in range(5):
        run = start(tmp_path / "run", cache=cache, gate=tmp_path / "gate")
        wait_until((tmp_path / "run/run.json").exists, run)
        kill(run)
    finish(tmp_path / "run", cache=cache)
    assert outcome(tmp_path / "run") == undisturbed()[0]
    observed("killed while it owned the folder, which is free at once", 5)
