"""A sweep whose coordinator is stopped goes on to the table that it would have had."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convjax.sweep.store import Store

ROOT = Path(__file__).parents[2]


def table(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("number", "engine"),
    [
        (signal.SIGKILL, "--engine=processes"),
        (signal.SIGTERM, "--engine=vectorised=2"),
        pytest.param(signal.SIGKILL, "--engine=vectorised=2", marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, "--engine=processes", marks=pytest.mark.full),
        pytest.param(signal.SIGKILL, "--engine=auto", marks=pytest.mark.full),
    ],
)
def test_a_sweep_that_was_stopped_goes_on_to_the_same_table(
    tmp_path, monkeypatch, observed, number, engine
):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("CONVJAX_CACHE", str(tmp_path / "programs"))
    words = ["--vary=optimizer.learning_rate=0.05,0.2", "--sampler=grid", "--seeds=2"]
    words += ["--config.model.name=sweep_models:tiny", "--config.data.name=sweep_models:pictures"]
    words += ["--config.batch_size=5", "--config.epochs=40", engine]
    words += ["--workers=2"] * ("vectorised" not in engine)

    def start(folder):
        command = [sys.executable, "-m", "experiments.sweep", *words, f"--workdir={folder}"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "ended") as process:
        assert process.stdout is not None
        process.stdout.readline()  # One trial is finished, another one under way.
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -9)
    if number == signal.SIGTERM:
        with Store(tmp_path / "ended") as store:
            broken_off = {
                store.folder_of(row.trial.digest): each.cause
                for row in store.rows(1)
                for each in row.attempts
                if each.outcome == "interrupted"
            }
        assert broken_off
        for folder, cause in broken_off.items():
            assert cause is not None
            # It may have come while the next trial began, which had saved nothing until then.
            saved = any((folder / "checkpoints").glob("[0-9]*"))
            where = "the last good checkpoint is step" if saved else "nothing was saved yet"
            assert cause.startswith(f"ended by SIGTERM: {where}")
    with start(tmp_path / "ended") as process:
        written = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert "of 4 trials done" in written
    with Store(tmp_path / "ended") as store:
        rows = store.rows(1)
    assert [row.state for row in rows] == ["finished"] * 4
    assert sum(each.outcome == "finished" for row in rows for each in row.attempts) == 4
    with start(tmp_path / "whole") as process:
        process.communicate(timeout=120)
    assert table(tmp_path / "ended")[0].keys() == table(tmp_path / "whole")[0].keys()
    for ended, whole in zip(table(tmp_path / "ended"), table(tmp_path / "whole"), strict=True):
        assert {**ended, "attempts": "", "cause": ""} == {**whole, "attempts": "", "cause": ""}
    observed("a sweep that was stopped, by its coordinator's death too", 1)
