"""The machine that is measured on: what it is, how fast it multiplies, who else is using it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("convjax", "jax", "jaxlib", "flax", "equinox", "keras", "torch", "numpy", "optax")


def cores() -> list[int]:
    """The cores that this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return process.cpu_affinity() or []
    return list(range(psutil.cpu_count() or 1))


def described() -> dict[str, Any]:
    """Processor, cores, frequency in MHz (None if unknown), memory in GiB, system and versions."""
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return {
        "processor": _processor(),
        "cores": len(cores()),
        "mhz": round(frequency.current) if frequency and frequency.current else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "source": _commit(),
    }


def version_of(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- Who else computes -----------------------------------------------------------------------------


class Seen:
    """What was seen while something was timed.

    others: the share of the cores' time that other processes took, 0 to 1.
    """

    others: float = 0.0


@contextlib.contextmanager
def watched(on: Sequence[int], processes: Sequence[int]) -> Iterator[Seen]:
    """Watches these cores while our own processes run; what others used is known at the end.

    on: numbers of the cores.
    processes: our own, by process id, each with its finished children; this one counts by itself.

    >>> with watched(cores(), []) as seen:
    ...     total = sum(range(1000))
    >>> 0 <= seen.others <= 1
    True
    """
    own = [psutil.Process(), *map(psutil.Process, processes)]
    seen = Seen()
    begin, busy, ours = time.perf_counter(), _busy(on), sum(map(_used, own))
    yield seen
    busy, ours = _busy(on) - busy, sum(map(_used, own)) - ours
    available = (time.perf_counter() - begin) * len(on)
    seen.others = min(max(busy - ours, 0.0) / available, 1.0)


def _busy(on: Sequence[int]) -> float:
    """Seconds that the cores have worked, for this machine or, stolen from it, for another one."""
    every = psutil.cpu_times(percpu=True)
    idle = ("idle", "iowait", "guest", "guest_nice")  # A guest's time is in the user's already.
    return sum(sum(v for k, v in every[core]._asdict().items() if k not in idle) for core in on)


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return sum(times[:4])  # user, system, and both of finished children


# -- Memory ----------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def reset_peak() -> None:
    """Begins a new peak of this process' memory, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int | None:
    """The most bytes that this process held since `reset_peak`, or None where it is unknown."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):
            return int(found[1]) * 1024
    return None


# -- The speed of a matrix product -----------------------------------------------------------------


def gemm(library: str, size: int = 2048, dtype: str = "float32", device: str = "cpu") -> float:
    """The best of several products of two matrices, in GFLOP/s, 2 per multiply-add.

    library: "torch" or "jax".
    device: of PyTorch; JAX takes its first one.
    """
    multiply = _torch_gemm(size, dtype, device) if library == "torch" else _jax_gemm(size, dtype)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times[2:]) / 1e9


def _torch_gemm(size: int, dtype: str, device: str) -> Callable[[], Any]:
    import torch

    a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))

    def multiply() -> None:
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()

    return multiply


def _jax_gemm(size: int, dtype: str) -> Callable[[], Any]:
    import jax

    from convjax.compiler import compiler_options

    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    options = compiler_options(jax.devices()[0].platform)
    multiply = jax.jit(lambda a, b: a @ b, compiler_options=options)
    return lambda: multiply(a, b).block_until_ready()


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source, with a plus where it was changed since."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        options: Any = {"cwd": Path(__file__).parent, "text": True, "stderr": subprocess.DEVNULL}
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], **options)
        changed = subprocess.check_output(["git", "status", "--porcelain", "-uno"], **options)
        return commit.strip() + ("+" if changed.strip() else "")
    return None


def command() -> str:
    """The command line of this run, as a person would write it, but for the file of results."""
    module = sys.modules["__main__"].__spec__
    name = ["-m", module.name] if module else [Path(sys.argv[0]).name]
    words = [word for word in sys.argv[1:] if not word.startswith("--out=")]
    return shlex.join(["python", *name, *words])
