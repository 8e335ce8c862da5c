"""A run is a folder: its config, what it ran on and how it went, its metrics and its checkpoints.

    config.json     every value of the config, defaults too
    run.json        versions, source revision, devices, status, start, end, final metrics, digest
    metrics.jsonl   one object a line: training by interval, evaluation by epoch
    distributions.jsonl     one object a line: weights and gradients by layer, at evaluations
    beginning.npz   the first convolution's kernel before training
    checkpoints/    see `convjax.checkpoint`
    best/           the best model by config.checkpoint.best, likewise

JSON files are replaced as a whole, so that a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convjax import durable, ownership
from convjax.config import UserError
from convjax.durable import unfinished_of

BEFORE = ("find_lr.json", "find_lr.png")  # that may lie in a folder before a run begins there


class RunError(UserError, ValueError):
    """A run folder that cannot be written, or whose files are not what a run leaves."""


class RunLog:
    """The files of a run in its folder."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.config_file = self.folder / "config.json"
        self.run_file = self.folder / "run.json"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.distributions_file = self.folder / "distributions.jsonl"
        self.beginning_file = self.folder / "beginning.npz"
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.folder / "best"
        self.lines = 0  # of the metrics, since `cut` has counted them
        self._given_up: set[Path] = set()  # files that could not be written, and are told of
        # Each is told of every line of the metrics, once that is written.
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []

    def exists(self) -> bool:
        """Whether the folder holds a run; RunError if that cannot be looked at."""
        with _writing(self.config_file):
            return self.config_file.is_file()

    def is_free(self) -> bool:
        """Whether a new run may begin in the folder: it is not there, or holds nothing."""
        if not self.folder.exists():
            return True
        # A run that was killed while it wrote its very first file has left no more than these;
        # and what was looked for before the run, as its learning rate is, belongs to it.
        left = {unfinished_of(self.config_file).name, ownership.NAME, *BEFORE}
        return self.folder.is_dir() and {each.name for each in self.folder.iterdir()} <= left

    def create(self, config: Mapping[str, Any]) -> None:
        """Begins the run by its config, or replaces that; RunError where it cannot be written."""
        with _writing(self.config_file):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.config_file, config)

    def owned(self) -> AbstractContextManager[None]:
        """Makes the folder, and keeps other processes out of it; UserError where there is one."""
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return ownership.owned(self.folder)

    def record(self) -> dict[str, Any]:
        """What is known about the run; empty before it began."""
        return read_json(self.run_file) if self.run_file.exists() else {}

    def note(self, **values: Any) -> None:
        """Adds to what is known about the run, or replaces it; RunError if it cannot be written."""
        with _writing(self.run_file):
            write_json(self.run_file, self.record() | values)

    def reopen(self) -> None:
        """Takes back that the run has ended, and the results that it ended with."""
        left = {"end": None, "error": None, "status": "running"}
        # Of the data, too: they are compared with those that the config has, which may be another.
        results = ("final", "digest", "skipped", "images", "pixels")
        record = {
            name: value for name, value in self.record().items() if not name.startswith(results)
        }
        with _writing(self.run_file):
            write_json(self.run_file, record | left)

    def log(self, line: Mapping[str, Any]) -> None:
        """Adds one line to the metrics; RunError if it cannot be written as a whole."""
        self.lines += 1
        _append(self.metrics_file, line)
        for listener in list(self.listeners):  # One may leave.
            listener(line)

    def log_distributions(self, line: Mapping[str, Any]) -> None:
        """Adds one line to the distributions; that it cannot be written fails no run."""
        with self._spared(self.distributions_file):
            _append(self.distributions_file, line)

    def note_beginning(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps arrays of before the first step; that they cannot be written fails no run."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        with self._spared(self.beginning_file):
            durable.replace(self.beginning_file, content.getvalue())

    def sync(self) -> None:
        """Waits until the metrics are on the disk; RunError if they do not come there."""
        if self.distributions_file.exists():
            with self._spared(self.distributions_file):
                durable.sync(self.distributions_file)
        if self.metrics_file.exists():
            with _writing(self.metrics_file):
                durable.sync(self.metrics_file)
                durable.sync(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the metrics; a last line that was cut short is passed over.

        Raises:
            RunError: for any other line that is not JSON.
        """
        return _lines(self.metrics_file)

    def cut(self, step: int, *, owes: bool = False) -> None:
        """Takes away a line that was cut short, and the metrics of later steps and of the end.

        Of the distributions, too, which tell of the beginning once more at step 0.

        owes: whether the evaluations of that step itself are to come once more.
        """

        def stays(line: dict[str, Any]) -> bool:
            again = owes and line["step"] == step and line.get("split") != "train"
            return line["step"] <= step and not line.get("final") and not again

        self.lines = 0
        if self.metrics_file.exists():
            kept = [line for line in self.metrics() if stays(line)]
            self.lines = len(kept)
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
            with _writing(self.metrics_file):
                durable.replace(self.metrics_file, text.encode())
        if self.distributions_file.exists():
            with self._spared(self.distributions_file):
                found = _parsed(self.distributions_file)
                lines = [line for line in found if not isinstance(line, Exception)]
                if lost := len(found) - len(lines):
                    told = f"{self.distributions_file}: {lost} line{'s' * (lost != 1)}"
                    print(f"warning: {told} cannot be read and will be lacking", file=sys.stderr)
                kept = [line for line in lines if line["step"] <= step > 0]
                text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
                durable.replace(self.distributions_file, text.encode())

    @contextlib.contextmanager
    def _spared(self, file: Path) -> Iterator[None]:
        """Writes what only a report needs: what goes wrong is told once, and fails no run."""
        try:
            yield
        except (OSError, RunError) as error:
            if file not in self._given_up:
                text = getattr(error.__cause__ or error, "strerror", None) or error
                told = f"{file} cannot be written ({text}): the report will lack it"
                print(f"warning: {told}", file=sys.stderr)
            self._given_up.add(file)


class Followed(RunLog):
    """The run that another process writes: to be read, and everything else is left to that one."""

    def create(self, config: Mapping[str, Any]) -> None:
        """Nothing."""

    def note(self, **values: Any) -> None:
        """Nothing."""

    def reopen(self) -> None:
        """Nothing."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_distributions(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def note_beginning(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def cut(self, step: int, *, owes: bool = False) -> None:
        """Nothing."""


def closing_line(
    split: str, result: Mapping[str, Any], seconds: float, folder: str | os.PathLike[str]
) -> str:
    """The one line that a run ends with.

    result: loss, accuracy, correct and count; a loss that is no number may be None, as in JSON.

    >>> result = {"loss": 0.2801, "accuracy": 0.901, "correct": 1802, "count": 2000}
    >>> closing_line("test", result, 41.23, "runs/mine")
    'test accuracy 0.9010 (1802/2000), loss 0.2801, 41.2 s, runs/mine'
    """
    loss = math.nan if result["loss"] is None else result["loss"]
    return (
        f"{split} accuracy {result['accuracy']:.4f} ({result['correct']}/{result['count']}), "
        f"loss {loss:.4f}, {seconds:.1f} s, {folder}"
    )


def line_of(step: int, epoch: int, split: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the metrics, but for its times.

    epoch: the steps of one. result: means, by the name of the metric.
    """
    return {"step": step, "epoch": step / epoch, "split": split, **result}


def environment() -> dict[str, Any]:
    """What a run depends on beside its config: versions, source revision, devices, cores."""
    devices = jax.devices()
    return {
        "versions": versions(),
        "source": _source_of_process(),
        "machine": platform.platform(),
        "platform": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "cores": cores(),
    }


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that a run depends on; None of one not installed.

    >>> sorted(versions())
    ['convjax', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint', 'python']
    """
    packages = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "convjax")
    return {"python": platform.python_version()} | {each: _version(each) for each in packages}


def source_revision(
    folder: str | os.PathLike[str] = Path(__file__).parent,
) -> dict[str, Any] | None:
    """The commit that the package is run from and whether files differ; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(folder), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return run.stdout.strip()

    try:
        if not git("ls-files", "--", "."):
            return None  # Installed somewhere below another repository.
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces a file of JSON as a whole; numbers that JSON cannot hold (NaN, inf) become null."""
    durable.replace(path, (json.dumps(_valid(values), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The values of a file of JSON.

    Raises:
        RunError: naming the file, if it is not JSON, or something else than an object.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}): mend it, or move it away") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise RunError(f"{path} holds {kind}, expected an object of JSON: mend it, or move it away")
    return values


def _append(file: Path, line: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file; RunError if it cannot be written as a whole."""
    text = json.dumps(_valid(line), allow_nan=False) + "\n"
    with _writing(file), open(file, "ab", buffering=0) as opened:
        if opened.write(text.encode()) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of them; RunError for one that is none, but for a last, torn one."""
    if not file.exists():
        return []
    with _writing(file):
        lines = _parsed(file)
    for number, line in enumerate(lines, 1):
        if isinstance(line, Exception):
            raise RunError(
                f"{file}, line {number} is no line of {file.stem} "
                f"({type(line).__name__}: {line}): mend it, or take it out"
            ) from line
    return [line for line in lines if not isinstance(line, Exception)]


def _parsed(file: Path) -> list[dict[str, Any] | Exception]:
    """The lines of a file, but for a last, torn one; what is wrong in place of one that is none."""
    found: list[dict[str, Any] | Exception] = []
    # The last line has no end: it is empty, or was being written when the run was killed.
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            value = json.loads(line)
            _ = value["step"] + 0
            found.append(value)
        except (ValueError, KeyError, TypeError) as error:
            found.append(error)
    return found


def _valid(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Makes one line of what goes wrong in writing a file."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}): make room, or mend that, and give the "
            "same command, or another --workdir"
        ) from error


@functools.cache
def _source_of_process() -> dict[str, Any] | None:
    """The revision as the process first asks: what it runs it has loaded by then."""
    return source_revision()


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
