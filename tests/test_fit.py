"""The loop: what happens after which step, in which order, and without holding the device up."""

import io
import sys
from typing import Any, NamedTuple

import pytest

from convjax.config import ConfigError
from convjax.training.fit import Events, Plan, fit, make_plan
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


def record(plan, first=0, since_log=Metrics(), at_once=1, enough=None):
    """All that a run of the loop does, in order."""
    told: list[Any] = []

    def take_steps(number, count, state):
        told.append(("step", number) if count == 1 else ("steps", number, count))
        loss = sum(range(number, number + count))
        return Counted(state.step + count), Metrics(
            Loss(loss, told), count, count * plan.batch_size
        )

    def evaluate(number, state):
        told.append(("evaluate", number, state.step))
        return number == enough

    events = Events(
        lambda number, metrics, rate: told.append(("log", number, tuple(metrics))),
        evaluate,
        lambda number, state, since: told.append(("save", number, state.step, tuple(since))),
    )
    start: Any = Counted(first)
    steps: Any = take_steps
    last: Any = fit(start, steps, plan, events, since_log, at_once)
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
    since_log = Metrics(*whole[cut - 1][3]) if first else Metrics()
    assert chosen(record(plan, first, since_log), "step", "log", "evaluate", "save") == whole[cut:]


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
