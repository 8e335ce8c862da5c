"""The report of a run that has just ended: whatever goes wrong with it, the run has not failed.

try_report("runs/mine", sys.stdout)             # report: runs/mine/report.html
try_report_apart("runs/mine", sys.stdout)       # the same, where the run has several processes
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from convjax.config import UserError
from convjax.flags import guard

APART = 60.0  # seconds; the other processes wait for as long

Folder = str | os.PathLike[str]


def try_report(folder: Folder, out: TextIO, *, looks: bool = True) -> None:
    """Writes the report of a run; a line says where, or why there is none."""
    try:
        from convjax.insight.report.page import write_report  # with Plotly and Jinja

        print(f"report: {write_report([folder], looks=looks)}", file=out)
    except Exception as error:
        known = isinstance(error, UserError)
        text = " ".join((f"{error}" if known else f"{type(error).__name__}: {error}").split())
        print(f"warning: there is no report of {folder}: {text}", file=sys.stderr)


def try_report_apart(folder: Folder, out: TextIO, seconds: float = APART) -> None:
    """Does what `try_report` does, in a process of its own, which knows nothing of the others.

    It has the CPU alone, for the accelerators are taken, and ends with this process. Where it fails
    or takes longer than so many seconds, the report is without what the network does with images.
    """
    command = [sys.executable, "-m", __name__, os.fspath(folder), str(os.getpid())]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            encoding="utf-8",
            errors="replace",
            env=_alone(os.environ),
        )
    except subprocess.TimeoutExpired:
        why = f"more than {seconds:g} s"
    except OSError as error:
        why = f"{error}"
    else:
        if done.returncode == 0:
            print(done.stdout, end="", file=out)
            return
        why = (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]
    try_report(folder, out, looks=False)
    text = f"python -m experiments.report --workdir={os.fspath(folder)}"
    print(f"what the network does with images is not in it ({why}): {text}", file=out)


def _alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that works by itself, on the CPU, with the modules of this one."""
    kept = {name: text for name, text in environment.items() if not name.startswith(_OF_CLUSTERS)}
    modules = os.pathsep.join(path for path in sys.path if path)
    return kept | {"PYTHONPATH": modules, "JAX_PLATFORMS": "cpu"}


# By these JAX finds the other processes of a run.
_OF_CLUSTERS = (
    *("JAX_COORDINATOR_", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS"),
    *("JAX_CPU_COLLECTIVES_", "JAX_ENABLE_PREEMPTION_SERVICE", "JAX_PARTITION_INDEX"),
    *("JAX_SLICE_INDEX", "SLURM_", "OMPI_", "PMI_", "PMIX_"),
)


def _main(argv: list[str]) -> None:
    _, folder, parent = argv
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    from convjax import compiler
    from convjax.insight.report.page import write_report

    compiler.keep_programs()
    print(f"report: {write_report([folder])}")


def _end_with(parent: int) -> None:
    """Ends this process once its parent has ended, however that was."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(guard(_main, sys.argv))
