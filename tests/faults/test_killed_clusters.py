"""Sweeps on clusters of which parts are killed: they end as though nothing had been."""

import io
import os
import signal
from pathlib import Path

import fake_slurm
import pytest
from cluster_sweep import alone, attempts_of, base, begin, has_trained, start, wait_until

from convjax import run
from convjax.runlog import RunLog
from convjax.sweep.space import resolve
from convjax.sweep.store import Store

ROOT = Path(__file__).parents[2]
POINTS = [{"epochs": 40}, {"epochs": 40, "optimizer.learning_rate": 0.05}]

pytestmark = pytest.mark.full


@pytest.fixture(params=["slurm", "ray"])
def engine(request, monkeypatch, tmp_path, cache):
    """engine(folder): starts a sweep that is there on a cluster."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("CONVJAX_CACHE", str(cache))
    monkeypatch.setenv("XLA_FLAGS", "")
    if request.param == "slurm":
        for name, text in fake_slurm.install(tmp_path).items():
            monkeypatch.setenv(name, text)
        yield lambda folder, **options: start(folder, name="slurm", count=1, **options)
    else:
        with alone() as network:
            yield lambda folder, **options: start(folder, network, name="ray", count=1, **options)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_whose_coordinator_is_ended_goes_on_to_the_same_results(
    engine, tmp_path, observed, number
):
    folder = tmp_path / "sweep"
    begin(folder, POINTS)
    with engine(folder) as first:
        wait_until(lambda: has_trained(folder))
        first.send_signal(number)
        _, errors = first.communicate(timeout=100)
    assert first.returncode == (143 if number == signal.SIGTERM else -9), errors
    if number == signal.SIGTERM:
        assert attempts_of(folder) == [["interrupted"], []]
    with engine(folder) as second:
        _, errors = second.communicate(timeout=100)
    assert second.returncode == 0, errors
    assert attempts_of(folder) == [["interrupted", "finished"], ["finished"]]
    with Store(folder) as store:
        results = [row.result["final"] for row in store.rows(1)]
    for place, (point, final) in enumerate(zip(POINTS, results, strict=True)):
        run.train(resolve(base(), point, 0), tmp_path / f"{place}", out=io.StringIO())
        alone = RunLog(tmp_path / f"{place}").record()["final"]
        assert final["accuracy"] == alone["accuracy"]
        assert final["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    observed("a cluster's coordinator that was ended", 1)


def test_a_trial_that_hangs_is_ended_and_the_next_one_runs(engine, tmp_path, observed):
    folder = tmp_path / "sweep"
    begin(folder, [{"model.args.ends": "hang"}, {}])
    with engine(folder, hang_after=20, tries=1) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert attempts_of(folder) == [["hung"], ["finished"]]
    observed("a trial on a cluster that hung", 1)


def test_a_trial_whose_process_is_killed_is_tried_again(engine, tmp_path, observed):
    folder = tmp_path / "sweep"
    begin(folder, POINTS)
    with engine(folder) as process:
        wait_until(lambda: has_trained(folder))
        log = next(folder.glob("logs/*-1.txt")).read_text()
        # That of Ray or of the job, with which the one that trains ends.
        os.kill(int(log.split("process ")[1].split()[0]), signal.SIGKILL)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert attempts_of(folder) == [["killed", "finished"], ["finished"]]
    observed("a task of a cluster killed", 1)


@pytest.mark.parametrize("engine", ["slurm"], indirect=True)
def test_a_job_that_waits_for_a_machine_keeps_its_place(engine, tmp_path, observed):
    folder, jobs = tmp_path / "sweep", tmp_path / "jobs"
    begin(folder, [{}])
    (jobs / "full").touch()
    with engine(folder) as first:
        wait_until(lambda: '"job": "1"' in "".join(map(Path.read_text, folder.glob("tasks/*"))))
        first.kill()
    (jobs / "full").unlink()
    with engine(folder) as second:
        _, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert attempts_of(folder) == [["interrupted", "finished"]]
    assert len(list(jobs.glob("*/state"))) == 1
    observed("a coordinator killed while its job waited", 1)
