"""Jobs of Slurm that crash, hang or are ended: each is written down with its cause.

Slurm is four commands on PATH that start real jobs, see tests/fake_slurm.py.
"""

import io
import json
import os
import signal
from pathlib import Path

import pytest
from cluster_sweep import attempts_of, base, begin, go_on, has_trained, jobs_of, start, wait_until

from convjax import run
from convjax.runlog import RunLog
from convjax.sweep import cluster
from convjax.sweep.space import resolve
from convjax.sweep.store import Store

ROOT = Path(__file__).parents[2]
LONG = {"epochs": 25}  # some seconds
WITHOUT_END = {"epochs": 100_000}

pytestmark = pytest.mark.full


@pytest.fixture
def slurm(monkeypatch, tmp_path, cache):
    """The folder of a Slurm's jobs; none is left running."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("CONVJAX_CACHE", str(cache))
    monkeypatch.setenv("XLA_FLAGS", "")
    with jobs_of(tmp_path, monkeypatch) as jobs:
        yield jobs


def test_what_goes_wrong_in_a_job_is_written_down_with_its_cause(tmp_path, slurm):
    causes = {
        "segfault": ("killed", "segmentation fault (SIGSEGV)"),
        "memory": ("out_of_memory", "Unable to allocate"),
        "error": ("failed", "RuntimeError: a mistake of whoever wrote the network"),
        "nan": ("diverged", "diverged: 3 steps in a row were skipped"),
    }
    points = [{"model.args.ends": name, "stop.bad_steps": 3} for name in causes]
    sweep = begin(tmp_path / "sweep", points)
    with Store(tmp_path / "sweep", tries=1) as store:
        with cluster.make("slurm", store, sweep, 2) as workers:
            go_on(workers, store, sweep)
        rows = store.rows(sweep)
    for row, (outcome, cause) in zip(rows, causes.values(), strict=True):
        [attempt] = row.attempts
        assert row.state == outcome
        assert attempt.cause is not None
        assert cause in attempt.cause


def test_a_job_that_hangs_is_ended(tmp_path, slurm):
    sweep = begin(tmp_path / "sweep", [{"model.args.ends": "hang"}])
    with Store(tmp_path / "sweep", tries=1) as store:
        with cluster.make("slurm", store, sweep, 1, hang_after=4) as workers:
            go_on(workers, store, sweep)
        [row] = store.rows(sweep)
    assert row.state == "hung"
    assert row.attempts[0].cause is not None
    assert row.attempts[0].cause.startswith("no line of metrics in ")
    wait_until(lambda: not remote_processes(tmp_path / "sweep" / "logs"), timeout=5)


def remote_processes(folder):
    """The processes of this machine that write a log in the folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            target = os.readlink(each)
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(each)
    return found


def test_a_trial_that_the_kernel_ends_for_memory_is_out_of_it(tmp_path, slurm):
    sweep = begin(tmp_path / "sweep", [WITHOUT_END])
    with Store(tmp_path / "sweep", tries=1) as store:
        with cluster.make("slurm", store, sweep, 1) as workers:
            go_on(workers, store, sweep, until=lambda: has_trained(tmp_path / "sweep"))
            (slurm / "1" / "becomes").write_text("OUT_OF_MEMORY")
            os.kill(owner(tmp_path / "sweep"), signal.SIGKILL)
            go_on(workers, store, sweep)
        [row] = store.rows(sweep)
    assert row.state == "out_of_memory"
    assert row.attempts[0].cause == "killed (SIGKILL): out of memory?"


def owner(folder):
    """The process that trains."""
    [file] = folder.glob("trials/*/.owner.lock")
    return json.loads(file.read_text())["process"]


def test_a_job_goes_on_though_its_coordinator_is_killed_and_is_found_again(tmp_path, slurm):
    folder = tmp_path / "sweep"
    begin(folder, [LONG])
    with start(folder, name="slurm", count=1) as first:
        wait_until(lambda: has_trained(folder))
        first.kill()
    with start(folder, name="slurm", count=1) as second:
        _, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert attempts_of(folder) == [["interrupted", "finished"]]
    assert len(list(slurm.glob("*/state"))) == 1, "it was not sent again"
    with Store(folder) as store:
        [row] = store.rows(1)
    assert "job 1 goes on" in row.attempts[1].log.read_text()
    run.train(resolve(base(), LONG, 0), tmp_path / "alone", out=io.StringIO())
    alone = RunLog(tmp_path / "alone").record()["final"]
    assert row.result["final"]["accuracy"] == alone["accuracy"]
    assert row.result["final"]["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_a_sweep_that_is_asked_to_end_leaves_saved_runs_and_no_job(tmp_path, slurm):
    folder = tmp_path / "sweep"
    begin(folder, [WITHOUT_END])
    with start(folder, name="slurm", count=1) as process:
        wait_until(lambda: has_trained(folder))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert attempts_of(folder) == [["interrupted"]]
    assert list(folder.glob("trials/*/checkpoints/[0-9]*"))
    wait_until(lambda: (slurm / "1" / "state").read_text() == "COMPLETED", timeout=10)
