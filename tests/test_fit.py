"""The loop: what happens after which step, in which order, and without holding the device up."""

import io
import signal
import sys
from typing import Any, NamedTuple

import pytest

from convjax.config import ConfigError
from convjax.interrupts import Interrupted, Interrupts
from convjax.training.fit import Events, Left, Plan, fit, make_plan
from convjax.training.metrics import Metrics


class Counted(NamedTuple):
    """A state that is nothing but the number of steps taken."""

    step: int


class Loss:
    """A loss on a device: it tells when the host asks for it."""

    def __init__(self, number, told):
        self.number, self.told = number, told

    def __float__(self):
        self.told.append(("read", self.number))
        return float(self.number)


def record(plan, first=0, left=Left(), at_once=1, enough=None, broken=None, interrupts=None):
    """All that a run of the loop does, in order.

    broken: what a signal breaks off, as it would be told.
    """
    told: list[Any] = []

    def broken_off(*what):
        if what == broken:
            raise Interrupted(signal.SIGTERM)

    def take_steps(number, count, state):
        broken_off("step", number)
        told.append(("step", number) if count == 1 else ("steps", number, count))
        loss = sum(range(number, number + count))
        return Counted(state.step + count), Metrics(
            Loss(loss, told), count, count * plan.batch_size
        )

    def evaluate(number, state):
        broken_off("evaluate", number, state.step)
        told.append(("evaluate", number, state.step))
        return number == enough

    events = Events(
        lambda number, metrics, rate: told.append(("log", number, tuple(metrics)[:3])),
        evaluate,
        lambda number, state, left: told.append(
            ("save", number, state.step, tuple(left.since_log)[:3], *["owes"] * left.owes)
        ),
        lambda number, state: told.append(("skipped", number, state.step)),
    )
    start: Any = Counted(first)
    steps: Any = take_steps
    signals = interrupts or Interrupts()
    try:
        last: Any = fit(start, steps, plan, events, left, at_once, signals)
    except Interrupted:
        assert broken or signals.wanted
    else:
        assert last.step == (enough or plan.steps)
    return told


def chosen(told, *kinds):
    return [each for each in told if each[0] in kinds]


def test_a_loss_is_read_when_the_next_step_is_under_way():
    plan = Plan(steps=4, epoch=4, batch_size=2, eval_every=9, save_every=9, log_every=9)
    assert chosen(record(plan), "step", "read") == [
        ("step", 0),
        ("step", 1),
        ("read", 0),
        ("step", 2),
        ("read", 1),
        ("step", 3),
        ("read", 2),
        ("read", 3),
    ]


def test_after_a_step_comes_the_log_then_the_evaluation_then_the_save():
    plan = Plan(steps=7, epoch=3, batch_size=2, eval_every=3, save_every=2, log_every=4)
    assert chosen(record(plan), "log", "evaluate", "save") == [
        ("save", 2, 2, (0 + 1, 2, 4)),
        ("evaluate", 3, 3),
        ("log", 4, (0 + 1 + 2 + 3, 4, 8)),
        ("save", 4, 4, (0, 0, 0)),
        ("evaluate", 6, 6),
        ("save", 6, 6, (4 + 5, 2, 4)),
        ("log", 7, (4 + 5 + 6, 3, 6)),
        ("evaluate", 7, 7),
        ("save", 7, 7, (0, 0, 0)),
    ]


def test_many_steps_a_call_do_what_single_ones_do():
    plan = Plan(steps=11, epoch=5, batch_size=2, eval_every=5, save_every=4, log_every=3)
    events = ("log", "evaluate", "save")
    told = record(plan, at_once=3)
    assert chosen(told, *events) == chosen(record(plan), *events)
    assert chosen(told, "step", "steps") == [
        *(("steps", 0, 3), ("step", 3), ("step", 4), ("step", 5), ("steps", 6, 2)),
        *(("step", 8), ("step", 9), ("step", 10)),
    ]


def test_an_evaluation_that_is_enough_ends_the_training_with_a_log_and_a_save():
    plan = Plan(steps=9, epoch=3, batch_size=2, eval_every=2, save_every=3, log_every=3)
    told = chosen(record(plan, enough=4), "log", "evaluate", "save")
    assert told[-3:] == [("evaluate", 4, 4), ("log", 4, (3, 1, 2)), ("save", 4, 4, (0, 0, 0))]


@pytest.mark.parametrize("first", range(7))
def test_a_loop_that_goes_on_from_any_save_does_what_was_left(first):
    plan = Plan(steps=7, epoch=3, batch_size=2, eval_every=3, save_every=1, log_every=4)
    whole = chosen(record(plan), "step", "log", "evaluate", "save")
    cut = next(place for place, each in enumerate(whole) if each[:2] == ("step", first))
    left = Left(Metrics(*whole[cut - 1][3])) if first else Left()
    assert chosen(record(plan, first, left), "step", "log", "evaluate", "save") == whole[cut:]


PLAN = Plan(steps=7, epoch=3, batch_size=2, eval_every=3, save_every=5, log_every=4)


@pytest.mark.parametrize(
    "broken",
    [("step", number) for number in range(7)] + [("evaluate", at, at) for at in (3, 6, 7)],
)
def test_a_loop_that_is_broken_off_anywhere_saves_what_is_done_and_goes_on_with_the_rest(broken):
    kinds = ("step", "log", "evaluate")
    whole = chosen(record(PLAN), *kinds)
    told = record(PLAN, broken=broken)
    done = broken[1]
    if done in (0, 5) and broken[0] == "step":  # Nothing is done, or it was saved as planned.
        since = Metrics(4, 1, 2) if done else Metrics()
        assert [each[1] for each in told if each[0] == "save"] == [5] * (done == 5)
    else:
        last = told[-1]
        assert last[:3] == ("save", done, done)
        assert last[4:] == (("owes",) if broken[0] == "evaluate" else ())
        since = Metrics(*last[3])
    rest = record(PLAN, done, Left(since, broken[0] == "evaluate"))
    assert chosen(told, *kinds) + chosen(rest, *kinds) == whole


def test_a_signal_between_steps_ends_the_loop_after_the_step():
    signals = Interrupts()
    signals.wanted = signal.SIGTERM
    assert record(PLAN, interrupts=signals) == []

    class Late(Interrupts):
        asked = 0

        def check(self):
            self.asked += 1
            if self.asked == 2:
                self.wanted = signal.SIGINT
            super().check()

    told = record(PLAN, interrupts=Late())
    assert chosen(told, "step", "save") == [("step", 0), ("save", 1, 1, (0, 1, 2))]


def test_steps_that_were_skipped_are_told_with_the_state_of_after():
    told: list[Any] = []

    def take_steps(number, count, state):
        return Counted(state.step + 1), Metrics(0.0, 0, 0, int(number in (1, 4)))

    nothing: Any = lambda *_: False  # noqa: E731
    events = Events(nothing, nothing, nothing, lambda n, state: told.append((n, state.step)))
    steps: Any = take_steps
    start: Any = Counted(0)
    fit(start, steps, Plan(6, 6, 2, 6, 6, 6), events)
    # One call late, but for the last one before something is due.
    assert told == [(3, 3), (6, 6)]


def test_nothing_is_left_to_do_after_the_last_step():
    plan = Plan(steps=3, epoch=3, batch_size=2, eval_every=1, save_every=1, log_every=1)
    assert record(plan, first=3) == []


def test_a_plan_counts_in_steps():
    assert make_plan(1000, batch_size=128, epochs=2.5, eval_every_epochs=2) == Plan(
        steps=18, epoch=7, batch_size=128, eval_every=14, save_every=7, log_every=50
    )
    assert make_plan(10, batch_size=10, epochs=0.01, save_every_steps=4)[:5] == (1, 1, 10, 1, 4)
    assert make_plan(1000, batch_size=128, epochs=2.5, eval_every_steps=3).eval_every == 3
    with pytest.raises(ConfigError, match=r"config\.batch_size: batch size 11 for 10 images"):
        make_plan(10, batch_size=11, epochs=1)
    with pytest.raises(ConfigError, match=r"config\.epochs is 1e\+300: give fewer than"):
        make_plan(10, batch_size=10, epochs=1e300)


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self):
        return True


def test_the_progress_bar_shows_loss_accuracy_speed_and_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    plan = Plan(steps=8, epoch=8, batch_size=4, eval_every=9, save_every=9, log_every=9)
    record(plan, first=4)
    last = sys.stderr.getvalue().split("\r")[-1]  # type: ignore[attr-defined]
    assert "100%" in last
    assert "32.0/32.0" in last
    assert " images/s" in last
    assert "<00:00" in last
    assert f"loss {(4 + 5 + 6 + 7) / 16:.4f}, accuracy 0.2500" in last


def test_the_progress_bar_is_silent_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    record(Plan(steps=8, epoch=8, batch_size=4, eval_every=9, save_every=9, log_every=9))
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
