"""Runs that are started as a person starts them, and all that they leave, for comparing two.

run = start(tmp_path / "run", pause=0.02)               # `python -m experiments.train`, one core
run.send_signal(signal.SIGTERM)
finish(tmp_path / "run")                                # the same command again
assert outcome(tmp_path / "run") == outcome(tmp_path / "another")
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def start(workdir, *words, cache, before=(), config="small_run.py", **hooks):
    """The launcher on one core of this machine, with its output in pipes.

    cache: the folder of compiled programs, as starting is to be quick.
    before: words before the command, such as those of strace. hooks: see small_run.py.
    """
    config = HERE / config if config.endswith(".py") else config
    train = [sys.executable, "-m", "experiments.train", f"--config={config}"]
    hooked = json.dumps(hooks, default=str)
    with on_one_core():
        return subprocess.Popen(
            [*before, *train, f"--workdir={workdir}", *words],
            cwd=ROOT,
            env=environment(CONVJAX_CACHE=str(cache), SMALL_RUN=hooked),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a signal can be sent to all of its processes
        )


@contextlib.contextmanager
def on_one_core():
    """Has processes that are started meanwhile run on one core, of which sums depend."""
    # By the thread, and not by `preexec_fn`, which may not be used where there are threads.
    cores = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(cores)[worker % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def environment(**more):
    """The environment of a process that is started: this one's, but for its eight devices."""
    kept = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    paths = f"{ROOT}{os.pathsep}{HERE}"
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths} | more


def ended(run, timeout=60):
    """Its exit status, output and errors; one that does not end is killed, and the test fails."""
    try:
        out, errors = run.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(run)
        raise
    return run.returncode, out, errors


def kill(run):
    """Kills it with all that it has started, as the kernel does, and waits until it is gone."""
    if run.poll() is None:
        leads = os.getpgid(run.pid) == run.pid
        (os.killpg if leads else os.kill)(run.pid, signal.SIGKILL)
    run.communicate()


def finish(workdir, *words, **how):
    """Runs it to its end, in which nothing may fail; returns what it printed."""
    status, out, errors = ended(start(workdir, *words, **how))
    assert status == 0, errors
    return out


def wait_until(happened, run, timeout=60):
    """Waits until `happened()`, while the process is there."""
    end = time.monotonic() + timeout
    while not happened():
        if run.poll() is not None or time.monotonic() > end:
            kill(run)
            raise AssertionError(f"it ended before ({run.returncode}), or took too long")
        time.sleep(0.005)


def lines_of(file):
    """The lines of a file, none where it is not there yet."""
    return file.read_text().splitlines() if file.exists() else []


def record(workdir):
    return json.loads((Path(workdir) / "run.json").read_text())


def newest_step(workdir):
    """The newest step that is there and good; None for none."""
    from convjax.checkpoint import Checkpoints  # Loads Orbax.

    with Checkpoints(Path(workdir) / "checkpoints", reads=True) as checkpoints:
        return checkpoints.newest()


def outcome(workdir):
    """All that a run leaves, but for times and places: by name, with every bit."""
    from convjax.checkpoint import Checkpoints

    workdir = Path(workdir)
    told = record(workdir)
    found = {name: told[name] for name in told if name.startswith("final")}
    found |= {name: told[name] for name in ("status", "digest", "pixels", "classes", "cores")}
    found["metrics"] = [
        _without_times(json.loads(line)) for line in lines_of(workdir / "metrics.jsonl")
    ]
    for name in ("checkpoints", "best"):
        with Checkpoints(workdir / name, reads=True) as checkpoints:
            known = checkpoints.manifest()
            found[name] = known.step, known.leaves, _without_times(known.extra)
            for path, leaf in checkpoints.read("*").items():
                found[f"{name}/{path}"] = leaf.dtype.name, leaf.shape, leaf.tobytes()
    return found


def _without_times(line):
    times = ("seconds", "images_per_second")
    return {name: value for name, value in line.items() if name not in times}
