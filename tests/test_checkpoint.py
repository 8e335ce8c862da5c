"""Checkpoints: what comes back is what was saved, to the bit, or a list of what differs."""

import errno
import functools
import hashlib
import json
import os
import shutil
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import durable
from convjax.checkpoint import CheckpointError, Checkpoints


class Pair(NamedTuple):
    first: Any
    second: Any


STATE = {
    "params": {"conv1": {"kernel": jnp.arange(6.0).reshape(2, 3) / 7, "bias": jnp.zeros(3)}},
    "opt": Pair((jnp.int32(5), None), {"m": jnp.ones((2, 2), jnp.bfloat16) / 3}),
    "key": jax.random.key(11),
    "flags": np.array([True, False]),
}


def shapes(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as found:
        yield found


def test_what_is_restored_is_what_was_saved_to_the_bit(checkpoints, tmp_path):
    extra = {"seconds": 0.1 + 0.2, "loss": [float("nan"), 1, "x"]}
    checkpoints.save(3, STATE, extra)
    with Checkpoints(tmp_path / "checkpoints") as again:
        state, found = again.restore(shapes(STATE))
    assert jax.tree.structure(state) == jax.tree.structure(STATE)
    assert jax.random.key_data(state["key"]).tolist() == jax.random.key_data(STATE["key"]).tolist()
    assert jax.random.uniform(state["key"]) == jax.random.uniform(STATE["key"])
    del state["key"]
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(STATE | {"key": None})):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert found["seconds"] == extra["seconds"]
    assert found["loss"][1:] == [1, "x"]


def test_every_difference_of_path_shape_and_dtype_is_listed(checkpoints):
    checkpoints.save(1, STATE)
    other = shapes(STATE)
    other["params"] = {
        "conv1": {
            "kernel": jax.ShapeDtypeStruct((3, 3), jnp.float32),
            "bias": jax.ShapeDtypeStruct((3,), jnp.float16),
        },
        "conv2": {"bias": jax.ShapeDtypeStruct((3,), jnp.float32)},
    }
    del other["flags"]
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(other)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "params/conv1/kernel: float32[3,3] in the tree, float32[2,3] given" in lines
    assert "params/conv1/bias: float16[3] in the tree, float32[3] given" in lines
    assert "only in the tree: params/conv2/bias float32[3]" in lines
    assert "only in what was given: flags bool[2]" in lines


def test_a_part_is_restored_when_the_rest_is_dropped(checkpoints):
    checkpoints.save(1, STATE)
    like = {"params": shapes(STATE["params"])}
    found, _ = checkpoints.restore(like, drop=("opt/*", "key", "flags"))
    np.testing.assert_array_equal(
        found["params"]["conv1"]["kernel"], STATE["params"]["conv1"]["kernel"]
    )


@pytest.mark.parametrize("step", [4, 5])
def test_a_save_of_an_older_step_is_an_error(checkpoints, step):
    checkpoints.save(5, STATE)
    with pytest.raises(CheckpointError, match=f"checkpoint {step} was not saved"):
        checkpoints.save(step, STATE)


def test_the_newest_stay(checkpoints):
    for step in (1, 5, 9):
        checkpoints.save(step, STATE | {"flags": np.array([step, 0])})
    assert checkpoints.newest() == 9
    state, _ = checkpoints.restore(shapes(STATE | {"flags": np.array([0, 0])}), 5)
    assert state["flags"].tolist() == [5, 0]
    with pytest.raises(CheckpointError, match="has no checkpoint 1: it has 5, 9"):
        checkpoints.restore(shapes(STATE), 1)


def test_an_empty_folder_has_no_checkpoint(checkpoints):
    assert checkpoints.newest() is None
    with pytest.raises(CheckpointError, match="has no checkpoint: it has none"):
        checkpoints.restore(shapes(STATE))


def test_the_manifest_says_what_was_saved(tmp_path):
    with Checkpoints(tmp_path, config="abc") as checkpoints:
        checkpoints.save(3, STATE)
        known = checkpoints.manifest()
    page = json.loads((tmp_path / "3" / "manifest.json").read_text())["content"]
    assert page["leaves"]["params/conv1/kernel"] == ["float32", [2, 3]]
    assert page["leaves"]["opt/second/m"] == ["bfloat16", [2, 2]]
    assert (known.step, known.config) == (3, "abc")
    assert known.made["versions"]["jax"] == jax.__version__
    assert (known.made["devices"], known.made["processes"]) == (jax.device_count(), 1)
    files = {path for path in (tmp_path / "3").rglob("*") if path.is_file()}
    assert {tmp_path / "3" / name for name in known.files} == files - {
        tmp_path / "3" / "manifest.json"
    }
    for name, (size, digest) in known.files.items():
        content = (tmp_path / "3" / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)


def largest(folder):
    return max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": lambda step: flip(largest(step / "state")),
    "shorter": lambda step: os.truncate(largest(step / "state"), 10),
    "missing": lambda step: largest(step / "state").unlink(),
    "manifest": lambda step: flip(step / "manifest.json"),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "empty": lambda step: shutil.rmtree(step) or step.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(tmp_path, damage):
    for step in (1, 5):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, STATE | {"flags": np.array([step, 0])})
    DAMAGES[damage](tmp_path / "5")
    told = []
    with Checkpoints(tmp_path, tell=told.append) as checkpoints:
        state, _ = checkpoints.restore(shapes(STATE | {"flags": np.array([0, 0])}))
        assert state["flags"].tolist() == [1, 0]
        checkpoints.save(5, STATE)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "5", "damaged-5"}
    [text] = told
    assert str(tmp_path / "5") in text
    assert "damaged-5" in text


def test_whoever_only_reads_passes_a_damaged_checkpoint_over_and_touches_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 5):
            checkpoints.save(step, STATE | {"flags": np.array([step, 0])})
    flip(largest(tmp_path / "5" / "state"))
    (tmp_path / ".7.unfinished").mkdir()
    before = sorted(tmp_path.rglob("*"))
    told = []
    with Checkpoints(tmp_path, reads=True, tell=told.append) as checkpoints:
        assert checkpoints.read("flags")["flags"].tolist() == [1, 0]
    assert sorted(tmp_path.rglob("*")) == before
    assert len(told) == 1


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(checkpoints):
    checkpoints.save(1, STATE)
    with Checkpoints(checkpoints.folder) as again:
        flip(largest(checkpoints.folder / "1" / "state"))
        with pytest.raises(CheckpointError, match=r"checkpoint 1 .* is damaged: .* SHA-256"):
            again.restore(shapes(STATE), 1)


def test_what_was_cut_short_is_taken_away(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE)
    for name in (".5.unfinished", ".3.removed"):
        shutil.copytree(tmp_path / "1", tmp_path / name)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_what_a_thread_saves_is_what_the_arrays_held_then(tmp_path):
    array = np.arange(4.0)
    with Checkpoints(tmp_path, background=True, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"a": array}, {"step": step})
            array += 100
    with Checkpoints(tmp_path) as checkpoints:
        found, extra = checkpoints.restore({"a": array})
    assert (found["a"].tolist(), extra) == ([100, 101, 102, 103], {"step": 2})
    assert checkpoints.steps() == [2]


@pytest.mark.parametrize("asked", ["check", "wait", "save"])
def test_what_a_thread_fails_at_is_raised_at_the_next_occasion(tmp_path, monkeypatch, asked):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path, background=True) as checkpoints:
        checkpoints.save(1, STATE)
        checkpoints.wait()
        monkeypatch.setattr(durable, "sync_tree", full)
        checkpoints.save(2, STATE)
        saving = checkpoints._saving
        assert saving is not None
        while asked == "check" and not saving.done():
            time.sleep(0.01)
        ask = functools.partial(checkpoints.save, 3, STATE)
        with pytest.raises(CheckpointError, match=r"/2 cannot be written \(No space left"):
            (ask if asked == "save" else getattr(checkpoints, asked))()
        monkeypatch.undo()
        assert checkpoints.newest() == 1
        assert not list(tmp_path.glob(".*"))
        checkpoints.save(3, STATE)


def test_an_older_checkpoint_goes_only_when_the_newer_is_there(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, STATE)
        monkeypatch.setattr(durable, "sync", lambda path: 1 / 0)
        with pytest.raises(CheckpointError, match="cannot be written"):
            checkpoints.save(2, STATE)
        monkeypatch.undo()
        assert checkpoints.newest() == 1


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(tmp_path):
    (tmp_path / "checkpoints").write_text("a note")
    with pytest.raises(CheckpointError, match="checkpoints is not a folder"):
        Checkpoints(tmp_path / "checkpoints")
