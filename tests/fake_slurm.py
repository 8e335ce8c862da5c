"""A Slurm of one machine, for tests: sbatch, srun, sacct and scancel by the name it is called by.

environment = install(tmp_path)             # PATH with the four, FAKE_SLURM with what they know

    FAKE_SLURM/7/state      of job 7, as sacct tells it
    FAKE_SLURM/7/process    that trains
    FAKE_SLURM/7/becomes    if it is there: the state in which the job ends, however it does
    FAKE_SLURM/full         while it is there, no job begins

Jobs are processes that outlive whoever has sent them, as those of Slurm do.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("sbatch", "srun", "sacct", "scancel")
PATIENCE = 3.0  # seconds between SIGTERM and SIGKILL: KillWait


def install(folder):
    """Makes the four commands in a folder; returns what an environment needs to find them."""
    for name in NAMES:
        script = folder / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        script.chmod(0o755)
    (folder / "jobs").mkdir()
    return {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FAKE_SLURM": str(folder / "jobs"),
    }


def jobs():
    return Path(os.environ["FAKE_SLURM"])


def sbatch(script):
    """Takes a job."""
    number = 1 + sum(each.is_dir() for each in jobs().iterdir())
    if "--partition=full" in Path(script).read_text():
        sys.exit("sbatch: error: invalid partition specified: full")
    (jobs() / str(number)).mkdir()
    (jobs() / str(number) / "state").write_text("PENDING")
    subprocess.Popen(
        [sys.executable, "-S", __file__, "run", str(number), script],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(f"Submitted batch job {number}")


def run(number, script):
    """A job from its place in the queue to its end."""
    job = jobs() / number
    while (jobs() / "full").exists():
        if (job / "becomes").exists():
            (job / "state").write_text((job / "becomes").read_text())
            return
        time.sleep(0.05)
    (job / "state").write_text("RUNNING")
    text = Path(script).read_text()
    environment = os.environ | {"SLURM_JOB_ID": number}
    status = subprocess.run(["bash", "-c", text], env=environment, check=False)
    state = "FAILED" if status.returncode else "COMPLETED"
    with contextlib.suppress(FileNotFoundError):
        state = (job / "becomes").read_text()
    (job / "state").write_text(state)


def srun(*words):
    """Becomes the program of a job, with its output where that is wanted."""
    number, words = os.environ["SLURM_JOB_ID"], list(words)
    while words[0].startswith("--"):
        word = words.pop(0)
        if word in ("--output", "--error"):
            path = words.pop(0).replace("%j", number).replace("%t", "0")
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, {"--output": 1, "--error": 2}[word])
    (jobs() / number / "process").write_text(str(os.getpid()))
    os.execvp(words[0], words)


def sacct(*words):
    """Tells the states of jobs."""
    print("JobID|State|NodeList")
    for option, number in itertools.pairwise(words):
        if option == "-j" and (jobs() / number).exists():
            print(f"{number}|{(jobs() / number / 'state').read_text()}|node1")
            print(f"{number}.batch||node1")


def scancel(number):
    """Ends a job: by SIGTERM, and by SIGKILL if that is not heard."""
    job = jobs() / number
    if not (job / "becomes").exists():
        (job / "becomes").write_text("CANCELLED by 1000")
    if (job / "process").exists() and os.fork() == 0:
        os.setsid()
        process = int((job / "process").read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                os.kill(process, 0)
                time.sleep(0.05)
            os.kill(process, signal.SIGKILL)
        os._exit(0)


if __name__ == "__main__":
    {each.__name__: each for each in (sbatch, run, srun, sacct, scancel)}[sys.argv[1]](
        *sys.argv[2:]
    )
