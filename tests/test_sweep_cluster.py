"""Sweeps on clusters: trials give what they give alone, and none is lost, or run by two.

Slurm is four commands on PATH that start real jobs, see fake_slurm.py. Ray runs on a network of its
own that has the loopback alone. What goes wrong is in tests/faults/test_failing_jobs.py.
"""

import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from cluster_sweep import alone, attempts_of, base, begin, go_on, has_trained, jobs_of, start

from convjax import run
from convjax.config import UserError
from convjax.runlog import RunLog
from convjax.sweep import cluster, cluster_slurm, remote
from convjax.sweep.space import resolve
from convjax.sweep.store import Store
from convjax.sweep.trial import Outcome

ROOT = Path(__file__).parent.parent
LONG = {"epochs": 25}  # some seconds
WITHOUT_END = {"epochs": 100_000}


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path_factory):
    """The trials are processes of their own."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("CONVJAX_CACHE", str(tmp_path_factory.getbasetemp() / "programs"))
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """The folder of a Slurm's jobs; none is left running."""
    with jobs_of(tmp_path, monkeypatch) as jobs:
        yield jobs


@pytest.fixture
def hasty(monkeypatch):
    """A file system that has no lag."""
    monkeypatch.setattr(cluster_slurm, "_LAG", 0.0)


def steps_of(folder):
    """The steps after which the run of a sweep's only trial was tested."""
    [metrics] = folder.glob("trials/*/metrics.jsonl")
    lines = map(json.loads, metrics.read_text().splitlines())
    return [line["step"] for line in lines if line["split"] == "test"]


def test_a_job_gives_what_the_trial_gives_alone(tmp_path, slurm):
    points = [{"optimizer.learning_rate": rate} for rate in (0.05, 0.2)]
    sweep = begin(tmp_path / "sweep", points)
    with Store(tmp_path / "sweep") as store:
        with cluster.make("slurm", store, sweep, 2, cpus=1) as workers:
            go_on(workers, store, sweep)
        found = [row.result["final"] for row in store.rows(sweep)]
        told = [row.attempts[-1].log.read_text() for row in store.rows(sweep)]
    assert attempts_of(tmp_path / "sweep") == [["finished"], ["finished"]]
    assert all("test accuracy" in text or "compiled" in text for text in told)
    assert found[0]["loss"] != found[1]["loss"]
    run.train(resolve(base(), points[1], 0), tmp_path / "alone", out=io.StringIO())
    alone = RunLog(tmp_path / "alone").record()["final"]
    assert found[1]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert found[1]["accuracy"] == alone["accuracy"]
    assert list((tmp_path / "sweep" / "tasks").iterdir()) == []
    assert "--cpus-per-task=1" in next(tmp_path.glob("sweep/slurm/*_submission.sh")).read_text()


def test_a_job_whose_time_is_up_is_saved_and_goes_on_in_another(tmp_path, slurm):
    sweep = begin(tmp_path / "sweep", [LONG])
    with Store(tmp_path / "sweep") as store:
        with cluster.make("slurm", store, sweep, 1) as workers:
            go_on(workers, store, sweep, until=lambda: has_trained(tmp_path / "sweep"))
            # It asks Slurm for this one, before its time is up.
            os.kill(int((slurm / "1" / "process").read_text()), signal.SIGUSR2)
            go_on(workers, store, sweep)
        [row] = store.rows(sweep)
    first, last = row.attempts
    assert (first.outcome, last.outcome) == ("interrupted", "finished")
    assert first.cause == "Slurm ended job 1 (SIGUSR2)"
    # The step of each test, 8 to an epoch, as though nothing had been.
    assert steps_of(tmp_path / "sweep") == [8 * (1 + epoch) for epoch in range(25)]


@pytest.mark.parametrize(
    ("state", "outcome", "cause"),
    [
        ("OUT_OF_MEMORY", "out_of_memory", "out of memory"),
        ("NODE_FAIL", "killed", "its node failed (NODE_FAIL)"),
        ("TIMEOUT", "killed", "its time was up before it was saved (TIMEOUT)"),
        ("PREEMPTED", "interrupted", "it made room for another (PREEMPTED)"),
        ("CANCELLED by 1000", "killed", "cancelled"),
        ("BOOT_FAIL", "killed", "BOOT_FAIL"),
    ],
)
def test_a_job_that_left_nothing_ended_as_slurm_says(tmp_path, slurm, hasty, state, outcome, cause):
    (slurm / "4711").mkdir()
    (slurm / "4711" / "state").write_text(state)
    tasks = cluster_slurm.SlurmTasks(tmp_path / "slurm", {}, cpus=1, gpus=0)
    assert tasks.ended(tasks.found("4711")) == (outcome, f"job 4711: {cause}", None)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_a_job_that_waits_or_runs_has_not_ended(tmp_path, slurm, hasty, state):
    (slurm / "4711").mkdir()
    (slurm / "4711" / "state").write_text(state)
    tasks = cluster_slurm.SlurmTasks(tmp_path / "slurm", {}, cpus=1, gpus=0)
    assert tasks.ended(tasks.found("4711")) is None


def test_a_trial_that_is_to_be_pruned_is_saved_and_closed(tmp_path, slurm, monkeypatch):
    seen = []

    class Pruning:
        def report(self, claim, step, results):
            seen.append((claim.trial.number, step, sorted(results)))
            return "worse than the median" if step >= 16 and "test" in results else None

    monkeypatch.setattr(cluster, "_pruning", lambda *_: Pruning())
    sweep = begin(tmp_path / "sweep", [WITHOUT_END])
    with Store(tmp_path / "sweep") as store:
        with cluster.make("slurm", store, sweep, 1) as workers:
            go_on(workers, store, sweep)
        [row] = store.rows(sweep)
    assert (row.state, row.attempts[0].cause) == ("pruned", "worse than the median")
    assert row.result["last"]["test"]["step"] >= 16
    assert (0, 8, ["test"]) in seen
    assert all(splits in (["test"], ["train"]) for _, _, splits in seen)


def order_of(tmp_path, **changes):
    note = tmp_path / "note.json"
    order = remote.Order(
        *("mine", {}, str(tmp_path / "run"), str(tmp_path / "log.txt"), str(note)),
        *(None, str(tmp_path), {}, None),
    )
    return order._replace(**changes)


def test_a_task_whose_trial_another_has_does_nothing(tmp_path):
    order = order_of(tmp_path)
    Path(order.note).write_text(json.dumps({"token": "another", "end": None}))
    outcome, cause, _ = remote.attempt(order)
    assert (outcome, cause) == (Outcome.INTERRUPTED, "another attempt at the trial was begun")
    assert not Path(order.log).exists()


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    outcome, cause, _ = remote.attempt(order_of(tmp_path, note=str(tmp_path / "no" / "note.json")))
    assert outcome == Outcome.INTERRUPTED
    assert cause is not None
    assert "cannot use" in cause
    assert "a file system that all machines see" in cause


def test_tasks_that_end_before_they_begin_end_the_sweep(tmp_path, slurm, hasty):
    sweep = begin(tmp_path / "sweep", [{}])
    with Store(tmp_path / "sweep") as store:
        options = {"setup": "echo no such module; exit 1"}
        with (
            pytest.raises(UserError, match=r"3 tasks in a row ended before they began.*job 3: it"),
            cluster.make("slurm", store, sweep, 1, slurm=options) as workers,
        ):
            go_on(workers, store, sweep)
        assert store.counts(sweep) == {"waiting": 1}


def test_what_slurm_does_not_take_ends_the_sweep_at_once(tmp_path, slurm):
    sweep = begin(tmp_path / "sweep", [{}])
    with Store(tmp_path / "sweep") as store:
        with (
            pytest.raises(UserError, match=r"sbatch took no job: .*invalid partition.*see --slurm"),
            cluster.make("slurm", store, sweep, 1, slurm={"partition": "full"}) as workers,
        ):
            go_on(workers, store, sweep)
        assert store.counts(sweep) == {"waiting": 1}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slurm", {"slurm": {"partitoin": "gpu"}}, "--slurm=partitoin=gpu.*mean 'partition'"),
        ("slurm", {"slurm": {"nodes": 2}}, "--slurm=nodes=2: no such option"),
        ("slurm", {"address": "10.0.0.1:6379"}, "give --engine=ray"),
        ("ray", {"slurm": {"partition": "gpu"}}, "--slurm=partition: --engine=ray has no options"),
        ("slurm", {"cpus": 0}, "--cpus=0 --gpus=0: give at least 1 and 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(tmp_path, slurm, name, options, message):
    sweep = begin(tmp_path / "sweep", [{}])
    with Store(tmp_path / "sweep") as store, pytest.raises(UserError, match=message):
        cluster.make(name, store, sweep, 1, **options)


def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    sweep = begin(tmp_path / "sweep", [{}])
    for name, module in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, module, None)
        message = rf"--engine={name} needs {module}: pip install 'convjax\[{name}\]'"
        with Store(tmp_path / "sweep") as store, pytest.raises(UserError, match=message):
            cluster.make(name, store, sweep, 1)


def test_without_slurm_its_engine_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    sweep = begin(tmp_path / "sweep", [{}])
    missing = pytest.raises(UserError, match=r"--engine=slurm: .*srun")
    with Store(tmp_path / "sweep") as store, missing:
        cluster.make("slurm", store, sweep, 1)


def test_a_task_of_ray_ends_as_a_process_does(tmp_path):
    folder = tmp_path / "sweep"
    causes = {
        "well": ("finished", None),
        "segfault": ("killed", "segmentation fault (SIGSEGV)"),
        "memory": ("out_of_memory", "Unable to allocate"),
        "error": ("failed", "RuntimeError: a mistake of whoever wrote the network"),
        "nan": ("diverged", "diverged: 3 steps in a row were skipped"),
    }
    points = [{"model.args.ends": name, "stop.bad_steps": 3} for name in causes]
    begin(folder, points)
    with alone() as network, start(folder, network, name="ray", count=2, tries=1) as process:
        _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    with Store(folder) as store:
        rows = store.rows(1)
    for row, (outcome, cause) in zip(rows, causes.values(), strict=True):
        [attempt] = row.attempts
        assert row.state == outcome, attempt
        assert (cause or "") in (attempt.cause or "")
    run.train(resolve(base(), points[0], 0), tmp_path / "alone", out=io.StringIO())
    final = RunLog(tmp_path / "alone").record()["final"]
    assert rows[0].result["final"]["loss"] == pytest.approx(final["loss"], rel=1e-5)
