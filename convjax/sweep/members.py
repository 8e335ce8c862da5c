"""Runs that train at once in the places of one program: who has which, and how many pay.

    members = Members(config, signals)
    members.train(first, more, waiting)         # until no run is left, each to its own end

A run enters a place and trains to its end; or it is pruned, or diverges, and the next one has its
place. Whether one program for many is faster than one run after another is measured on copies of
the first run, on the devices that are there, and told.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from convjax.assemble import assemble
from convjax.compiler import Compiler
from convjax.config import Experiment
from convjax.interrupts import Interrupted, Interrupts
from convjax.runlog import RunLog
from convjax.sitting import Report, Sitting
from convjax.sweep.group import Group, Knobs, Stack
from convjax.sweep.numbers import liftable, numbers_of, structure
from convjax.training.feed import Order
from convjax.training.fit import Fitting, Left, Wanted
from convjax.training.metrics import Metrics
from convjax.training.state import TrainState


class Run(NamedTuple):
    """A run that is to be trained.

    fitting: waits for its steps, and raises nothing that is its own affair.
    out: a file of text, to which all goes that is printed while it is at work.
    """

    config: Experiment
    fitting: Fitting
    out: Any


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
        self._signals, self._asked, self._told = signals, places, told
        self._compiler = contextlib.ExitStack()
        self._places: dict[int, _Place] = {}
        self._stack: Stack | None = None
        # Seconds that a step takes with so many places; 1 is a run on its own.
        self._costs: dict[int, float] = {}
        self._has_said = False
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

    def compile(self, member: Member, state: TrainState) -> None:
        """Starts to compile the programs of a run on its own, once and for all."""
        if hasattr(self, "_alone"):
            return
        compiler = self._compiler.enter_context(Compiler())
        group, placed = self.group, member.mapper.spec(state)
        batch = np.zeros(member.plan.batch_size, np.int32)
        given = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), group.batch(batch)
        )
        self._alone = compiler.start(group.alone, placed, given, member.knobs, *group.placed)
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
                most = self._most(len(self._places) + waiting())
                if most > len(self._places):
                    self._stack_up(most)
        if self._stack is None:
            return
        free = [number for number in range(self._stack.count) if number not in self._places]
        while free and (run := more()):
            self._enter(run, free[-1])
            if free[-1] in self._places:
                free.pop()
        if self._is_thin():
            self._part()

    def _enter(self, run: Run, number: int) -> None:
        """Begins a run, in a place if it wants a step."""
        place = _Place(self, number, run)
        self._places[number] = place
        self._send(place, None)
        if number in self._places and self._stack is not None:
            self._put(place)

    def _put(self, place: _Place) -> None:
        """Moves what a run was trained to into the stack."""
        assert self._stack is not None
        self._stack.put(place.number, place.alone, place.knobs)
        for leaf in jax.tree.leaves(place.alone):
            leaf.delete()  # The run itself still holds what it began with.

    def _stack_up(self, count: int) -> None:
        """Has the runs that train apart go on in a stack."""
        taken = sorted(self._places.values(), key=lambda place: place.number)
        self._stack = self._stacked(count, taken[0])
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

    def _send(self, place: _Place, taken: tuple[Any, Metrics] | BaseException | None) -> None:
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

    def _apart(self, places: list[_Place]) -> list[Metrics]:
        found = []
        with self._signals.released():
            self._alone.compiled()
        for place in places:
            given = self.group.batch(place.batch())
            place.alone, metrics = self._alone(place.alone, given, place.knobs, *self.group.placed)
            found.append(metrics)
        return found

    def _together(self, places: list[_Place]) -> list[Metrics]:
        assert self._stack is not None
        which = np.zeros((self._stack.count, self.group.experiment.plan.batch_size), np.int32)
        for place in places:
            which[place.number] = place.batch()
        rows = _Rows(self._stack.step(which))
        return [rows.of(place.number) for place in places]

    def _part(self) -> None:
        """Takes the runs out of the stack: they are too few for it."""
        for place in self._places.values():
            place.alone = place.state()
        self._stack = None

    def _is_thin(self) -> bool:
        """Whether so few places are taken that their runs are faster one after the other."""
        assert self._stack is not None
        cost, alone = self._costs.get(self._stack.count, 0.0), self._costs.get(1, math.inf)
        return len(self._places) * alone < cost

    def state_of(self, place: _Place) -> TrainState:
        """What a run has been trained to, wherever it is kept."""
        return place.alone if self._stack is None else self._stack.state(place.number)

    # -- How many ----------------------------------------------------------------------------------

    def _most(self, runs: int) -> int:
        """How many places to have for so many runs, those that have entered among them."""
        if self._asked is not None:
            return self._rounded(min(self._asked, runs))
        if runs == 1:
            return 1
        if len(self._costs) < 2 and not self._is_worth_a_look(runs):
            return 1
        if len(self._costs) < 2:
            self._measure(runs)
        alone = self._costs[1]
        # With as many taken as there are runs a step of all is to cost less, by a tenth.
        paying = [n for n, cost in self._costs.items() if cost * 1.1 < min(n, runs) * alone]
        return min(paying, key=lambda n: self._costs[n] / min(n, runs), default=1)

    def _is_worth_a_look(self, runs: int) -> bool:
        """Whether so many runs may gain more by training at once than it costs to find out."""
        with self._signals.released():
            compilation = self._alone.compiled().seconds
        if 1 not in self._costs:
            self._costs[1] = self._seconds_alone(self._anyone())
        alone = self._costs[1]
        work = runs * self.group.experiment.plan.steps * alone
        if self.group.devices[0].platform == "cpu" and alone > _LONG_ON_CPU:
            why = "which keeps a CPU busy: more at once would not be faster"
        elif work < _WORTH * compilation:
            why = f"and {work:.0f} s of work are not worth a look at more at once"
        else:
            return True
        if not self._has_said:
            self._told(f"one run after another: a step takes {alone * 1e3:.3g} ms, {why}")
        self._has_said = True
        return False

    def _measure(self, runs: int) -> None:
        """Measures steps of more and more places, for as long as more of them pay."""
        best = alone = self._costs[1]
        for base in _SIZES:
            size = self._rounded(math.ceil(runs / math.ceil(runs / base)))
            if size in self._costs:
                break
            self._costs[size] = math.inf
            try:
                with self._signals.released():
                    stack = self._stacked(size, self._anyone())
                    self._costs[size] = self._seconds_together(stack)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                break
            each = self._costs[size] / size
            if each * 1.1 > best:
                break
            best = each
        self._costs[1] = alone = min(alone, self._seconds_alone(self._anyone()))
        each = {size: cost / size for size, cost in self._costs.items() if size > 1}
        shown = ", ".join(f"of {size} at once {cost * 1e3:.3g} ms" for size, cost in each.items())
        least = min(each, key=lambda size: each[size])
        says = f"{least} at once" if each[least] * 1.1 < alone else "one after another"
        self._told(f"a step of one run {alone * 1e3:.3g} ms, {shown} each: {says}")

    def _anyone(self) -> _Place:
        return next(iter(self._places.values()))

    def _rounded(self, size: int) -> int:
        """A number of places that the devices can share."""
        devices = len(self.group.devices)
        return size if size == 1 else -(-size // devices) * devices

    def _stacked(self, count: int, place: _Place) -> Stack:
        return self.group.stack(count, place.alone, place.knobs)

    def _seconds_alone(self, place: _Place) -> float:
        state = jax.tree.map(jnp.copy, place.alone)

        def step() -> Any:
            nonlocal state
            given = self.group.batch(place.batch())
            state, metrics = self._alone(state, given, place.knobs, *self.group.placed)
            return metrics

        return _seconds(step)

    def _seconds_together(self, stack: Stack) -> float:
        which = np.tile(self._anyone().batch(), (stack.count, 1))
        return _seconds(lambda: stack.step(which))


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

    def whole(self, state: Any) -> TrainState:
        """The state, wherever it is kept."""
        return state if isinstance(state, TrainState) else state.state()

    def _fit(self, state: TrainState, left: Left) -> Fitting:
        # What enters a place is more than a state.
        entering: Any = _Entering(state, self.knobs, self.keeper.check)
        return (yield from super()._fit(entering, left))


class _Entering(NamedTuple):
    """A run before its first step in this sitting."""

    first: TrainState
    knobs: Knobs
    check: Callable[[], None]

    @property
    def step(self) -> Any:
        return self.first.step

    def state(self) -> TrainState:
        return self.first


class _Place:
    """A place with the run that has it: a state, as far as the run is concerned.

    alone: what it has been trained to, but in a stack.
    """

    alone: TrainState
    knobs: Knobs
    wanted: Wanted

    def __init__(self, members: Members, number: int, run: Run):
        self._members, self.number, self.run = members, number, run
        experiment = members.group.experiment
        size, batch_size = experiment.train.size, experiment.plan.batch_size
        self._order = Order(run.config.seed, size, batch_size)
        self.check: Callable[[], None] = lambda: None

    def take(self, wanted: Wanted) -> None:
        """Notes what the run waits for."""
        self.wanted = wanted
        if isinstance(wanted.state, _Entering):
            self.alone, self.knobs, self.check = wanted.state

    def batch(self) -> np.ndarray:
        """The numbers of the images that it waits for."""
        return self._order.batch(self.wanted.first)

    def state(self) -> TrainState:
        """What the run has been trained to."""
        return self._members.state_of(self)


class _Rows:
    """Metrics of all places, which the host reads once, when the first run asks for its own."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def of(self, place: int) -> Metrics:
        return Metrics(*(_Entry(self, name, place) for name in Metrics._fields))

    def read(self, name: str, place: int) -> Any:
        self._metrics = jax.device_get(self._metrics)
        return getattr(self._metrics, name)[place]


class _Entry(NamedTuple):
    """A number of a place's metrics."""

    rows: _Rows
    name: str
    place: int

    def __float__(self) -> float:
        return float(self.rows.read(self.name, self.place))

    def __int__(self) -> int:
        return int(self.rows.read(self.name, self.place))


def _seconds(step: Callable[[], Any]) -> float:
    """How long a step takes: the least of a few times, after one that may compile."""
    jax.block_until_ready(step())
    taken, end = [], time.perf_counter() + _LOOK
    while len(taken) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        jax.block_until_ready(step())
        taken.append(time.perf_counter() - begun)
    return min(taken)


_SIZES = (8, 32, 128)  # places that are tried, each only if the one before has paid
_LOOK = 0.5  # seconds for which each is looked at
_MOMENT = 0.5  # seconds after which it is looked again whether runs wait
_WORTH = 3  # A look costs about one or two compilations.
# Seconds. A CPU gains what a call and its many small operations cost, and no more: docs/decisions.
_LONG_ON_CPU = 4e-3
