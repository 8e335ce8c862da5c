"""A sweep's record: each trial is one process's at a time, and what came of it counts once."""

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from convjax import ownership
from convjax.config import UserError
from convjax.interrupts import Interrupted
from convjax.runlog import RunLog
from convjax.session import Diverged
from convjax.sweep.database import StoreError
from convjax.sweep.store import Store
from convjax.sweep.trial import Outcome, Trial, cause_of

ROOT = Path(__file__).parent.parent
SPACE = {"space": {"optimizer.learning_rate": "log(1e-4, 1e-1)"}, "seeds": 1}


def trial_of(number, /, **more):
    """The trial of a config that is a function of the number."""
    config = {"seed": 0, "optimizer": {"learning_rate": 2.0**-number}}
    digest = hashlib.sha256(json.dumps(config).encode()).hexdigest()
    point = {"optimizer.learning_rate": 2.0**-number}
    return Trial(digest, point, 0, config, number)._replace(**more)


@pytest.fixture
def store(tmp_path) -> Iterator[Any]:
    with Store(tmp_path / "sweep") as store:
        yield store


@pytest.fixture
def sweep(store):
    """A sweep of three trials."""
    sweep = store.sweep(SPACE)
    assert store.add(sweep, [trial_of(number) for number in range(3)]) == 3
    return sweep


@pytest.fixture
def start():
    """start(script, *arguments): a Python process that is killed at the end, if it is there yet."""
    processes = []

    def begin(script, *arguments):
        command = [sys.executable, "-c", script, *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def said(process):
    """The next line that it prints."""
    return process.stdout.readline().strip()


def only(rows):
    [row] = rows
    return row


def claimed(store, *asked):
    """A trial that there is."""
    claim = store.claim(*asked)
    assert claim is not None
    return claim


def results(store, sweep):
    """What has finished."""
    return [(row.trial, row.result) for row in store.rows(sweep) if row.state == "finished"]


# Trials and sweeps.


def test_each_trial_is_claimed_in_order_and_once(store, sweep):
    claims = []
    while claim := store.claim(sweep, "me"):
        assert store.counts(sweep).get("running") == len(claims) + 1
        claims.append(claim)
    assert [claim.trial for claim in claims] == [trial_of(number) for number in range(3)]
    assert [claim.folder.name for claim in claims] == [trial_of(n).digest[:16] for n in range(3)]
    for number, claim in enumerate(claims):
        with claim:
            claim.finish({"accuracy": number})
    assert results(store, sweep) == [(trial_of(n), {"accuracy": n}) for n in range(3)]
    assert store.counts(sweep) == {"finished": 3}


def test_a_finished_trial_is_never_claimed_again(store, sweep):
    while claim := store.claim(sweep, "me"):
        with claim:
            claim.finish(1.0)
    assert store.add(sweep, [trial_of(number) for number in range(3)]) == 0
    with Store(store.folder) as again:
        assert again.claim(again.sweep(SPACE), "another") is None
        assert again.close_killed() == 0
    with pytest.raises(ValueError, match="is not tried again"):
        store.retry(sweep, [Outcome.FINISHED])


def test_a_larger_sweep_finds_what_another_has_finished(store, sweep):
    with store.claim(sweep, "me") as claim:
        claim.finish(0.5)
    larger = store.sweep(SPACE | {"seeds": 2})
    # The same config by another point, at another place: another sweep varies the width too.
    point = {"optimizer.learning_rate": 1.0, "model.args.width": 32}
    same = trial_of(0, number=7, point=point)
    assert store.add(larger, [trial_of(8), same]) == 1
    assert results(store, larger) == [(same, 0.5)]
    claim = store.claim(larger, "me")
    assert claim.trial == trial_of(8)
    assert store.claim(larger, "me") is None, "what other sweeps wait for is theirs"
    assert store.counts(sweep) == {"finished": 1, "waiting": 2}


def test_equal_definitions_are_one_sweep(store, sweep):
    assert store.sweep(dict(reversed(SPACE.items()))) == sweep
    assert store.sweep(SPACE | {"seeds": 3}) != sweep
    assert list(store.sweeps().values()) == [SPACE, SPACE | {"seeds": 3}]
    assert store.definition(sweep) == SPACE
    with pytest.raises(StoreError, match="there is no sweep 7 in"):
        store.definition(7)


def test_a_place_that_another_trial_has_is_refused_and_nothing_added(store, sweep):
    before = store.rows(sweep)
    with pytest.raises(StoreError, match=f"trial 2 of sweep 1 .*not {trial_of(9).name}"):
        store.add(sweep, [trial_of(5), trial_of(9, number=2)])
    assert store.rows(sweep) == before


def test_a_trial_that_is_asked_for_twice_is_made_once(store, sweep):
    """As samplers do that draw from few values."""
    store.add(sweep, [trial_of(0, number=3)])
    while claim := store.claim(sweep, "me"):
        with claim:
            claim.finish(claim.trial.point["optimizer.learning_rate"])
    assert [result for _, result in results(store, sweep)] == [1.0, 0.5, 0.25, 1.0]
    assert [trial.number for trial, _ in results(store, sweep)] == [0, 1, 2, 3]
    assert store.counts(sweep) == {"finished": 3}
    assert sum(len(row.attempts) for row in store.rows(sweep)[:3]) == 3


def test_a_claim_may_be_for_some_of_the_trials(store, sweep):
    wanted = [trial_of(2).digest, trial_of(1).digest]
    found = [store.claim(sweep, "me", wanted) for _ in range(2)]
    assert [claim.trial.number for claim in found] == [1, 2]
    assert store.claim(sweep, "me", wanted) is None
    assert store.claim(sweep, "me", []) is None


def test_changes_are_the_rows_that_another_process_would_see_differ(store, sweep):
    rows, mark = store.changes(sweep)
    assert rows == store.rows(sweep)
    assert [row.trial.number for row in rows] == [0, 1, 2]
    assert store.changes(sweep, mark) == ([], mark)
    with Store(store.folder) as other:
        other.add(sweep, [trial_of(3)])
        with claimed(other, sweep, "me", [trial_of(2).digest]) as claim:
            found, now = store.changes(sweep, mark)
            assert [(row.trial.number, row.state) for row in found] == [
                *((2, "running"), (3, "waiting")),
            ]
            claim.finish(0.5)
        found, last = store.changes(sweep, now)
        assert found == [store.rows(sweep)[2]]
        assert (found[0].state, found[0].result) == ("finished", 0.5)
        # Another sweep asks for what is there: news for it, and none for the first.
        larger = other.sweep(SPACE | {"seeds": 2})
        _, begun = store.changes(larger)
        other.add(larger, [trial_of(2, number=0)])
        assert [row.state for row in store.changes(larger, begun)[0]] == ["finished"]
        store.retry(sweep, [Outcome.FAILED])
        assert [row.state for row in store.changes(sweep, last)[0]] == ["finished"]
        assert store.changes(sweep, store.changes(sweep, last)[1])[0] == []


def test_following_changes_gives_the_rows_at_any_time(store, sweep):
    """Of a hundred things that happen at random, with a look after some of them."""
    draw, known, mark, claims = random.Random(0), {}, None, []
    for number in range(100):
        what = draw.randrange(5)
        if what == 0:
            store.add(sweep, [trial_of(3 + number, number=len(store.rows(sweep)))])
        elif what in (1, 2) and (claim := store.claim(sweep, f"worker {number}")):
            claims.append(claim)
        elif what == 3 and claims:
            with claims.pop(draw.randrange(len(claims))) as claim:
                outcome = draw.choice([each for each in Outcome if each != Outcome.FINISHED])
                claim.fail(outcome, "by lot", number)
        elif what == 4:
            store.retry(sweep, [draw.choice([Outcome.FAILED, Outcome.PRUNED])])
        if draw.random() < 0.4:
            changed, mark = store.changes(sweep, mark)
            known |= {row.trial.number: row for row in changed}
            assert [known[place] for place in sorted(known)] == store.rows(sweep)


ADDER = """
import hashlib, sys
from convjax.sweep.store import Store, Trial
print("ready", flush=True)
sys.stdin.readline()
with Store(sys.argv[1]) as store:
    sweep = store.sweep({"upto": int(sys.argv[3])})
    new = 0
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        new += store.add(sweep, [Trial(digest, {"n": number}, 0, {}, number)])
print(new, flush=True)
"""


def test_processes_that_add_at_the_same_time_add_each_trial_once(tmp_path, start):
    """Two to one sweep, two to another that overlaps; and all of them begin the file."""
    ranges = [(0, 40), (0, 40), (20, 60), (20, 60)]
    processes = [start(ADDER, tmp_path / "sweep", *each) for each in ranges]
    for process in processes:
        assert said(process) == "ready"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sum(int(said(process)) for process in processes) == 60
    with Store(tmp_path / "sweep") as store:
        for first, last in (0, 40), (20, 60):
            rows = store.rows(store.sweep({"upto": last}))
            assert [row.trial.point["n"] for row in rows] == list(range(first, last))


# Attempts and their ends.

WORKER = """
import sys, time
from convjax.sweep.store import Store
with Store(sys.argv[1]) as store, store.claim(int(sys.argv[2]), "worker 1") as claim:
    (claim.folder / "metrics.jsonl").write_text("{}")
    print(claim.trial.digest, flush=True)
    time.sleep(60)
"""


def test_a_trial_whose_worker_was_killed_is_tried_again_and_that_is_known(store, sweep, start):
    began = time.time()
    worker = start(WORKER, store.folder, sweep)
    digest = said(worker)
    assert digest == trial_of(0).digest
    assert store.close_killed() == 0, "it lives"
    assert store.rows(sweep)[0].state == "running"
    heartbeat = began - 1000
    os.utime(store.folder_of(digest) / "metrics.jsonl", (heartbeat, heartbeat))
    worker.kill()
    worker.wait()
    found = {}
    while claim := store.claim(sweep, "me"):
        found[claim.trial.number] = claim
    assert list(found) == [1, 2, 0], "by asking alone, when nothing else waits"
    assert found[0].attempt == 2
    first, second = store.rows(sweep)[0].attempts
    assert (first.outcome, first.worker, first.process) == ("killed", "worker 1", worker.pid)
    assert first.host == socket.gethostname()
    assert str(worker.pid) in first.cause
    assert began <= first.began <= first.ended <= second.began <= time.time()
    assert first.heartbeat == pytest.approx(heartbeat)
    assert first.log == store.folder / "logs" / f"{digest[:16]}-1.txt"
    assert (second.number, second.outcome, second.process) == (2, None, os.getpid())
    assert found[0].log == second.log != first.log
    assert second.log.parent.is_dir()


def test_whoever_saw_a_worker_end_writes_down_the_cause(store, sweep, start):
    worker = start(WORKER, store.folder, sweep)
    said(worker)
    mine = store.claim(sweep, "me")
    worker.send_signal(signal.SIGSEGV)
    assert store.lost("worker 1", *cause_of(worker.wait())) == 1
    attempt = only(store.rows(sweep)[0].attempts)
    assert (attempt.outcome, attempt.cause) == ("killed", "segmentation fault (SIGSEGV)")
    assert store.counts(sweep) == {"waiting": 2, "running": 1}
    assert store.claim(sweep, "me").trial == trial_of(0), "in its order"
    with mine:
        mine.finish(1.0)


def test_a_trial_waits_while_what_a_killed_worker_left_behind_trains(store, sweep, start):
    with store.claim(sweep, "me") as claim:
        claim.fail(Outcome.KILLED, "by hand")
    script = "import sys; from convjax.ownership import owned\nwith owned(sys.argv[1]):\n"
    orphan = start(script + "    print('mine', flush=True); input()", claim.folder)
    assert said(orphan) == "mine"
    only_first = [trial_of(0).digest]
    assert store.claim(sweep, "me", only_first) is None
    orphan.kill()
    orphan.wait()
    assert store.claim(sweep, "me", only_first).attempt == 2


def test_a_run_trains_in_the_folder_of_its_claim(store, sweep):
    with store.claim(sweep, "me") as claim:
        log = RunLog(claim.folder)
        assert log.is_free()
        with log.owned():
            pass
        claim.finish(1.0)


@pytest.mark.parametrize(
    ("outcome", "attempts", "state"),
    [
        ("killed", 3, "killed"),
        ("out_of_memory", 3, "out_of_memory"),
        ("hung", 3, "hung"),
        ("failed", 1, "failed"),
        ("diverged", 1, "diverged"),
        ("pruned", 1, "pruned"),
        ("interrupted", 8, "waiting"),
        ("disk_full", 8, "waiting"),
    ],
)
def test_a_trial_is_tried_again_where_that_may_help(store, outcome, attempts, state):
    sweep = store.sweep(SPACE)
    store.add(sweep, [trial_of(0)])

    def end_all(most):
        for number in range(most):
            claim = store.claim(sweep, "me")
            if claim is None:
                return number
            with claim:
                claim.fail(Outcome(outcome), f"the {claim.attempt}.", result={"epoch": number})
        return most

    assert end_all(8) == attempts
    assert only(store.rows(sweep)).state == state
    # Asked to, it is tried as often once more, and what was is not forgotten.
    store.retry(sweep, [Outcome.PRUNED, Outcome.HUNG])
    again = attempts if outcome in ("pruned", "hung") else 0
    assert end_all(8) == again or state == "waiting"
    row = only(store.rows(sweep))
    assert [each.cause for each in row.attempts[:1]] == ["the 1."]
    assert len(row.attempts) >= attempts + again
    assert {each.outcome for each in row.attempts} == {Outcome(outcome)}
    assert row.result == {"epoch": (again or attempts) - 1}
    assert results(store, sweep) == []


def test_kills_between_interruptions_are_counted(store):
    sweep = store.sweep(SPACE)
    store.add(sweep, [trial_of(0)])
    for outcome in ("killed", "interrupted", "killed", "interrupted", "interrupted", "hung"):
        with store.claim(sweep, "me") as claim:
            claim.fail(Outcome(outcome), "by hand")
    assert store.claim(sweep, "me") is None
    assert only(store.rows(sweep)).state == "hung"


def test_a_signal_that_the_sweep_has_not_sent_counts_as_one_that_killed(store):
    """As of a daemon that frees memory: the same trial is not tried for ever."""
    sweep = store.sweep(SPACE)
    store.add(sweep, [trial_of(0)])
    for attempt in range(1, 4):
        name = f"worker {attempt}"
        with pytest.raises(Interrupted), store.claim(sweep, name):
            raise Interrupted(signal.SIGTERM, "step 7 is saved")
        assert only(store.rows(sweep)).state == "waiting"
        assert store.lost(name, *cause_of(143, asked=False)) == 1
        assert store.lost(name, *cause_of(143, asked=False)) == 0, "once"
    row = only(store.rows(sweep))
    assert row.state == "killed"
    assert {each.outcome for each in row.attempts} == {"killed"}
    assert {each.cause for each in row.attempts} == {"ended by SIGTERM: step 7 is saved"}
    assert store.claim(sweep, "me") is None


def test_a_trial_that_somebody_has_again_is_ended_by_the_next_kill(store):
    sweep = store.sweep(SPACE)
    store.add(sweep, [trial_of(0)])
    for attempt in range(1, 4):
        with pytest.raises(Interrupted), store.claim(sweep, f"worker {attempt}"):
            raise Interrupted(signal.SIGTERM)
    with store.claim(sweep, "worker 4") as claim:
        for attempt in range(1, 4):
            assert store.lost(f"worker {attempt}", *cause_of(-15, asked=False)) == 1
        assert only(store.rows(sweep)).state == "running"
        claim.fail(Outcome.KILLED, "by hand")
    assert only(store.rows(sweep)).state == "killed"


def test_a_stop_of_the_sweep_itself_never_counts(store):
    sweep = store.sweep(SPACE)
    store.add(sweep, [trial_of(0)])
    for attempt in range(8):
        name = f"worker {attempt}"
        with pytest.raises(Interrupted), store.claim(sweep, name):
            raise Interrupted(signal.SIGTERM)
        assert store.lost(name, *cause_of(143)) == 0
    assert only(store.rows(sweep)).state == "waiting"


def test_a_full_disk_is_no_fault_of_a_trial_and_ends_what_would_come_after_it(store, sweep):
    before = time.time()
    with pytest.raises(OSError, match="metrics"), store.claim(sweep, "me"):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    first, *_ = store.rows(sweep)
    assert (first.state, first.attempts[0].outcome) == ("waiting", "disk_full")
    message = rf"{first.trial.name} has no room \(.*metrics.*: free some space and start again"
    with pytest.raises(StoreError, match=message):
        store.claim(sweep, "me")
    with Store(store.folder) as other:
        with pytest.raises(StoreError, match=message):
            other.check_room(before)
        other.check_room(time.time())
        claim = claimed(other, sweep, "another")
        assert (claim.trial, claim.attempt) == (trial_of(0), 2), "whoever starts again has it"


def test_a_record_that_cannot_be_written_ends_what_would_come_after_it(store, sweep, start):
    claim = store.claim(sweep, "me")
    holder(start, store, 60)
    store._database._db.execute("PRAGMA busy_timeout = 100")
    with pytest.raises(StoreError, match="another process writes"), claim:
        claim.finish(1.0)
    with pytest.raises(StoreError, match="another process writes"):
        store.claim(sweep, "me")
    assert store.rows(sweep)[0].attempts[0].outcome is None


def test_an_error_is_written_down_and_goes_on(store, sweep):
    with pytest.raises(FileNotFoundError), store.claim(sweep, "me"):
        Path("is not there").read_text()
    with pytest.raises(Interrupted), store.claim(sweep, "me"):
        raise Interrupted(signal.SIGTERM, "step 7 is saved")
    claim = store.claim(sweep, "me")
    assert claim.trial.number == 1, "an interrupted trial waits in its order"
    with claim:
        pass
    first, second, _ = store.rows(sweep)
    failed = only(first.attempts)
    assert (first.state, failed.outcome) == ("failed", "failed")
    assert failed.cause.startswith("FileNotFoundError: ")
    interrupted, left = second.attempts
    assert interrupted.outcome == "interrupted"
    assert interrupted.cause == "ended by SIGTERM: step 7 is saved"
    assert (left.outcome, left.cause) == ("failed", "it left no result")


@pytest.mark.parametrize("first", [True, False])
def test_of_two_that_finish_a_trial_the_one_without_it_changes_nothing(store, sweep, first):
    """Two have one trial once somebody removed the lock, which none should."""
    loser = store.claim(sweep, "one")
    (store.folder / "leases" / loser.trial.name / ownership.NAME).unlink()
    with Store(store.folder) as other:
        assert other.close_killed() == 1
        winner = other.claim(sweep, "two")
        assert winner is not None
        assert winner.trial == loser.trial
        if first:
            winner.finish({"accuracy": 2})
        with pytest.raises(StoreError, match=r"attempt 1 at trial .* is closed already"), loser:
            loser.finish({"accuracy": 1})
        if not first:
            winner.finish({"accuracy": 2})
        with pytest.raises(StoreError, match="is closed already"), winner:
            winner.finish({"accuracy": 3})
    assert results(store, sweep) == [(trial_of(0), {"accuracy": 2})]
    outcomes = [attempt.outcome for attempt in store.rows(sweep)[0].attempts]
    assert outcomes == ["killed", "finished"]


def test_the_file_itself_holds_one_result_of_a_trial_at_most(store, sweep):
    """Even if the code above it were wrong."""
    with store.claim(sweep, "me") as claim:
        claim.finish(1.0)
    row = f"'{claim.trial.digest}', 2, 'me', 'here', 1, 1.0, 2.0, 'finished'"
    columns = "trial, number, worker, host, process, began, ended, outcome"
    db = sqlite3.connect(store.folder / "sweep.db")
    with contextlib.closing(db), pytest.raises(sqlite3.IntegrityError, match=r"attempt\.trial"):
        db.execute(f"INSERT INTO attempt ({columns}) VALUES ({row})")


# Reports.

CURVES = SPACE | {"objective": "max test accuracy"}


def test_a_step_that_is_reported_again_counts_once_and_what_came_after_it_is_forgotten(store):
    sweep = store.sweep(CURVES)
    store.add(sweep, [trial_of(0), trial_of(1), trial_of(0, number=2)])
    one, other = trial_of(0).digest, trial_of(1).digest
    for step, value in ((10, 0.1), (20, 0.2), (30, 0.3), (40, 0.4)):
        store.reports.add(sweep, one, step, value)
    store.reports.add(sweep, other, 20, None)
    with Store(store.folder) as seen:
        assert seen.reports.curves(sweep)[one] == [(10, 0.1), (20, 0.2), (30, 0.3), (40, 0.4)]
        # It was killed, and went on from step 15.
        store.reports.add(sweep, one, 20, 0.25)
        assert seen.reports.curves(sweep) == {one: [(10, 0.1), (20, 0.25)], other: [(20, None)]}
        store.reports.add(sweep, one, 30, 0.35)
        assert seen.reports.curves(sweep)[one] == [(10, 0.1), (20, 0.25), (30, 0.35)]


def test_news_are_what_was_reported_and_has_finished_since_the_mark(store):
    sweep = store.sweep(CURVES)
    store.add(sweep, [trial_of(0), trial_of(1), trial_of(0, number=2)])
    store.reports.add(sweep, trial_of(1).digest, 10, 0.5)
    first = store.reports.news(sweep)
    assert (first.reports, first.finished) == ([(1, 10, 0.5)], [])
    store.reports.add(sweep, trial_of(0).digest, 10, 0.25)
    store.reports.add(sweep, trial_of(1).digest, 10, None)
    with store.claim(sweep, "me") as claim:
        claim.finish(1.0)
    second = store.reports.news(sweep, first.mark)
    assert (second.reports, second.finished) == ([(0, 10, 0.25), (1, 10, None)], [0])
    assert store.reports.news(sweep, second.mark) == ([], [], second.mark)
    assert store.reports.news(sweep)[:2] == second[:2]
    # What another sweep finds there is news for it, and no more for the first.
    other = store.sweep(CURVES | {"seeds": 2})
    store.add(other, [trial_of(5)])
    begun = store.reports.news(other)
    store.add(other, [trial_of(0, number=1)])
    assert store.reports.news(other, begun.mark)[:2] == ([(1, 10, 0.25)], [1])
    assert store.reports.news(sweep, second.mark).reports == []


# The file.

# As version 1 had it.
FIRST = """
CREATE TABLE sweep (id INTEGER PRIMARY KEY, definition TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE trial (
  digest TEXT PRIMARY KEY, seed INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
  tries INTEGER NOT NULL DEFAULT 0, config TEXT NOT NULL
) STRICT;
CREATE TABLE asked (
  sweep INTEGER NOT NULL REFERENCES sweep, number INTEGER NOT NULL,
  trial TEXT NOT NULL REFERENCES trial, point TEXT NOT NULL, PRIMARY KEY (sweep, number)
) STRICT;
CREATE TABLE attempt (
  id INTEGER PRIMARY KEY, trial TEXT NOT NULL REFERENCES trial, number INTEGER NOT NULL,
  worker TEXT NOT NULL, host TEXT NOT NULL, process INTEGER NOT NULL, began REAL NOT NULL,
  ended REAL, heartbeat REAL, outcome TEXT, cause TEXT, result TEXT,
  UNIQUE (trial, number), CHECK ((outcome IS NULL) = (ended IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_works ON attempt (trial) WHERE outcome IS NULL;
CREATE UNIQUE INDEX one_result ON attempt (trial) WHERE outcome = 'finished';
PRAGMA application_id = 1667920759;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


@pytest.fixture
def old(tmp_path):
    """A file of version 1: a trial that has finished and one that waits."""
    db = sqlite3.connect(tmp_path / "sweep.db")
    db.executescript(FIRST)
    db.execute("INSERT INTO sweep (definition) VALUES (?)", [json.dumps(CURVES, sort_keys=True)])
    for trial, state in ((trial_of(0), "finished"), (trial_of(1), "waiting")):
        row = (trial.digest, 0, state, state == "finished", json.dumps(trial.config))
        db.execute("INSERT INTO trial VALUES (?, ?, ?, ?, ?)", row)
        row = (trial.number, trial.digest, json.dumps(trial.point))
        db.execute("INSERT INTO asked VALUES (1, ?, ?, ?)", row)
    row = (trial_of(0).digest, "me", "here", "finished", "0.5")
    columns = "number, process, began, ended, trial, worker, host, outcome, result"
    db.execute(f"INSERT INTO attempt ({columns}) VALUES (1, 7, 1.0, 2.0, ?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()
    return tmp_path


def test_a_record_of_the_first_version_goes_on_as_one_of_the_second(old):
    with Store(old) as store:
        assert store.sweep(CURVES) == 1
        assert results(store, 1) == [(trial_of(0), 0.5)]
        assert [row.state for row in store.changes(1)[0]] == ["finished", "waiting"]
        store.reports.add(1, trial_of(1).digest, 10, 0.25)
        with claimed(store, 1, "me") as claim:
            claim.finish(0.75)
    with Store(old) as store:
        assert results(store, 1) == [(trial_of(0), 0.5), (trial_of(1), 0.75)]
        assert store.reports.curves(1) == {trial_of(1).digest: [(10, 0.25)]}
    db = sqlite3.connect(old / "sweep.db")
    assert db.execute("PRAGMA user_version").fetchall() == [(2,)]
    db.close()


def test_a_record_is_brought_up_to_date_as_a_whole_or_not_at_all(old):
    db = sqlite3.connect(old / "sweep.db")
    db.execute("CREATE INDEX no_room ON trial (seed)")  # It is in the way of the last statement.
    db.commit()
    before = db.execute("SELECT sql FROM sqlite_master").fetchall()
    with pytest.raises(sqlite3.OperationalError, match="no_room already exists"):
        Store(old)
    assert db.execute("SELECT sql FROM sqlite_master").fetchall() == before
    assert db.execute("PRAGMA user_version").fetchall() == [(1,)]
    db.execute("DROP INDEX no_room")
    db.close()
    with Store(old) as store:
        assert len(store.changes(1)[0]) == 2


def test_processes_that_bring_a_record_up_to_date_at_once_do_it_once(old, start):
    script = "import sys; from convjax.sweep.store import Store\nprint('ready', flush=True)\n"
    script += "input(); print(len(Store(sys.argv[1]).rows(1)), flush=True)"
    processes = [start(script, old) for _ in range(4)]
    assert [said(process) for process in processes] == ["ready"] * 4
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [said(process) for process in processes] == ["2"] * 4


def holder(start, store, seconds):
    """A process that has begun to write, and goes on for seconds."""
    script = (
        "import sqlite3, sys, time\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE'); print('held', flush=True)\n"
        "time.sleep(float(sys.argv[2])); db.execute('COMMIT')"
    )
    process = start(script, store.folder / "sweep.db", seconds)
    assert said(process) == "held"
    return process


def test_a_file_that_is_held_for_seconds_is_waited_for(store, sweep, start):
    holder(start, store, 1.5)
    begin = time.monotonic()
    assert store.counts(sweep) == {"waiting": 3}, "reading does not wait"
    assert time.monotonic() - begin < 1
    with store.claim(sweep, "me") as claim:
        claim.finish(1.0)
    assert time.monotonic() - begin > 1
    assert store.counts(sweep) == {"waiting": 2, "finished": 1}


def test_a_file_that_is_held_for_too_long_is_told(store, sweep, start):
    holder(start, store, 60)
    with Store(store.folder, patience=0.2) as hasty:
        with pytest.raises(StoreError, match=r"sweep\.db: .*another process writes to it"):
            hasty.claim(sweep, "me")
        assert hasty.counts(sweep) == {"waiting": 3}


def copied(store, folder):
    """A copy of the record alone, with all that was written to it."""
    store.close()
    shutil.copytree(store.folder, folder)
    assert [each.name for each in folder.iterdir() if each.name.startswith("sweep.db")] == [
        "sweep.db"
    ]
    return folder / "sweep.db"


@pytest.mark.parametrize("where", ["head", "page", "half"])
def test_a_damaged_file_is_refused_with_what_to_do(store, sweep, tmp_path, where):
    file = copied(store, tmp_path / "copy")
    content = bytearray(file.read_bytes())
    if where == "half":
        del content[len(content) // 2 :]
    else:
        begin = 0 if where == "head" else 4096
        content[begin : begin + 4096] = random.Random(0).randbytes(4096)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"sweep\.db.* put it aside and start the sweep again"):
        Store(tmp_path / "copy")
    assert file.read_bytes() == content


def test_damage_that_comes_later_is_told_when_it_is_met(store, tmp_path):
    sweep = store.sweep(SPACE)
    # More than SQLite keeps in memory.
    large = {"model": "x" * 50_000}
    store.add(sweep, [trial_of(number, config=large) for number in range(100)])
    file = copied(store, tmp_path / "copy")
    with Store(tmp_path / "copy") as found:
        size = file.stat().st_size
        with open(file, "r+b") as content:
            content.seek(4096)
            content.write(b"\xff" * (size - 4096))
        with pytest.raises(StoreError, match="put it aside and start the sweep again"):
            found.rows(sweep)


def test_a_database_of_another_program_is_left_as_it_is(tmp_path):
    db = sqlite3.connect(tmp_path / "sweep.db")
    db.execute("CREATE TABLE trial (name TEXT)")
    db.close()
    before = (tmp_path / "sweep.db").read_bytes()
    with pytest.raises(StoreError, match=r"sweep\.db is a database of another program"):
        Store(tmp_path)
    assert (tmp_path / "sweep.db").read_bytes() == before


def test_a_record_of_another_version_is_refused(store, sweep):
    store.close()
    db = sqlite3.connect(store.folder / "sweep.db")
    db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(
        StoreError, match="is of version 7, and this convjax reads versions up to 2"
    ):
        Store(store.folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = "file/sweep: Not a directory: give another --workdir, which can be made"
    with pytest.raises(StoreError, match=message):
        Store(tmp_path / "file" / "sweep")
    with pytest.raises(StoreError, match="/proc/x: No such file or directory: give another --wor"):
        Store("/proc/x")


FULL = """
import hashlib, sys
from pathlib import Path
from convjax.sweep.store import Outcome, Store, StoreError, Trial

room, told = Path(sys.argv[1]), []
def trial(number):
    return Trial(hashlib.sha256(str(number).encode()).hexdigest(), {}, 0, {}, number)
def fill(name):
    with open(room / name, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
def tell(function, *arguments):
    try:
        function(*arguments)
    except StoreError as error:
        told.append(str(error))

store = Store(room / "sweep")
sweep = store.sweep({})
store.add(sweep, [trial(0), trial(1)])
claim = store.claim(sweep, "me")
(room / "spare").write_bytes(bytes(60_000))
fill("filler")
(room / "spare").unlink()  # Room for a cause, and not for the result.
def finish():
    with claim:
        claim.finish("x" * 100_000)
tell(finish)
assert store.counts(sweep) == {"running": 1, "waiting": 1}, "it has neither finished nor failed"
tell(store.add, sweep, [trial(number) for number in range(2, 2000)])
assert len(store.rows(sweep)) == 2, "nothing of it is there"
tell(store.claim, sweep, "me")
store.close()
store = Store(room / "sweep")  # As whoever starts again has it.
fill("more")
with store.claim(sweep, "me") as mine:  # There is room for a line, and none for who has the lock.
    mine.fail(Outcome.INTERRUPTED, "given back")
for name in ("filler", "more"):
    (room / name).unlink()
claims = [store.claim(sweep, "me") for _ in range(2)]
assert [(claim.trial.number, claim.attempt) for claim in claims] == [(1, 2), (0, 2)]
claim = claims[1]
finish()
store.close()
with Store(room / "sweep") as store:
    first, second = store.rows(sweep)
    assert (first.state, first.result) == ("finished", "x" * 100_000)
    assert (second.state, second.result) == ("running", None)
print(len(told))
print("\\n".join(told))
"""


def test_a_full_disk_costs_no_more_than_what_was_not_written(tmp_path):
    """In a file system of its own, of one megabyte."""
    room = tmp_path / "room"
    room.mkdir()
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount += ['mount -t tmpfs -o size=1m none "$0" && exec "$@"', room]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own")
    command = [*mount, sys.executable, "-c", FULL, room]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, *told = done.stdout.splitlines()
    assert int(count) == len(told) == 3
    for line in told:
        assert line.startswith(f"{room}/sweep/sweep.db: database or disk is full: free some space")


def test_a_record_is_read_without_jax_and_numpy():
    script = "import sys, convjax.sweep.store\nprint({'jax', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Causes.


def raised(function):
    with pytest.raises(BaseException) as error:  # noqa: PT011 - which it is is what is asked
        function()
    return error.value


def test_memory_that_is_used_up_is_told_from_other_errors():
    outcome, cause = cause_of(raised(lambda: jnp.zeros(1 << 50, jnp.uint8)))
    assert outcome == Outcome.OUT_OF_MEMORY
    assert "RESOURCE_EXHAUSTED" in cause
    assert cause_of(raised(lambda: bytearray(1 << 62)))[0] == Outcome.OUT_OF_MEMORY
    wrong = raised(lambda: jax.pure_callback(lambda: 1 / 0, jnp.zeros(())).block_until_ready())
    assert type(wrong).__name__ == "JaxRuntimeError"
    assert cause_of(wrong)[0] == Outcome.FAILED


def test_the_cause_of_a_cause_counts():
    def load():
        try:
            bytearray(1 << 62)
        except MemoryError as error:
            raise ValueError("image 7 cannot be read") from error

    assert cause_of(raised(load)) == (
        Outcome.OUT_OF_MEMORY,
        "ValueError: image 7 cannot be read",
    )


@pytest.mark.parametrize(
    ("error", "outcome", "cause"),
    [
        (Diverged("step 3: loss is nan"), "diverged", "step 3: loss is nan"),
        (UserError("give another --workdir"), "failed", "give another --workdir"),
        (ValueError("two\n  lines"), "failed", "ValueError: two lines"),
        (AssertionError(), "failed", "AssertionError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (Interrupted(signal.SIGINT), "interrupted", "ended by SIGINT"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (SystemExit(3), "failed", "its process ended with status 3"),
        (SystemExit("no"), "failed", "SystemExit: no"),
        (
            OSError(28, "No space left on device"),
            "disk_full",
            "OSError: [Errno 28] No space left on device",
        ),
        (
            ValueError("step 9: No space left on device [28]"),
            "disk_full",
            "ValueError: step 9: No space left on device [28]",
        ),
        (
            OSError(2, "No such file or directory"),
            "failed",
            "FileNotFoundError: [Errno 2] No such file or directory",
        ),
    ],
)
def test_an_error_has_an_outcome_and_one_line(error, outcome, cause):
    assert cause_of(error) == (outcome, cause)


@pytest.mark.parametrize(
    ("end", "outcome", "cause"),
    [
        ("os.kill(os.getpid(), 11)", "killed", "segmentation fault (SIGSEGV)"),
        ("os.kill(os.getpid(), 9)", "killed", "killed (SIGKILL): out of memory?"),
        ("os.abort()", "killed", "aborted (SIGABRT)"),
        ("os.kill(os.getpid(), 40)", "killed", "ended by signal 40"),
        ("os.kill(os.getpid(), 15)", "interrupted", "ended by SIGTERM"),
        ("sys.exit(143)", "interrupted", "ended by SIGTERM"),
        ("sys.exit(130)", "interrupted", "ended by SIGINT"),
        ("sys.exit(2)", "failed", "its process ended with status 2"),
        ("sys.exit(0)", "failed", "its process ended without a result"),
    ],
)
def test_a_process_that_ended_has_an_outcome_and_one_line(end, outcome, cause):
    command = [sys.executable, "-S", "-c", f"import os, sys; {end}"]
    status = subprocess.run(command, check=False).returncode
    assert cause_of(status) == (outcome, cause)
    # That nobody in the sweep has asked for.
    unasked = "killed" if outcome == "interrupted" else outcome
    assert cause_of(status, asked=False) == (unasked, cause)
