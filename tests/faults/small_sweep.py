"""A sweep of short trials with 4 workers, of which one is killed every so often, and replaced.

python small_sweep.py FOLDER SEED SECONDS       # between two kills; prints how many there were

Each trial adds a line to a file in its own folder, and to `audit`, which all of them share.
"""

import fcntl
import os
import random
import signal
import sys
import time
from pathlib import Path

from convjax.sweep.store import Store
from convjax.sweep.trial import Trial

WORKERS = 4
TRIES = 1000  # A trial may be killed as often as chance has it.


def trial_of(number):
    return Trial(f"{number:064x}"[::-1], {"number": number}, 0, {"seed": 0}, number)


def result_of(trial):
    """What it has to give: 3n + 1."""
    return {"value": 3 * trial.point["number"] + 1}


def begin(folder, count):
    """Makes the sweep; returns its number."""
    with Store(folder, tries=TRIES) as store:
        sweep = store.sweep({"trials": count})
        store.add(sweep, map(trial_of, range(count)))
    return sweep


def add_line(file, line):
    # One write at the end of the file: whole, whoever else writes, and there if one is killed.
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def train(claim, audit):
    """Half of 5 ms in this trial before its line, half of it after."""
    with open(claim.folder / "alone", "w") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            add_line(audit, f"together {claim.trial.name}")
        add_line(audit, f"began {claim.trial.name}")
        time.sleep(0.0025)
        add_line(claim.folder / "steps", f"attempt {claim.attempt}")
        time.sleep(0.0025)
    return result_of(claim.trial)


def work(folder, worker):
    """Claims until all trials have finished, or whoever started it is gone."""
    parent = os.getppid()
    with Store(folder, tries=TRIES) as store:
        while set(store.counts(1)) != {"finished"} and os.getppid() == parent:
            claim = store.claim(1, worker)
            if claim is None:
                time.sleep(0.01)
                continue
            with claim:
                claim.finish(train(claim, folder / "audit"))
                add_line(folder / "audit", f"finished {claim.trial.name}")


def started(folder, number):
    """The process of a new worker, which has loaded everything: it works at once."""
    process = os.fork()
    if not process:
        try:
            work(folder, f"worker {number} of {os.getppid()}")
            os._exit(0)
        except BaseException as error:
            print(f"worker {number}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    return process


def main(folder, seed, seconds):
    draw, count = random.Random(seed), WORKERS
    running = [started(folder, number) for number in range(WORKERS)]
    kills, parent = 0, os.getppid()
    while running and os.getppid() == parent:
        time.sleep(seconds)
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                running.remove(process)
                assert status == 0, f"a worker has ended by itself: {status}"
        if running:
            victim = draw.choice(running)
            os.kill(victim, signal.SIGKILL)
            _, status = os.waitpid(victim, 0)
            running.remove(victim)
            if status == signal.SIGKILL:
                kills += 1
                running.append(started(folder, count))
                count += 1
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
