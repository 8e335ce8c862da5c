"""Writes that fail: the run ends with the path that is in the way, and loses nothing."""

import os
import shutil
import subprocess

import pytest
from small_run import STEPS
from started import ended, finish, newest_step, outcome, start

SAVED = "checkpoints/.9.unfinished"
# What fails, in which file, from the how manyth time on: of a run that goes on at step 6. Where no
# file is named it is any; only what is brought to the disk is, and Orbax's files among it.
FAULTS = [
    ("write", "ENOSPC", "metrics.jsonl", 3),
    ("fsync", "EIO", None, 14),
    ("fsync", "ENOSPC", "metrics.jsonl", 1),
    ("write", "EIO", "metrics.jsonl", 1),
    ("write", "EACCES", "metrics.jsonl", 9),
    ("write", "ENOSPC", ".run.json.unfinished", 1),
    ("fsync", "EIO", ".run.json.unfinished", 2),
    ("write", "EACCES", ".run.json.unfinished", 2),
    ("write", "ENOSPC", f"{SAVED}/.manifest.json.unfinished", 1),
    ("write", "EIO", f"{SAVED}/.manifest.json.unfinished", 1),
    ("fsync", "EACCES", f"{SAVED}/.manifest.json.unfinished", 1),
    ("fsync", "ENOSPC", SAVED, 1),
    ("fsync", "EIO", "checkpoints", 1),
    ("fsync", "EIO", None, 1),
    ("fsync", "EIO", None, 20),
    ("fsync", "EACCES", None, 8),
    ("fsync", "ENOSPC", None, 30),
    ("mkdir", "ENOSPC", SAVED, 1),
    ("mkdir", "EACCES", None, 1),
    ("rename", "EIO", None, 2),
    ("rename", "ENOSPC", None, 5),
]
ROOM = (0, 1, 2, 3, 5, 8, 12, 20, 30, 45)  # pages of 4 KiB that a full disk still has


def check_failed(workdir, status, errors):
    """It has ended with one line that names the path, and what it had saved is whole."""
    # Threads of Orbax that fail say so in their own words before.
    *_, line = errors.splitlines()
    assert status not in (0, None)
    assert line.startswith("error: "), errors
    assert str(workdir) in line
    assert newest_step(workdir) in (6, 9, 12, 15, 18, 21, 24)


def check_goes_on(workdir, cache, undisturbed):
    step = newest_step(workdir)
    assert f"going on at step {step} of {STEPS}" in finish(workdir, cache=cache)
    assert outcome(workdir) == undisturbed()[0]


def fail(begun, workdir, cache, strace, call, error, name, number):
    """Goes on with a copy of the run, whose system calls fail."""
    shutil.copytree(begun, workdir)
    calls = {"write": "write,pwrite64", "fsync": "fsync,fdatasync", "mkdir": "?mkdir,mkdirat"}
    calls |= {"rename": "?rename,?renameat,renameat2"}
    inject = f"{calls[call]}:error={error}:when={number}+"
    only = () if name is None else ("-P", str(workdir / name))
    words = [strace, "-f", "-qq", "-o", f"{workdir}.calls", "-e", f"trace={calls[call]}"]
    run = start(workdir, cache=cache, before=[*words, *only, "-e", f"inject={inject}"])
    status, _, errors = ended(run)
    assert "(INJECTED)" in (workdir.parent / f"{workdir.name}.calls").read_text()
    check_failed(workdir, status, errors)


@pytest.mark.parametrize("fault", FAULTS[:1], ids=str)
def test_a_run_whose_disk_fails_names_the_path_and_keeps_what_it_saved(
    begun, tmp_path, cache, strace, observed, fault
):
    fail(begun, tmp_path / "run", cache, strace, *fault)
    observed("a write, fsync, mkdir or rename that fails", 1)


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_run_goes_on_once_the_disk_works_again(
    begun, tmp_path, cache, strace, undisturbed, observed, fault
):
    fail(begun, tmp_path / "run", cache, strace, *fault)
    check_goes_on(tmp_path / "run", cache, undisturbed)
    observed("a write, fsync, mkdir or rename that fails", 1, "ENOSPC, EIO and EACCES")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system can be mounted by root alone: {error}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk, pages):
    """Fills a file system but for so many pages; returns the file that does it."""
    size, ballast = os.sysconf("SC_PAGE_SIZE"), disk / "ballast"
    free = shutil.disk_usage(disk).free // size
    ballast.write_bytes(bytes(size * (free - pages)))
    assert shutil.disk_usage(disk).free == size * pages
    return ballast


def run_out_of_room(begun, disk, cache, pages):
    workdir = disk / "run"
    shutil.copytree(begun, workdir)
    ballast = fill(disk, pages)
    # More of a network than there is room for, three times: of every third step.
    status, _, errors = ended(start(workdir, cache=cache))
    check_failed(workdir, status, errors)
    ballast.unlink()
    return workdir


def test_a_run_on_a_full_disk_names_the_path_and_keeps_what_it_saved(
    begun, small_disk, cache, observed
):
    workdir = run_out_of_room(begun, small_disk, cache, ROOM[5])
    had, has = newest_step(begun), newest_step(workdir)
    assert had is not None
    assert has is not None
    assert has >= had
    observed("a full file system", 1)


@pytest.mark.full
@pytest.mark.parametrize("pages", ROOM)
def test_a_run_goes_on_once_there_is_room_again(
    begun, small_disk, cache, undisturbed, observed, pages
):
    workdir = run_out_of_room(begun, small_disk, cache, pages)
    check_goes_on(workdir, cache, undisturbed)
    observed("a full file system", 1, f"with {ROOM[0]} to {ROOM[-1]} free pages")
