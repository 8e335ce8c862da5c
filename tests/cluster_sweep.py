"""A sweep of small trials on a cluster, as a process that can be killed: its folder, and options.

python cluster_sweep.py FOLDER '{"name": "slurm", "count": 2}'      # options of `cluster.make`

Ray is started by `alone`, on a network of its own that has the loopback alone.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fake_slurm
import pytest
import submitit

from convjax.config import Data, Experiment, Model, Optimizer, digest, to_dict
from convjax.flags import guard, leave
from convjax.sweep import cluster
from convjax.sweep.space import resolve
from convjax.sweep.store import Store
from convjax.sweep.trial import Trial


def base():
    return Experiment(
        name="tiny",
        batch_size=5,
        epochs=1,
        log_every_steps=2,
        model=Model("sweep_models:tiny"),
        data=Data("sweep_models:pictures"),
        optimizer=Optimizer("sgd", 0.1, args={"momentum": 0.9}),
    )


def begin(folder, points):
    """Makes a sweep of these points; returns its number."""
    trials = []
    for number, point in enumerate(points):
        config = resolve(base(), point, 0)
        trials.append(Trial(digest(config), point, 0, to_dict(config), number))
    with Store(folder) as store:
        sweep = store.sweep({"points": points})
        store.add(sweep, trials)
    return sweep


def go_on(workers, store, sweep, until=lambda: False, timeout=100):
    """Looks after the workers until all trials have ended, or until that."""
    end = time.monotonic() + timeout
    while {"waiting", "running"} & store.counts(sweep).keys() and not until():
        workers.look_after()
        assert time.monotonic() < end, store.rows(sweep)
        time.sleep(0.05)


def start(folder, before=(), **options):
    """The sweep as a process; before: words before its command."""
    command = [sys.executable, __file__, str(folder), json.dumps(options)]
    return subprocess.Popen([*before, *command], stderr=subprocess.PIPE, text=True)


def has_trained(folder):
    """Whether a run of the sweep has told of a step."""
    return any(each.stat().st_size for each in folder.glob("trials/*/metrics.jsonl"))


def attempts_of(folder):
    """The outcomes of all attempts at each trial, in their order."""
    with Store(folder) as store:
        return [[each.outcome for each in row.attempts] for row in store.rows(1)]


def wait_until(happened, timeout=60):
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def jobs_of(folder, monkeypatch):
    """Makes `folder/bin` Slurm; gives the folder of its jobs, of which none is left running."""
    for name, text in fake_slurm.install(folder).items():
        monkeypatch.setenv(name, text)
    # It knows the states of all jobs of a process, whose numbers begin anew here.
    watcher = type(submitit.SlurmJob.watcher)(delay_s=600)
    monkeypatch.setattr(submitit.SlurmJob, "watcher", watcher)
    try:
        yield folder / "jobs"
    finally:
        for process in folder.glob("jobs/*/process"):
            if (process.parent / "state").read_text() == "RUNNING":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process.read_text()), signal.SIGKILL)


@contextlib.contextmanager
def alone():
    """Gives the words before a command that make it a network; skips the test where none can be."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'convjax[ray]'")
    # Ray writes a token below HOME; the paths of its sockets have to be short.
    home = Path(tempfile.mkdtemp(prefix="ray"))
    set_up = f'ip link set lo up && HOME={home} RAY_TMPDIR={home} exec "$@"'
    words = ["unshare", "--map-root-user", "--net", "sh", "-c", set_up, "alone"]
    try:
        if not shutil.which("unshare") or subprocess.run([*words, "true"], check=False).returncode:
            pytest.skip("networks of one's own are not allowed here: see `unshare --net`")
        yield words
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main(argv):
    _, folder, text = argv
    options = json.loads(text)
    tries = options.pop("tries", 3)
    with (
        Store(folder, tries=tries) as store,
        cluster.make(store=store, sweep=1, **options) as workers,
    ):
        go_on(workers, store, 1)


if __name__ == "__main__":
    leave(guard(main, sys.argv))
