"""What all benchmarks share: their flags, and what goes with every result."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import machine
from benchmarks.timing import Plan
from benchmarks.worker import alone
from convjax.config import UserError
from convjax.names import nearest

RESULTS = Path(__file__).parent / "results"


def define_flags(options: flags.FlagValues, rounds: int, seconds: float) -> tuple[Any, ...]:
    """The flags that every benchmark has: rounds, seconds, threads and out."""
    return (
        flags.DEFINE_integer("rounds", rounds, "turns of each", lower_bound=2, flag_values=options),
        flags.DEFINE_float(
            "seconds",
            seconds,
            "time after which a competitor takes no more turns of a kind, if it has two",
            lower_bound=0.0,
            flag_values=options,
        ),
        flags.DEFINE_integer(
            "threads", None, "cores to use; all by default", lower_bound=1, flag_values=options
        ),
        flags.DEFINE_string(
            "out", None, "the file of results; by default a new one", flag_values=options
        ),
    )


def known(flag: str, names: Sequence[str], choices: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The names, each once, if all can be chosen.

    Raises:
        UserError: for one that cannot, with the nearest that can.
    """
    for name in names:
        if name not in choices:
            raise UserError(f"--{flag} has {name!r}: {nearest(name, choices)}")
    if not names:
        raise UserError(f"--{flag} is empty: {nearest('', choices)}")
    return list(dict.fromkeys(names))


def cores_for(threads: int | None) -> list[int]:
    """The cores to use, as many as threads.

    Raises:
        UserError: if there are fewer.
    """
    cores = machine.cores()
    if threads is not None and threads > len(cores):
        raise UserError(f"--threads={threads}: this process may use {len(cores)} cores")
    return cores[:threads]


def path_for(out: str | None) -> Path:
    """The file of results, which can be written; there is none before there are results.

    Raises:
        UserError: if there can be no such file.
    """
    path = Path(out) if out else RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("a").close()
        if path.is_file() or not path.exists():
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--out={path}: {error.strerror}") from None
    return path


def about(kind: str, cores: Sequence[int], plan: Plan | None = None) -> dict[str, Any]:
    """What every result begins with: what was measured, when, where, and by which command."""
    return {
        "kind": kind,
        "command": machine.command(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine.described(),
        "threads": len(cores),
        "plan": plan._asdict() if plan else {},
    }


def note_gemm(best: dict[str, float], cores: Sequence[int]) -> None:
    """Measures the product of two matrices once more, and keeps the best of each library."""
    for library in ("torch", "jax"):
        if machine.version_of(library) is not None:
            value = alone("benchmarks.machine:gemm", library, cores=cores)
            best[library] = max(best.get(library, 0.0), value)


def add_share(row: dict[str, Any], gemm: dict[str, float]) -> None:
    """Notes GFLOP/s, 2 per multiply-add, and their share of the best matrix product."""
    if "seconds" in row:
        row["gflops"] = 2 * row["multiply_adds"] / row["seconds"]["median"] / 1e9
        row["share_of_peak"] = row["gflops"] / max(gemm.values())


def write(record: dict[str, Any], out: Path) -> None:
    """Writes the results as JSON."""
    write_text(out, json.dumps(record, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file, which is there whole or as it was; what is no file, as /dev/null, is kept."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
