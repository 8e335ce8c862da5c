"""A saved config of a stranger calls nothing that could do harm, unless it is trusted."""

import json
from pathlib import Path

import pytest

from convjax.config import Experiment, to_dict
from convjax.flags import guard
from experiments import train


def canary_calls(folder):
    """Paths and values that would make or remove a folder, wherever a config names functions."""
    made, kept = folder / "canary", folder / "kept"
    return {
        "augment.parts": [f"os:mkdir({str(made)!r})"],
        "augment.mix": f"os:mkdir({str(made)!r})",
        "test_time": "test_hostile_configs:canary",
        "model.name": "test_hostile_configs:canary",
        "model.args": {"norm": "test_hostile_configs:canary"},
        "data.name": "test_hostile_configs:canary",
        "optimizer.name": "test_hostile_configs:canary",
        "start.images": "test_hostile_configs:canary",
        # Functions that a module of ours has among its names, and ours that touch files.
        "augment": {"parts": [f"convjax.durable:remove_tree({str(kept)!r})"]},
        "augment.parts ": [f"convjax.models.registry:imported('os:mkdir', {str(made)!r})"],
        "augment.parts  ": [f" os : mkdir({str(made)!r})"],
    }


PATHS = list(canary_calls(Path()))


def canary(*_, **__):
    open("canary", "x").close()
    return None


def run(folder, path, value, *words):
    config = to_dict(Experiment(epochs=0.01))
    *sections, name = path.split(".")
    section = config
    for each in sections:
        section = section[each]
    section[name.strip()] = value if not isinstance(value, dict) else section[name] | value
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    arguments = ["train", f"--config={file}", f"--workdir={folder / 'run'}", *words]
    return guard(train.main, arguments)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", PATHS)
def test_a_saved_config_calls_no_function_of_others(folder, capsys, observed, path):
    assert run(folder, path, canary_calls(folder)[path]) == 2
    assert not (folder / "canary").exists()
    assert (folder / "kept").is_dir()
    assert not (folder / "run").exists()
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    observed("a stranger's config.json that names a function", 1)


@pytest.mark.parametrize("path", ["augment.parts", "model.name", "data.name"])
def test_what_is_trusted_is_called(folder, capsys, path):
    value = canary_calls(folder)[path]
    assert run(folder, path, value) == 2
    assert "--trust" in capsys.readouterr().err
    assert run(folder, path, value, "--trust") == 2  # It is called, and is no network.
    assert (folder / "canary").exists()


def test_a_function_that_is_written_on_the_command_line_is_called(folder):
    name = "test_hostile_configs:canary"
    assert run(folder, "seed", 1, f"--config.model.name={name}") == 2
    assert (folder / "canary").exists()


def test_a_saved_config_may_name_functions_of_our_rooms(folder, capsys):
    path, value = "start.images", "convjax.models.airbench:whitened"
    assert run(folder, path, value, "--dry_run", "--config.model.name=airbench94") == 0, (
        capsys.readouterr().err
    )
