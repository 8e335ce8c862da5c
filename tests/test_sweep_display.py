"""What is told of a sweep: the table on a terminal, the lines elsewhere, the time left, the CSV."""

import csv
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from convjax.sweep import display, progress
from convjax.sweep.display import Lines, display_on
from convjax.sweep.objective import parse
from convjax.sweep.progress import Progress
from convjax.sweep.store import Store
from convjax.sweep.table import best, by_point, write_csv
from convjax.sweep.trial import Attempt, Outcome, Row, Trial

ROOT = Path(__file__).parent.parent
OBJECTIVE = parse("max test accuracy")
WIDE = {"objective": "max test accuracy"}


def trial(number, **point):
    return Trial(f"{number:064x}"[::-1], point or {"n": number}, 0, {"epochs": 1.0}, number)


def accuracy(value):
    return {"final": {"accuracy": value, "loss": 1.0}}


def row(number, state, result=None, began=0.0, ended=None, seed=0):
    outcome = None if ended is None else Outcome(state)
    attempt = Attempt(1, "w", "h", 1, began, ended, None, outcome, None, Path("log"))
    attempts = [] if state == "waiting" else [attempt]
    return Row(trial(number)._replace(seed=seed), state, result, attempts)


@pytest.fixture
def sweep(tmp_path):
    """A record with a trial in each of several states: finished twice, failed, pruned, running."""
    with Store(tmp_path) as store:
        number = store.sweep(WIDE)
        store.add(number, map(trial, range(6)))
        ends = [accuracy(0.5), accuracy(0.75), RuntimeError("a [red]mistake\x1b[2J"), None]
        for end in ends:
            claim = store.claim(number, "worker")
            assert claim is not None
            try:
                with claim:
                    if isinstance(end, Exception):
                        raise end
                    if end is None:
                        claim.fail(Outcome.PRUNED, "median: it fell behind", accuracy(0.25))
                    else:
                        claim.finish(end)
            except RuntimeError:
                pass
        running = store.claim(number, "worker")
        assert running is not None
        with running:
            yield store, number
            running.fail(Outcome.INTERRUPTED, "the test is over")


def test_progress_is_what_the_record_says_however_it_came_to_be(sweep):
    store, number = sweep
    found = Progress(store, number, 2, OBJECTIVE)
    assert found.rows == store.rows(number)
    assert found.counts() == {"finished": 2, "failed": 1, "pruned": 1, "running": 1, "waiting": 1}
    assert found.update() == []
    store.add(number, [trial(6), trial(7)])
    assert [each.trial.number for each in found.update()] == [6, 7]
    with store.claim(number, "other") as claim:
        assert [each.state for each in found.update()] == ["running"]
        claim.finish(accuracy(0.875))
    assert [each.state for each in found.update()] == ["finished"]
    assert found.rows == store.rows(number)
    assert found.results == by_point(store.rows(number), 2, OBJECTIVE)
    assert found.over() == 5
    assert str(found.best()) == "0.8750 (1 of 2 seeds) at n=4"


def test_time_left_is_what_the_rest_takes_at_the_pace_of_what_has_ended():
    def left(*rows, total, workers, now=100.0):
        return progress._left(rows, total, workers, now)

    one, other = row(0, "finished", began=0.0, ended=10.0), row(1, "failed", began=10.0, ended=40.0)
    assert left(row(0, "running", began=90.0), total=4, workers=1) is None
    # Twenty seconds each: eight trials are left.
    assert left(one, other, total=10, workers=1) == pytest.approx(160.0)
    assert left(one, other, total=10, workers=4) == pytest.approx(40.0)
    # A running one has five of its twenty behind it, and the other will take no more.
    assert left(one, other, row(2, "running", began=95.0), total=3, workers=2) == pytest.approx(
        15.0
    )
    assert left(one, other, row(2, "running", began=20.0), total=3, workers=2) == 0.0
    # A group in one program: eight at once, though there is one worker.
    group = [row(2 + each, "running", began=100.0) for each in range(8)]
    assert left(one, other, *group, total=18, workers=1) == pytest.approx(40.0)
    assert left(one, other, total=2, workers=2) == 0.0


def test_a_duration_is_said_as_a_person_says_it():
    assert [display.duration(each) for each in (0.4, 89.0, 91.0, 5300.0, 5401.0, 7500.0)] == [
        *("0 s", "89 s", "2 min", "88 min", "1 h 30 min"),
        "2 h 05 min",
    ]


def test_a_line_is_told_of_each_trial_that_ends_with_how_many_there_will_be(sweep):
    store, number = sweep
    out, found = io.StringIO(), Progress(store, number, 1, OBJECTIVE)
    ended = [each for each in found.rows if each.state in ("finished", "failed", "pruned")]
    Lines(out).show(found, 9, 1, ended)
    name = [each.trial.name for each in ended]
    assert out.getvalue().splitlines() == [
        f"1/9 {name[0]} test accuracy 0.5000 at n=0, seed 0",
        f"2/9 {name[1]} test accuracy 0.7500 at n=1, seed 0",
        f"3/9 {name[2]} failed: RuntimeError: a [red]mistake\x1b[2J at n=2, seed 0",
        f"4/9 {name[3]} pruned: median: it fell behind at n=3, seed 0",
    ]


def test_the_table_has_the_best_the_counts_the_newest_and_what_failed(sweep):
    store, number = sweep
    out, found = io.StringIO(), Progress(store, number, 1, OBJECTIVE)
    screen = display._OnScreen(out)
    screen._console = Console(file=out, width=90, color_system=None)
    ended = [each for each in found.rows if each.state in ("finished", "failed", "pruned")]
    screen.show(found, 9, 1, ended)
    screen._console.print(screen._picture(found, 9, 1))
    text = out.getvalue()
    assert re.search(r"best +max test accuracy 0\.7500 at n=1 *\n", text)
    assert re.search(
        r"trials +4 of 9 done: 1 running, 2 finished, 1 pruned, 1 failed, about \d+ s left", text
    )
    newest, bad = re.findall(r"^(newest|bad) +(\S+)", text, re.MULTILINE)
    assert newest == ("newest", ended[3].trial.name)
    assert bad == ("bad", ended[2].trial.name)
    assert "failed: RuntimeError: a [red]mistake [2J" in text
    assert "\x1b" not in text, "what a cause holds moves no cursor"


def test_what_is_no_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with display_on(None) as found:
        found.note("a word")
    assert isinstance(found, Lines)
    assert out.getvalue() == "a word\n"


def test_a_terminal_that_is_gone_ends_nothing(sweep, monkeypatch):
    store, number = sweep
    leader, follower = pty.openpty()
    terminal = open(follower, "w")  # noqa: SIM115 - what is left in it cannot be written
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with display_on(None) as found:
        assert not isinstance(found, Lines)
        # A second Ctrl-C would end the process here, with nobody to bring the cursor back.
        assert re.search(rb"\x1b\[\?25l.*\x1b\[\?25h", os.read(leader, 4096), re.DOTALL)
        os.close(leader)
        rows = Progress(store, number, 1, OBJECTIVE)
        for _ in range(3):
            found.show(rows, 9, 1, rows.rows[:1])
        found.note("nobody sees it")
    assert sys.stdout is terminal
    with pytest.raises(OSError, match="Input/output error"):
        terminal.close()


def on_terminal(words, folder, until=None):
    """What a sweep writes to a terminal, and its status; Ctrl-C once `until` is there."""
    leader, follower = pty.openpty()
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "CONVJAX_CACHE": str(folder / "programs"),
        "XLA_FLAGS": "",
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    base = ["--config.model.name=sweep_models:tiny", "--config.data.name=sweep_models:pictures"]
    base += ["--config.batch_size=5", "--engine=processes", f"--workdir={folder / 'sweep'}"]
    command = [sys.executable, "-m", "experiments.sweep", *base, *words]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    text, end = "", time.monotonic() + 60
    while time.monotonic() < end:
        try:
            part = os.read(leader, 65536).decode(errors="replace")
        except OSError:  # The other end is closed.
            break
        text += part
        if until and until in text:
            until = None
            process.send_signal(signal.SIGINT)
    os.close(leader)
    return text, process.wait(30)


def test_on_a_terminal_a_table_stays_in_its_place_and_the_last_line_is_the_closing_one(tmp_path):
    words = ["--vary=optimizer.learning_rate=0.05,0.2", "--sampler=grid", "--config.epochs=1"]
    text, status = on_terminal(words, tmp_path)
    assert status == 0, text
    assert "0 of 2 done" in text
    assert "2 of 2 done: 2 finished" in text
    assert re.search(r"\x1b\[\d*A", text), "the cursor went up"
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "there is a cursor"
    last = text.rstrip().splitlines()[-1].removeprefix("\x1b[?25h")
    assert re.match(r"max test accuracy 0\.\d{4} at optimizer\.learning_rate=0\.", last)


def test_ctrl_c_on_a_terminal_saves_says_so_and_leaves_a_cursor(tmp_path):
    words = ["--vary=optimizer.learning_rate=0.05,0.2", "--sampler=grid", "--config.epochs=30000"]
    text, status = on_terminal(words, tmp_path, until="1 running")
    assert status == 130, text
    assert "what is under way is saved" in text
    assert "ended by SIGINT" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "there is a cursor"
    with Store(tmp_path / "sweep") as store:
        assert store.counts(1) == {"waiting": 2}


def test_a_point_of_which_a_seed_was_pruned_comes_after_those_that_have_all():
    rows = [
        *(row(0, "finished", accuracy(0.9)), row(1, "pruned", accuracy(0.3), ended=1.0)),
        *(row(2, "finished", accuracy(0.5)), row(3, "finished", accuracy(0.6))),
    ]
    found = best(by_point(rows, 2, OBJECTIVE), OBJECTIVE)
    assert found is not None
    assert found.value is not None
    assert found.value[0] == pytest.approx(0.55)
    found = best(by_point(rows[:2], 2, OBJECTIVE), OBJECTIVE)
    assert str(found) == "0.9000 (1 of 2 seeds) at n=0"


def test_of_a_pruned_point_a_sampler_is_told_how_far_its_seeds_came():
    def came(number, state, value, epoch):
        at = {"epoch": epoch, "step": 1}
        lines = {split: {"split": split, "accuracy": value} | at for split in ("train", "test")}
        return row(number, state, {"last": lines}, ended=1.0)

    rows = [came(0, "pruned", 0.25, 1.5), came(1, "pruned", 0.75, 3.0), row(2, "waiting")]
    pruned, waiting = by_point(rows, 2, OBJECTIVE)
    assert (pruned.told.value, pruned.told.state, pruned.told.epochs) == (0.5, "pruned", 4.5)
    assert (waiting.told.value, waiting.told.state) == (None, "running")


def test_in_the_csv_a_value_none_is_no_path_that_is_not_there(tmp_path):
    points = [{"data.dir": None}, {"data.dir": "=HYPERLINK(0)"}, {"epochs": -2.5, "n": True}, {}]
    with Store(tmp_path) as store:
        trials = [trial(number)._replace(point=point) for number, point in enumerate(points)]
        store.add(store.sweep(WIDE), trials)
        write_csv(store, store.rows(1), OBJECTIVE)
    with open(tmp_path / "results.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [each["data.dir"] for each in found] == ["None", "'=HYPERLINK(0)", "", ""]
    assert [(each["epochs"], each["n"]) for each in found] == [
        *(("", ""), ("", ""), ("-2.5", "True"), ("", "")),
    ]
