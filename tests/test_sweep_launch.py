"""Sweeps by processes: trials give what they give alone, and what goes wrong is written down."""

import csv
import functools
import io
import os
import subprocess
from pathlib import Path
from unittest import mock

import fake_slurm
import pytest
from cluster_sweep import base

from convjax import run
from convjax.config import Model, UserError, read_json
from convjax.names import trust_as_before, trust_only
from convjax.runlog import RunLog
from convjax.sweep import rehearsal
from convjax.sweep.engines import Engine
from convjax.sweep.launch import NothingFinished, launch, plan
from convjax.sweep.objective import parse
from convjax.sweep.space import Sweep
from convjax.sweep.store import Store
from convjax.sweep.table import best, by_point
from convjax.sweep.trial import Outcome, Row, Trial

ROOT = Path(__file__).parent.parent
RATES = ("optimizer.learning_rate=0.05,0.2",)


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path_factory):
    """The workers are processes of their own."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("CONVJAX_CACHE", str(tmp_path_factory.getbasetemp() / "programs"))
    monkeypatch.setenv("XLA_FLAGS", "")


def table(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_trial_gives_what_it_gives_alone_and_none_is_run_twice(tmp_path):
    folder, out = tmp_path / "sweep", io.StringIO()
    smaller = Sweep(("optimizer.learning_rate=0.05",), base(), seeds=2, sampler="grid")
    launch(smaller, folder, engine="processes", out=out)
    before = {path: path.stat().st_mtime for path in folder.rglob("run.json")}
    assert len(before) == 2
    # A larger space adds what is not there.
    sweep = Sweep(RATES, base(), seeds=2, sampler="grid")
    line = launch(sweep, folder, engine="processes", workers=2, out=out)
    rows = table(folder)
    assert [(row["optimizer.learning_rate"], row["seed"], row["state"]) for row in rows] == [
        *(("0.05", "0", "finished"), ("0.05", "1", "finished")),
        *(("0.2", "0", "finished"), ("0.2", "1", "finished")),
    ]
    told = [text.split()[0] for text in out.getvalue().splitlines()]
    assert told == ["1/2", "2/2", "1/4", "2/4", "3/4", "4/4"]
    assert (folder / "sweep.html").is_file()
    row = rows[3]  # Of another rate, and of another seed.
    log = RunLog(folder / row["folder"])
    config = read_json(log.config_file)
    assert (config.optimizer.learning_rate, config.seed) == (0.2, 1)
    run.train(config, tmp_path / "alone", out=io.StringIO())
    found, alone = log.record()["final"], RunLog(tmp_path / "alone").record()["final"]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert float(row["max test accuracy"]) == found["accuracy"] == alone["accuracy"]
    means = [
        sum(float(row["max test accuracy"]) for row in rows[first : first + 2]) / 2
        for first in (0, 2)
    ]
    assert line.startswith(f"max test accuracy {max(means):.4f} ± ")
    # The same again reads what is there.
    after = {path: path.stat().st_mtime for path in folder.rglob("run.json")}
    again = launch(sweep, folder, engine="processes", out=out)
    assert again.split(", ")[:2] == line.split(", ")[:2]
    assert {path: path.stat().st_mtime for path in folder.rglob("run.json")} == after
    assert before.items() <= after.items()
    assert len(after) == 4


def test_what_goes_wrong_is_written_down_with_its_cause_and_the_rest_goes_on(tmp_path, monkeypatch):
    # What ends the process that tries to build networks, or hangs in it, is left to the trials.
    monkeypatch.setattr(rehearsal, "_PATIENCE", 4.0)
    # That each is tried again is known to tests/test_sweep_store.py.
    monkeypatch.setattr("convjax.sweep.launch.Store", functools.partial(Store, tries=1))
    ends = ("segfault", "hang", "well", "memory", "error", "nan")
    sweep = Sweep((f"model.args.ends={','.join(ends)}",), base(), sampler="grid")
    config = sweep.config
    config.stop.bad_steps = 3
    engine = Engine("processes", workers=2, hang_after=12)
    line = launch(sweep, tmp_path, engine=engine, out=io.StringIO())
    rows = {row["model.args.ends"]: row for row in table(tmp_path)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "well": "finished",
        "segfault": "killed",
        "memory": "out_of_memory",
        "error": "failed",
        "nan": "diverged",
        "hang": "hung",
    }
    for name, cause in {
        "segfault": "segmentation fault (SIGSEGV)",
        "memory": "Unable to allocate",
        "error": "a mistake of whoever wrote the network",
        "nan": "diverged: 3 steps in a row were skipped",
        "hang": "no line of metrics in ",
    }.items():
        assert cause in rows[name]["cause"]
    # What it had started was ended with the worker.
    [log] = (tmp_path / "logs").glob(f"{Path(rows['hang']['folder']).name}-1.txt")
    child = log.read_text().split("started ")[1].split()[0]
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", child], check=False, capture_output=True, text=True
    ).stdout
    assert state == "" or state.startswith("Z"), "it is gone, or nobody asks how it ended"
    assert "6 points x 1 seeds, 1 failed, 1 diverged, 1 out_of_memory, 1 hung, 1 killed" in line


def test_slurm_trains_what_processes_train(tmp_path, monkeypatch):
    for name, value in fake_slurm.install(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("convjax.sweep.cluster_slurm._LAG", 0.0)
    engine = Engine("slurm", workers=1, slurm={"partition": "any"})
    sweep, out = Sweep(("optimizer.learning_rate=0.2",), base(), sampler="grid"), io.StringIO()
    line = launch(sweep, tmp_path / "sweep", engine=engine, out=out)
    [row] = table(tmp_path / "sweep")
    assert row["state"] == "finished"
    best = float(row["max test accuracy"])
    assert line.startswith(f"max test accuracy {best:.4f} at optimizer.learning_rate=0.2")
    assert [text.split()[0] for text in out.getvalue().splitlines()] == ["1/1"]
    assert "--partition=any" in next((tmp_path / "sweep" / "slurm").glob("*.sh")).read_text()


@pytest.mark.parametrize("ends", ["error,well", "error"])
def test_the_first_that_fails_ends_a_sweep_that_is_to_fail_fast_be_it_the_last(tmp_path, ends):
    sweep = Sweep((f"model.args.ends={ends}",), base(), sampler="grid")
    with pytest.raises(UserError, match=r"--fail_fast: [0-9a-f]{16} failed: .*a mistake.*log is"):
        launch(sweep, tmp_path, engine="processes", fail_fast=True, out=io.StringIO())


def test_a_sweep_leaves_the_folder_of_a_population_alone(tmp_path):
    (tmp_path / "population.json").write_text("{}")
    with pytest.raises(UserError, match="is of a population: give another --workdir"):
        launch(Sweep(("epochs=1,2",), base(), sampler="grid"), tmp_path, out=io.StringIO())
    assert [each.name for each in tmp_path.iterdir()] == ["population.json"]


def test_a_point_of_which_a_seed_diverged_has_no_result():
    def row(state, accuracy):
        trial = Trial("0" * 64, {"epochs": 1.0}, 0, {}, 0)
        return Row(trial, state, accuracy and {"final": {"accuracy": accuracy}}, [])

    objective = parse("max test accuracy")
    [found] = by_point([row("finished", 0.5), row("failed", None)], 2, objective)
    assert str(found) == "0.5000 (1 of 2 seeds) at epochs=1.0"
    [found] = by_point([row("finished", 0.9), row("diverged", None)], 2, objective)
    assert found.value is None
    assert best([found], objective) is None


def test_workers_that_end_as_they_begin_end_the_sweep(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(7)")
    sweep = Sweep(RATES, base(), sampler="grid")
    with pytest.raises(UserError, match=r"3 workers in a row ended .*status 7"):
        launch(sweep, tmp_path / "sweep", engine="processes", out=io.StringIO())


def test_a_sweep_of_a_strangers_config_is_refused_and_calls_no_function_of_others(tmp_path):
    sweep = Sweep(RATES, base(), sampler="grid")
    with trust_as_before():
        trust_only(())
        with pytest.raises(UserError, match=r"learning_rate=0\.05 .*another package.*--trust"):
            launch(sweep, tmp_path / "sweep", out=io.StringIO())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("model", "vary", "message"),
    [
        ("small", "model.args.widht=8,16", r"model\.args\.widht=8 .*did you mean 'width'"),
        ("sweep_models:tiyn", "epochs=1,2", r"epochs=1\.0 .*no function 'tiyn'.*mean 'tiny'"),
    ],
)
def test_a_mistake_that_only_the_network_shows_is_told_before_a_folder_is_made(
    tmp_path, model, vary, message
):
    config = base()
    config.model = Model(model)
    sweep = Sweep([vary], config, sampler="grid")
    with pytest.raises(UserError, match=message):
        launch(sweep, tmp_path / "sweep")
    with pytest.raises(UserError, match=message):
        plan(sweep)
    assert not (tmp_path / "sweep").exists()


def test_what_has_failed_is_run_once_more_when_it_is_asked_for(tmp_path, monkeypatch):
    sweep, told = Sweep(("model.args.ends=error",), base(), sampler="grid"), io.StringIO()
    for retry, attempts in (((), "1"), ((), "1"), ((Outcome.FAILED,), "2")):
        with pytest.raises(NothingFinished, match=r"^max test accuracy of no trial, .*1 failed"):
            launch(sweep, tmp_path, engine="processes", retry=retry, out=told)
        [row] = table(tmp_path)
        assert (row["state"], row["attempts"]) == ("failed", attempts)
    # A table that cannot be written ends nothing.
    with monkeypatch.context() as patch:
        patch.setattr("convjax.durable.replace", mock.Mock(side_effect=OSError(28, "no room")))
        with pytest.raises(NothingFinished):
            launch(sweep, tmp_path, engine="processes", out=told)
    assert "results.csv cannot be written (no room)" in told.getvalue()
    assert told.getvalue().count("1/1 ") == 2, "each time it had ended it was told"
    log = next((tmp_path / "logs").glob("*-2.txt")).read_text()
    assert "Traceback" in log


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (Sweep(RATES, trials=None), "--trials is missing: give a number of points for tpe"),
        (Sweep(RATES, sampler="gird"), "--sampler=gird: did you mean 'grid'"),
        (Sweep(RATES, sampler="grid", objective="max test los"), "did you mean 'loss'"),
        (
            Sweep(RATES, sampler="grid", pruner="halvign"),
            "--pruner=halvign: did you mean 'halving'",
        ),
        (Sweep(RATES, sampler="grid", seeds=0), "--seeds=0: give 1 or more"),
    ],
)
def test_a_sweep_that_cannot_be_is_told_before_a_folder_is_made(tmp_path, sweep, message):
    with pytest.raises(UserError, match=message):
        launch(sweep, tmp_path / "sweep")
    with pytest.raises(UserError, match=message):
        plan(sweep)
    assert not (tmp_path / "sweep").exists()


def test_a_plan_says_what_would_be_run(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = base()
    config.epochs = 3
    sweep = Sweep(RATES, config, seeds=3, sampler="grid", pruner="median")
    text = plan(sweep, Engine("processes", workers=2))
    assert text.splitlines() == [
        "2 points by grid, 3 seeds each: 6 trials, max test accuracy, pruned by median",
        "processes: 2 workers, cores 0 and so on",
        "  optimizer.learning_rate=0.05",
        "  optimizer.learning_rate=0.2",
    ]
