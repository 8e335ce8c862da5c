"""Checkpoints: what comes back is what was saved, to the bit, or a list of what differs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
def test_a_save_that_orbax_passes_over_is_an_error(checkpoints, step):
    checkpoints.save(5, STATE)
    with pytest.raises(CheckpointError, match=f"checkpoint {step} was not saved"):
        checkpoints.save(step, STATE)


def test_the_newest_stay(checkpoints):
    for step in (1, 5, 9):
        checkpoints.save(step, STATE | {"flags": np.array([step, 0])})
    assert checkpoints.latest_step() == 9
    state, _ = checkpoints.restore(shapes(STATE | {"flags": np.array([0, 0])}), 5)
    assert state["flags"].tolist() == [5, 0]
    with pytest.raises(CheckpointError, match="has no checkpoint 1: it has 5, 9"):
        checkpoints.restore(shapes(STATE), 1)


def test_an_empty_folder_has_no_checkpoint(checkpoints):
    assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match="has no checkpoint: it has none"):
        checkpoints.restore(shapes(STATE))


@pytest.mark.parametrize("damage", ["empty", "array"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path, damage):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, STATE)
    if damage == "empty":
        (folder / "5").mkdir()
    else:
        for file in (folder / "1" / "state").rglob("*"):
            if file.is_file() and file.stat().st_size:
                file.write_bytes(b"")
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest_step()
        with pytest.raises(CheckpointError, match=f"checkpoint {step} .* cannot be read"):
            checkpoints.restore(shapes(STATE))


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(tmp_path):
    (tmp_path / "checkpoints").write_text("a note")
    with pytest.raises(CheckpointError, match="checkpoints is not a folder"):
        Checkpoints(tmp_path / "checkpoints")
