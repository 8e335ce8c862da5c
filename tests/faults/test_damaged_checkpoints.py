"""Checkpoints whose files are changed behind the run's back: found out, put aside, told."""

import os
import random
import shutil

import pytest
import started
from small_saves import about, arrays_of
from test_killed_saves import assert_equal

from convjax.checkpoint import CheckpointError, Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints 3 and 5."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        for step in (3, 5):
            checkpoints.save(step, arrays_of(step), about(step))
    return folder


def flip_a_bit(file, draw):
    content = bytearray(file.read_bytes())
    if not content:
        return False
    at = draw.randrange(8 * len(content))
    content[at // 8] ^= 1 << at % 8
    file.write_bytes(content)
    return f"bit {at}"


def truncate(file, draw):
    size = file.stat().st_size
    if size:
        os.truncate(file, draw.randrange(size))
    return bool(size)


def lengthen(file, draw):
    with open(file, "ab") as more:
        more.write(draw.randbytes(draw.randrange(1, 50)))
    return True


def zero(file, draw):
    size = file.stat().st_size
    file.write_bytes(bytes(size))
    return bool(size)


def delete(file, draw):
    file.unlink()
    return True


def make_a_folder(file, draw):
    file.unlink()
    file.mkdir()
    return True


DAMAGES = (flip_a_bit, flip_a_bit, flip_a_bit, truncate, lengthen, zero, delete, make_a_folder)


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def test_a_damaged_file_is_never_taken_for_what_was_saved(saved, tmp_path, repeats, observed):
    """Each file of a checkpoint in turn, each kind of damage in turn, at random places."""
    names = [path.relative_to(saved / "5") for path in files_of(saved / "5")]
    assert {"manifest.json", "state/manifest.ocdbt", "state/_METADATA"} <= set(map(str, names))
    counts: dict[str, int] = {}
    for number in range(repeats(25, 500)):
        draw = random.Random(number)
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        file = folder / "5" / names[number % len(names)]
        damage = DAMAGES[(number // len(names) + number) % len(DAMAGES)]
        where = damage(file, draw)
        if not where:
            continue  # An empty file has no bit to flip.
        told: list[str] = []
        with Checkpoints(folder, tell=told.append) as checkpoints:
            newest = checkpoints.newest()
            state, extra = checkpoints.restore(arrays_of(1))
            # A blank that became another in a page of JSON is nothing that was saved.
            assert newest == 3 or file.name == "manifest.json", (number, damage, file, where)
            assert_equal(state, arrays_of(newest))
            assert extra == about(newest)
            if newest == 3:
                [line] = told
                assert str(folder / "5") in line
                assert checkpoints.steps() == [3]
                assert (folder / "damaged-5").is_dir()
                checkpoints.save(5, arrays_of(5))  # The number is free again.
                assert_equal(checkpoints.restore(arrays_of(1))[0], arrays_of(5))
        shutil.rmtree(folder)
        name = damage.__name__.replace("_", " ")
        counts[name] = counts.get(name, 0) + 1
    for name, count in counts.items():
        observed(f"{name}: in a file of a checkpoint", count)


@pytest.mark.parametrize("left", ["nothing", "a file", "only the manifest", "no manifest"])
def test_a_folder_with_the_name_of_a_step_is_no_checkpoint(saved, tmp_path, left, observed):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    false = folder / "7"
    if left == "a file":
        false.write_text("7")
    else:
        false.mkdir()
    if left == "only the manifest":
        shutil.copy(folder / "5" / "manifest.json", false)
    elif left == "no manifest":
        shutil.copytree(folder / "5" / "state", false / "state")
    told: list[str] = []
    with Checkpoints(folder, tell=told.append) as checkpoints:
        assert checkpoints.newest() == 5
        assert_equal(checkpoints.restore(arrays_of(1))[0], arrays_of(5))
    assert len(told) == 1
    assert str(false) in told[0]
    observed("a folder or file named as a step, that is none", 1)


def test_a_whole_checkpoint_of_another_step_is_not_taken(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    (folder / "3").rename(folder / "8")
    told: list[str] = []
    with Checkpoints(folder, tell=told.append) as checkpoints:
        assert checkpoints.newest() == 5
    assert str(folder / "8") in told[0]


def test_all_that_is_damaged_is_told_and_nothing_is_made_up(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in (3, 5):
        flip_a_bit(folder / str(step) / "state" / "manifest.ocdbt", random.Random(step))
    told: list[str] = []
    with Checkpoints(folder, tell=told.append) as checkpoints:
        assert checkpoints.newest() is None
        with pytest.raises(CheckpointError, match="has no checkpoint"):
            checkpoints.restore(arrays_of(1))
    assert len(told) == 2


def test_a_reader_passes_over_what_is_damaged_and_changes_nothing(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    flip_a_bit(next(iter(files_of(folder / "5" / "state" / "d"))), random.Random(1))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    told: list[str] = []
    with Checkpoints(folder, reads=True, tell=told.append) as checkpoints:
        assert_equal(checkpoints.restore(arrays_of(1))[0], arrays_of(3))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert str(folder / "5") in told[0]


def test_a_flipped_bit_would_go_unnoticed_without_the_manifest(saved, tmp_path, monkeypatch):
    """The damage of these tests is a real one: Orbax itself restores other numbers, and is silent.

    So the tests above can fail.
    """
    wrong = 0
    monkeypatch.setattr("convjax.manifest.check_files", lambda folder, manifest: None)
    largest = max(files_of(saved / "5" / "state"), key=lambda path: path.stat().st_size)
    for number in range(12):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        flip_a_bit(folder / largest.relative_to(saved), random.Random(number))
        with Checkpoints(folder) as checkpoints:
            try:
                assert_equal(checkpoints.restore(arrays_of(1))[0], arrays_of(5))
            except AssertionError:
                wrong += 1
            except CheckpointError:
                pass
    assert wrong


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(
    begun, tmp_path, cache, undisturbed, observed
):
    workdir = tmp_path / "run"
    shutil.copytree(begun, workdir)
    largest = max(files_of(workdir / "checkpoints/6/state"), key=lambda path: path.stat().st_size)
    flip_a_bit(largest, random.Random(3))
    status, out, errors = started.ended(started.start(workdir, cache=cache))
    assert status == 0, errors
    assert "going on at step 3 of 24" in out
    assert str(workdir / "checkpoints/6") in out + errors
    assert started.outcome(workdir) == undisturbed()[0]
    observed("a run that goes on from the checkpoint before a damaged one", 1)
