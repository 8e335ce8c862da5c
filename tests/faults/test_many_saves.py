"""Saves and lines of metrics without end: what a process holds, and its folder, does not grow."""

import json
import subprocess
import sys

import pytest
from small_saves import KEEP
from started import HERE, environment, on_one_core

# TensorStore 0.1.86 keeps about 1 KB of each array of each save (`KvStore.Spec.to_json`).
LEAK = 12_000


def held_over(folder, kind, count):
    """What a process holds at ten times, while it does something so often."""
    words = [sys.executable, str(HERE / "many_saves.py"), str(folder), kind, str(count)]
    with on_one_core():
        run = subprocess.run(words, check=True, capture_output=True, text=True, env=environment())
    held = [json.loads(line) for line in run.stdout.splitlines()]
    assert [each["count"] for each in held] == [count // 10 * part for part in range(1, 11)]
    return held


def check_flat(held, memory):
    """Nothing grows between the first time and the last, but memory by so many bytes."""
    first, last = held[0], held[-1]
    assert last["handles"] == first["handles"]
    assert last["threads"] <= first["threads"] + 2
    assert last["memory"] - first["memory"] < memory, held


def check_saves(folder, count):
    held = held_over(folder, "saves", count)
    check_flat(held, memory=4_000_000 + LEAK * count)
    assert all(each["disk"] < 1.1 * held[0]["disk"] for each in held)
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert left == {str(step) for step in range(count - KEEP + 1, count + 1)}
    return held


def check_lines(folder, count):
    held = held_over(folder, "lines", count)
    check_flat(held, memory=4_000_000)
    assert {each["files"] for each in held} == {2}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in (lines[0], lines[-1])] == [1, count]
    assert len(lines) == count
    return held


def told(held):
    """How much the memory of a process has grown, as a note."""
    return f"{(held[-1]['memory'] - held[0]['memory']) / 2**20:+.0f} MiB of memory"


def test_saves_and_lines_leave_disk_handles_and_memory_as_they_were(tmp_path, observed):
    observed("saves, one after the other", 60, told(check_saves(tmp_path / "saves", 60)))
    observed("lines of metrics", 20_000, told(check_lines(tmp_path / "lines", 20_000)))


@pytest.mark.full
def test_ten_thousand_saves_leave_disk_handles_and_memory_as_they_were(tmp_path, observed):
    observed("saves, one after the other", 10_000, told(check_saves(tmp_path / "saves", 10_000)))


@pytest.mark.full
def test_a_million_lines_leave_handles_and_memory_as_they_were(tmp_path, observed):
    held = check_lines(tmp_path / "lines", 1_000_000)
    observed("lines of metrics", 1_000_000, told(held))
