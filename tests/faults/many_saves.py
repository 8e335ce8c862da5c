"""Saves, or lines of metrics, without end; tells now and then what the process and its folder hold.

  python many_saves.py FOLDER saves|lines COUNT

Ten times it prints a line of JSON: how many there were, the memory (bytes), the open handles and
the threads of the process, and the files and bytes below the folder.
"""

import json
import os
import sys
from pathlib import Path

from small_saves import KEEP, arrays_of


def held(folder):
    """What the process and its folder hold now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "files": len(files),
        "disk": sum(path.stat().st_size for path in files),
    }


def save(folder, count):
    """Saves as many checkpoints, in the background as a run does, of which two stay."""
    from convjax.checkpoint import Checkpoints

    arrays = arrays_of(1)
    with Checkpoints(folder / "checkpoints", keep=KEEP, background=True) as checkpoints:
        for step in range(1, count + 1):
            checkpoints.save(step, arrays, {"best": [step, 0.5]})
            if step % (count // 10) == 0:
                checkpoints.wait()
                yield step


def write_lines(folder, count):
    """Writes as many lines of metrics, and notes of the run every thousand."""
    from convjax.runlog import RunLog

    log = RunLog(folder)
    for step in range(1, count + 1):
        log.log({"step": step, "epoch": step / 1000, "split": "train", "loss": 1 / 3})
        if step % 1000 == 0:
            log.sync()
            log.note(status="running", step=step)
        if step % (count // 10) == 0:
            yield step


if __name__ == "__main__":
    folder, kind, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    folder.mkdir()
    for step in {"saves": save, "lines": write_lines}[kind](folder, count):
        print(json.dumps({"count": step, **held(folder)}), flush=True)
