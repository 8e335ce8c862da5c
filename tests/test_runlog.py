"""The files of a run: whole or not there, and cut back where a run goes on."""

import json
import subprocess
from datetime import datetime, timedelta

import jax
import numpy as np
import pytest

from convjax import runlog
from convjax.runlog import RunLog


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path / "deep" / "run")
    log.create({"seed": 0})
    return log


def test_a_run_begins_with_its_config(tmp_path):
    log = RunLog(tmp_path / "run")
    assert not log.exists()
    assert log.is_free()
    log.create({"seed": 3})
    assert log.exists()
    assert not log.is_free()
    assert json.loads(log.config_file.read_text()) == {"seed": 3}
    assert [each.name for each in log.folder.iterdir()] == ["config.json"]


def test_only_a_folder_that_holds_nothing_is_free(tmp_path):
    assert RunLog(tmp_path).is_free()
    (tmp_path / ".config.json.unfinished").touch()  # What a kill at the very beginning leaves.
    assert RunLog(tmp_path).is_free()
    (tmp_path / "notes.txt").touch()
    assert not RunLog(tmp_path).is_free()
    assert not RunLog(tmp_path / "notes.txt").is_free()


def test_notes_are_added_and_replaced(log):
    assert log.record() == {}
    log.note(status="running", start="now")
    log.note(status="finished", digest="ab")
    assert log.record() == {"status": "finished", "start": "now", "digest": "ab"}


def test_a_file_that_fails_to_be_written_leaves_the_old_one(log):
    log.note(status="running")
    with pytest.raises(TypeError):
        log.note(status=object())
    assert log.record() == {"status": "running"}


def test_what_is_no_number_becomes_null(log):
    log.note(final={"loss": float("nan"), "rates": [float("inf"), 0.1]})
    assert json.loads(log.run_file.read_text()) == {"final": {"loss": None, "rates": [None, 0.1]}}
    log.log({"step": 1, "loss": float("nan")})
    assert log.metrics() == [{"step": 1, "loss": None}]


def test_metrics_are_one_object_a_line(log):
    assert log.metrics() == []
    lines = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for line in lines:
        log.log(line)
    log.sync()
    assert log.metrics() == lines
    assert [json.loads(line) for line in log.metrics_file.read_text().splitlines()] == lines


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo', '{"step": 4}'])
def test_a_line_that_was_cut_short_is_passed_over_and_cut(log, torn):
    for step in (1, 2, 3):
        log.log({"step": step})
    with open(log.metrics_file, "a") as file:
        file.write(torn)
    assert [line["step"] for line in log.metrics()] == [1, 2, 3]
    log.cut(2)
    log.log({"step": 3, "again": True})
    expected = [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert [json.loads(line) for line in log.metrics_file.read_text().splitlines()] == expected


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(log):
    log.metrics_file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is no line .*: mend it"):
        log.metrics()


def test_the_environment_names_versions_devices_and_cores():
    found = runlog.environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) >= {"python", "jaxlib", "optax", "orbax-checkpoint", "convjax"}
    assert found["platform"] == "cpu"
    assert len(found["devices"]) == jax.device_count()
    assert found["processes"] == 1
    assert found["cores"] >= 1
    json.dumps(found)


def test_the_source_revision_is_that_of_git(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    assert runlog.source_revision(package) is None
    git("init")
    assert runlog.source_revision(package) is None
    (package / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first", "--no-verify")
    revision = git("rev-parse", "HEAD")
    assert runlog.source_revision(package) == {"revision": revision, "dirty": False}
    (package / "a.py").write_text("2")
    assert runlog.source_revision(package) == {"revision": revision, "dirty": True}
    installed = tmp_path / "site-packages" / "package"
    installed.mkdir(parents=True)
    assert runlog.source_revision(installed) is None


def test_the_time_is_iso_8601_in_utc():
    assert datetime.fromisoformat(runlog.now()).utcoffset() == timedelta(0)
