"""Trials that train together in the places of one program give what each gives alone."""

import dataclasses
import functools
import signal
from io import StringIO

import jax
import numpy as np
import pytest

from convjax import run, tree
from convjax.config import Augment, Average, Checkpoint, Data, Experiment, Loss, Model, Optimizer
from convjax.interrupts import Interrupted, Interrupts
from convjax.runlog import RunLog
from convjax.saved import saved_model
from convjax.sitting import Diverged, Pruned, opened
from convjax.sweep import members as rooms
from convjax.sweep import paying
from convjax.sweep.group import can_share
from convjax.sweep.members import Member, Members
from convjax.sweep.paying import Paying
from convjax.sweep.places import Run

EPOCH = 5  # steps: forty pictures, eight a batch


def config(number=0, *, epochs=10.0, **given):
    """One of the trials of a sweep: they differ in all that a step takes as arrays."""
    chosen = Experiment(
        name="member",
        seed=number,
        epochs=epochs,
        batch_size=8,
        eval_batch_size=13,
        model=Model("sweep_models:noisy", {"dropout_rate": 0.1 + 0.05 * number}),
        data=Data("sweep_models:pictures"),
        optimizer=Optimizer(
            "sgd",
            learning_rate=0.01 * (number + 1),
            weight_decay=1e-4 * number,
            args={"momentum": 0.8 + 0.02 * number},
        ),
        loss=Loss(label_smoothing=0.01 * number),
        augment=Augment(("crop(1)", "flip", f"random_erasing({0.1 + 0.1 * number})")),
        average=Average(decay=0.9),
        checkpoint=Checkpoint(every_steps=25),
    )
    return dataclasses.replace(chosen, **given)


class Trials:
    """Runs in folders, of which some may be pruned, that Members take one by one."""

    def __init__(self, folder, configs, signals, reports):
        self.folder, self.signals, self.reports = folder, signals, reports or {}
        self.left = list(enumerate(configs))
        self.ended, self.log = {}, StringIO()

    def next(self, members):
        if not self.left:
            return None
        number, each = self.left.pop(0)
        return Run(each, self.attempt(number, each, members), self.log)

    def attempt(self, number, each, members):
        log = RunLog(self.folder / str(number))
        try:
            with opened(log, each) as todo:
                if todo:
                    report = self.reports.get(number)
                    member = Member(members, each, log, self.log, self.signals, report)
                    yield from member.steps()
            self.ended[number] = "finished"
        except (Exception, Interrupted) as error:
            self.ended[number] = error


def train(
    folder,
    configs,
    *,
    places: int | None = 8,
    devices=1,
    signals=None,
    reports=None,
    told=print,
):
    """How runs of these configs ended that were trained together."""
    signals = signals or Interrupts()
    trials = Trials(folder, configs, signals, reports)
    members = Members(
        configs[0], signals, places=places, devices=jax.devices()[:devices], told=told
    )
    with signals.held():
        first = trials.next(members)
        assert first is not None
        members.train(first, lambda: trials.next(members), lambda: len(trials.left))
    members.close()
    return trials


def check_alike(folder, other):
    """Asserts that two runs came to the same, to rounding."""
    for model in ("newest", "average"):
        mine, its = (tree.leaves(saved_model(each, model)) for each in (folder, other))
        assert mine.keys() == its.keys()
        for path, value in mine.items():
            np.testing.assert_allclose(value, its[path], rtol=2e-4, atol=2e-5, err_msg=path)
    lines = [RunLog(each).metrics() for each in (folder, other)]
    assert [(a["step"], a["split"]) for a in lines[0]] == [
        (b["step"], b["split"]) for b in lines[1]
    ]
    np.testing.assert_allclose(*[[line["loss"] for line in each] for each in lines], rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run by itself, of 50 steps."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def of(number):
        run.train(config(number), folder / str(number), out=StringIO())
        return folder / str(number)

    return of


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_each_of_eight_members_is_its_lone_run_for_fifty_steps(alone, tmp_path, devices):
    trials = train(tmp_path, [config(n) for n in range(8)], devices=devices)
    assert trials.ended == dict.fromkeys(range(8), "finished")
    for number in range(8):
        check_alike(tmp_path / str(number), alone(number))


def test_a_place_that_is_free_is_given_to_the_next_run(alone, tmp_path):
    trials = train(tmp_path, [config(n) for n in (5, 0, 3)], places=2)
    assert trials.ended == dict.fromkeys(range(3), "finished")
    check_alike(tmp_path / "2", alone(3))


def test_runs_that_share_a_program_one_after_another_are_their_lone_runs(alone, tmp_path):
    trials = train(tmp_path, [config(n) for n in (0, 3)], places=1)
    assert trials.ended == dict.fromkeys(range(2), "finished")
    for number, its in enumerate((0, 3)):
        check_alike(tmp_path / str(number), alone(its))


def test_a_member_that_diverges_harms_no_other(alone, tmp_path):
    wild = config(1)
    wild.optimizer.learning_rate = 1e30
    trials = train(tmp_path, [config(0), wild, config(3)], places=2)
    assert isinstance(trials.ended.pop(1), Diverged)
    assert trials.ended == dict.fromkeys((0, 2), "finished")
    check_alike(tmp_path / "0", alone(0))
    check_alike(tmp_path / "2", alone(3))
    assert RunLog(tmp_path / "1").record()["status"] == "diverged"


def test_a_pruned_member_leaves_its_place_and_harms_no_other(alone, tmp_path):
    seen = []

    def report(step, results):
        seen.append((step, results["test"]["count"], results["test_average"]["count"]))
        return "the others do better" if step >= 3 * EPOCH else None

    trials = train(tmp_path, [config(n) for n in (0, 1, 3)], places=2, reports={1: report})
    assert isinstance(error := trials.ended.pop(1), Pruned)
    assert str(error) == "the others do better"
    assert seen == [(step, 13, 13) for step in (EPOCH, 2 * EPOCH, 3 * EPOCH)]
    assert trials.ended == dict.fromkeys((0, 2), "finished")
    check_alike(tmp_path / "2", alone(3))
    assert RunLog(tmp_path / "1").record()["status"] == "pruned"


def test_a_report_prunes_a_run_by_itself_too_and_not_at_its_end(tmp_path):
    with pytest.raises(Pruned, match="enough of it"):
        run.train(
            config(epochs=3), tmp_path / "run", out=StringIO(), report=lambda *_: "enough of it"
        )
    assert {line["step"] for line in RunLog(tmp_path / "run").metrics()} == {EPOCH}
    run.train(config(epochs=1), tmp_path / "short", out=StringIO(), report=lambda *_: "too late")
    assert RunLog(tmp_path / "short").record()["status"] == "finished"


def test_a_signal_saves_every_member_and_they_go_on_to_the_same_result(alone, tmp_path):
    signals = Interrupts()

    def report(step, results):
        if step == 4 * EPOCH:
            signals.wanted = signal.SIGTERM

    configs = [config(n) for n in (0, 3, 5)]
    stopped = train(tmp_path, configs, places=2, signals=signals, reports={1: report})
    ended = {number: type(end) for number, end in stopped.ended.items()}
    assert ended == dict.fromkeys(range(2), Interrupted)
    assert len(stopped.left) == 1
    assert min(saved_steps(tmp_path / str(number)) for number in range(2)) >= 4 * EPOCH
    trials = train(tmp_path, configs, places=3)
    assert trials.ended == dict.fromkeys(range(3), "finished")
    for number, its in enumerate((0, 3, 5)):
        check_alike(tmp_path / str(number), alone(its))


def test_a_run_alone_takes_several_steps_a_call_until_more_runs_at_once_pay(
    alone, tmp_path, monkeypatch
):
    counts, looks, apart = [], [], Members._apart

    def noted(self, places):
        counts.extend(place.wanted.count for place in places)
        return apart(self, places)

    def most(*_):
        looks.append(len(counts))
        return 1 if len(looks) < 3 else 2

    monkeypatch.setattr(rooms, "_MOMENT", 0.0)  # It is looked whether they pay at every step.
    monkeypatch.setattr(Members, "_apart", noted)
    monkeypatch.setattr(Paying, "most", most)
    monkeypatch.setattr(Paying, "at_once", lambda _: 4)
    trials = train(tmp_path, [config(0), config(3)], places=None)
    assert trials.ended == dict.fromkeys(range(2), "finished")
    # Of five steps an epoch, at the end of which it is evaluated. By the third look it waits for
    # four, which it is given; then it enters the places for two.
    assert counts == [1, 4, 4]
    for number, its in enumerate((0, 3)):
        check_alike(tmp_path / str(number), alone(its))


def test_a_run_that_enters_while_a_signal_waits_says_that_it_saved_nothing(tmp_path):
    signals = Interrupts()
    signals.wanted = signal.SIGTERM
    ended = train(tmp_path, [config(0)], places=1, signals=signals).ended
    assert isinstance(ended[0], Interrupted)
    where = f"nothing was saved yet in {tmp_path / '0'}; the same command goes on"
    assert str(ended[0]) == f"ended by SIGTERM: {where}"


def test_when_no_more_can_be_claimed_those_that_train_are_saved_and_the_error_is_told(
    tmp_path, monkeypatch
):
    signals = Interrupts()
    configs = [config(n, epochs=3) for n in range(3)]
    trials = Trials(tmp_path, configs, signals, {1: lambda step, _: broken.append(step)})
    members = Members(configs[0], signals, places=3, devices=jax.devices()[:1])
    broken = []

    def more():
        if len(trials.left) == 1:
            if broken:  # After the first evaluation, at the end of an epoch.
                raise OSError("the disk is full")
            return None
        return trials.next(members)

    first = trials.next(members)
    assert first is not None
    monkeypatch.setattr(rooms, "_MOMENT", 0.0)  # It is looked for more at every step.
    with signals.held(), pytest.raises(OSError, match="the disk is full"):
        members.train(first, more, lambda: len(trials.left))
    assert {number: type(end) for number, end in trials.ended.items()} == {
        0: Interrupted,
        1: Interrupted,
    }
    assert all(saved_steps(tmp_path / str(number)) >= EPOCH for number in range(2))
    members.close()


def test_runs_that_are_there_already_leave_the_places_to_others(alone, tmp_path, monkeypatch):
    at_once = []
    step = Members._step
    monkeypatch.setattr(
        Members, "_step", lambda self: (at_once.append(len(self._places)), step(self))[1]
    )
    run.train(config(0), tmp_path / "0", out=StringIO())
    trials = train(tmp_path, [config(n) for n in (0, 3, 5)], places=4)
    assert trials.ended == dict.fromkeys(range(3), "finished")
    assert set(at_once) == {2}
    check_alike(tmp_path / "2", alone(5))


def test_what_a_run_begins_with_takes_no_memory_beside_its_place(tmp_path, monkeypatch):
    kept = []
    put = Members._put
    monkeypatch.setattr(Members, "_put", lambda self, place: (put(self, place), kept.append(place)))
    train(tmp_path, [config(n, epochs=1) for n in range(3)], places=3)
    leaves = [leaf for place in kept for leaf in jax.tree.leaves(place.alone)]
    assert leaves
    assert all(leaf.is_deleted() for leaf in leaves)


def saved_steps(folder):
    return max(int(each.name) for each in (folder / "checkpoints").iterdir() if each.name.isdigit())


def test_a_run_that_cannot_begin_leaves_its_place(tmp_path):
    bad = config(1)
    bad.model.args["dropout_rate"] = 1.5
    trials = train(tmp_path, [config(0, epochs=1), dataclasses.replace(bad, epochs=1)], places=2)
    assert trials.ended[0] == "finished"
    assert "dropout" in str(trials.ended[1])


# -- How many --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milliseconds", "says"),
    [
        # 12 runs in two rounds of 6, rather than of 8 and 4; or all at once.
        ({1: 1.0, 6: 3.0, 12: 6.5}, "6 at once"),
        ({1: 1.0, 6: 3.0, 12: 5.0}, "12 at once"),
        ({1: 1.0, 6: 5.9}, "one after another"),  # a gain of less than a tenth
    ],
)
def test_as_many_train_at_once_as_pay_on_the_device(tmp_path, monkeypatch, milliseconds, says):
    measured = []

    def seconds(places):
        measured.append(places)
        return milliseconds[places] / 1e3

    monkeypatch.setattr(Paying, "_seconds_alone", lambda *_: seconds(1))
    monkeypatch.setattr(Paying, "_seconds_together", lambda self, size, place: seconds(size))
    monkeypatch.setattr(paying, "_WORTH", 0)
    told = []
    configs = [config(n % 8, epochs=1) for n in range(12)]
    trials = train(tmp_path, configs, places=None, told=told.append)
    assert len(trials.ended) == 12
    assert set(measured) == set(milliseconds)
    [line] = told
    assert line.endswith(says)


def test_long_steps_on_a_cpu_are_not_measured_beside_others(tmp_path, monkeypatch):
    monkeypatch.setattr(Paying, "_seconds_alone", lambda *_: 5e-3)
    monkeypatch.setattr(paying, "_WORTH", 0)
    told = []
    trials = train(tmp_path, [config(n, epochs=1) for n in range(2)], places=None, told=told.append)
    assert len(trials.ended) == 2
    assert told[0].startswith("one run after another: a step takes 5 ms, which keeps a CPU busy")


def test_little_work_is_not_measured(tmp_path):
    told = []
    trials = train(tmp_path, [config(n, epochs=1) for n in range(2)], places=None, told=told.append)
    assert len(trials.ended) == 2
    assert "not worth a look" in told[0]


def test_a_run_on_several_devices_or_from_the_disk_shares_no_program():
    assert can_share(config())
    assert not can_share(config(parallel="sharded"))
    assert not can_share(config(data=Data("image_folder", view="centre_crop(8)")))


def test_members_take_runs_that_differ_in_numbers_and_no_others():
    members = Members(config(), Interrupts(), places=2)
    assert members.takes(config(3))
    assert not members.takes(config(3, epochs=2))
    assert not members.takes(config(0, batch_size=4))
    without = config(2)
    without.model.args["dropout_rate"] = 0.0  # It has no dropout, and another program.
    assert not members.takes(without)
    members.close()
