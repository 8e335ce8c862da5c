"""Runs that train at once in the places of one program: who has which.

    members = Members(config, signals)
    members.train(first, more, waiting)         # until no run is left, each to its own end

A run enters a place and trains to its end; or it is pruned, or diverges, and the next one has its
place. How many places there are is for `convjax.sweep.paying` to say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import jax
import numpy as np

from convjax.assemble import assemble
from convjax.compiler import Compiler
from convjax.config import Experiment
from convjax.interrupts import Interrupted, Interrupts
from convjax.runlog import RunLog
from convjax.sitting import Report, Sitting
from convjax.sweep.group import Group, Stack
from convjax.sweep.numbers import liftable, numbers_of, structure
from convjax.sweep.paying import Paying
from convjax.sweep.places import Entering, Place, Rows, Run
from convjax.training.feed import Order
from convjax.training.fit import Fitting, Left
from convjax.training.metrics import Metrics
from convjax.training.state import TrainState


class Members:
    """Trains runs of one structure.

    config: of one of them.
    places: how many at once; None measures how many pay.
    devices: over which they are spread, by default all of this process.
    told: is told what was measured.

    Raises:
        UserError: if the config cannot be run.
    """

    def __init__(
        self,
        config: Experiment,
        signals: Interrupts,
        *,
        places: int | None = None,
        devices: Sequence[Any] | None = None,
        told: Callable[[str], None] = print,
    ):
        experiment = assemble(config)
        self.group = Group(experiment, liftable(config, experiment.train), devices)
        self._structure = structure(config, self.group.lifted)
        self._signals = signals
        self._compiler = contextlib.ExitStack()
        self._places: dict[int, Place] = {}
        self._stack: Stack | None = None
        self._paying = Paying(self.group, signals, places, told)
        self.at_once = 1  # the most steps that a run waits for
        # Whether all places are as they were when it was last looked for runs that wait.
        self._is_settled, self._next_look = False, 0.0

    def close(self) -> None:
        """Ends what compiles."""
        self._compiler.close()

    def takes(self, config: Experiment) -> bool:
        """Whether a run of this config can have a place beside the others."""
        base = self.group.experiment
        if structure(config, numbers_of(config)) != structure(base.config, numbers_of(base.config)):
            return False
        same = numbers_of(config) == numbers_of(base.config)
        lifted = self.group.lifted if same else liftable(config, base.train)
        return structure(config, lifted) == self._structure

    def train(self, first: Run, more: Callable[[], Run | None], waiting: Callable[[], int]) -> None:
        """Trains a run, and all that `more` gives when there is a place for them.

        After a signal no other enters, and those that train are told of it by themselves. What
        `more` and `waiting` raise, and what a run does not keep to itself, ends all of them, saved.

        waiting: how many more there are.
        """
        try:
            self._enter(first, 0)
            while True:
                self._fill(more, waiting)
                if not self._places:
                    return
                self._step()
        except BaseException:
            for place in list(self._places.values()):
                with contextlib.suppress(Exception):  # It may meet the same, which is raised.
                    self._send(place, Interrupted(signal.SIGTERM))
            raise
        finally:
            self._stack = None

    def judge(self, model: Any, batch: Any, numbers: Any) -> Metrics:
        """The metrics of one batch of an evaluation."""
        return self._judge(model, batch, numbers)

    def prepare(self) -> None:
        """Starts to compile before there is a run."""
        config = self.group.experiment.config
        member = Member(self, config, RunLog(os.devnull), sys.stdout, self._signals)
        self.compile(member, member.drawn())

    def compile(self, member: Member, state: TrainState) -> None:
        """Starts to compile the programs of a run on its own, once and for all."""
        if hasattr(self, "_alone"):
            return
        compiler = self._compiler.enter_context(Compiler())
        group, placed = self.group, member.mapper.spec(state)
        batch = np.zeros((group.at_once, member.plan.batch_size), np.int32)
        given, count = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            (group.batch(batch), np.int32(1)),
        )
        self._alone = compiler.start(group.alone, placed, given, count, member.knobs, *group.placed)
        model, numbers = (placed.params, placed.state), member.knobs.numbers
        self._judge = compiler.start(group.judge, model, member.judge.batch_spec(), numbers)

    # -- Places ------------------------------------------------------------------------------------

    def _fill(self, more: Callable[[], Run | None], waiting: Callable[[], int]) -> None:
        """Has runs that wait enter, and as many train at once as pay."""
        now = time.perf_counter()
        if self._signals.wanted is not None or (self._is_settled and now < self._next_look):
            return
        self._is_settled, self._next_look = True, now + _MOMENT
        while not self._places and (run := more()):
            self._enter(run, 0)
        if not self._places:
            return
        if self._stack is None:
            with self._blamed():
                anyone = next(iter(self._places.values()))
                runs = len(self._places) + waiting()
                most = self._paying.most(runs, self._alone, anyone)
                pays = most > len(self._places)
                self.at_once = 1 if pays else self._paying.at_once()
                if pays and all(place.wanted.count == 1 for place in self._places.values()):
                    self._stack_up(most)
                self._is_settled &= not pays or self._stack is not None
        if self._stack is None:
            return
        free = [number for number in range(self._stack.count) if number not in self._places]
        while free and (run := more()):
            self._enter(run, free[-1])
            if free[-1] in self._places:
                free.pop()
        if self._paying.is_thin(len(self._places), self._stack.count):
            self._part()

    def _enter(self, run: Run, number: int) -> None:
        """Begins a run, in a place if it wants a step."""
        place = Place(number, run, self._order_of(run), self._state_of)
        self._places[number] = place
        self._send(place, None)
        if number in self._places and self._stack is not None:
            self._put(place)

    def _put(self, place: Place) -> None:
        """Moves what a run was trained to into the stack."""
        assert self._stack is not None
        self._stack.put(place.number, place.alone, place.knobs)
        for leaf in jax.tree.leaves(place.alone):
            leaf.delete()  # The run itself still holds what it began with.

    def _stack_up(self, count: int) -> None:
        """Has the runs that train apart go on in a stack."""
        taken = sorted(self._places.values(), key=lambda place: place.number)
        self._stack = self.group.stack(count, taken[0].alone, taken[0].knobs)
        self._places.clear()
        for number, place in enumerate(taken):
            place.number = number
            self._places[number] = place
            self._put(place)

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        """Has every run that trains write down what goes wrong within it."""
        try:
            yield
        except BaseException as error:
            for place in list(self._places.values()):
                self._send(place, error)

    def _send(self, place: Place, taken: tuple[Any, Metrics] | BaseException | None) -> None:
        """Goes on with a run until it wants a step again; when it is over, its place is free."""
        run, out = place.run.fitting, place.run.out
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                if isinstance(taken, BaseException):
                    place.take(run.throw(taken))
                else:
                    place.take(next(run) if taken is None else run.send(taken))
            except StopIteration:
                del self._places[place.number]
                self._is_settled = False
            except BaseException:
                del self._places[place.number]
                raise

    def _step(self) -> None:
        """Takes a step of every run."""
        for place in list(self._places.values()):
            try:
                place.check()  # A save may have failed meanwhile.
            except Exception as error:
                self._send(place, error)
        places = list(self._places.values())
        taken: list[Metrics] = []
        with self._blamed():
            taken = self._apart(places) if self._stack is None else self._together(places)
        for place, metrics in zip(places, taken):
            self._send(place, (place, metrics))

    def _apart(self, places: list[Place]) -> list[Metrics]:
        found = []
        with self._signals.released():
            self._alone.compiled()
        for place in places:
            given = self.group.batch(place.batches(self.group.at_once))
            count = np.int32(place.wanted.count)
            place.alone, metrics = self._alone(
                place.alone, given, count, place.knobs, *self.group.placed
            )
            found.append(metrics)
        return found

    def _together(self, places: list[Place]) -> list[Metrics]:
        assert self._stack is not None
        which = np.zeros((self._stack.count, self.group.experiment.plan.batch_size), np.int32)
        for place in places:
            which[place.number] = place.batch()
        rows = Rows(self._stack.step(which))
        return [rows.of(place.number) for place in places]

    def _part(self) -> None:
        """Takes the runs out of the stack: they are too few for it."""
        for place in self._places.values():
            place.alone = place.state()
        self._stack = None

    def _order_of(self, run: Run) -> Order:
        size, batch_size = self.group.experiment.train.size, self.group.experiment.plan.batch_size
        return Order(run.config.seed, size, batch_size)

    def _state_of(self, place: Place) -> TrainState:
        """What a run has been trained to, wherever it is kept."""
        return place.alone if self._stack is None else self._stack.state(place.number)


class Member(Sitting):
    """A run that has a place; see `Sitting`."""

    shows = False

    def __init__(
        self,
        members: Members,
        config: Experiment,
        log: RunLog,
        out: TextIO,
        signals: Interrupts,
        report: Report | None = None,
    ):
        experiment = members.group.experiment_of(config)
        pixels, now = members.group.pixels, time.perf_counter()
        super().__init__(experiment, log, out, now, signals, pixels, report)
        self._members, self.knobs = members, members.group.knobs(experiment)
        numbers = self.knobs.numbers
        self.judge.step = lambda model, batch: members.judge(model, batch, numbers)

    def open(self, rest: contextlib.ExitStack, state: TrainState) -> None:
        """Has the programs compiled that it shares."""
        self._members.compile(self, state)

    def at_once(self) -> int:
        """The most steps that it waits for."""
        return self._members.at_once

    def whole(self, state: Any) -> TrainState:
        """The state, wherever it is kept."""
        return state if isinstance(state, TrainState) else state.state()

    def _fit(self, state: TrainState, left: Left) -> Fitting:
        # What enters a place is more than a state.
        entering: Any = Entering(state, self.knobs, self.keeper.check)
        return (yield from super()._fit(entering, left))


_MOMENT = 0.5  # seconds after which it is looked again whether runs wait
