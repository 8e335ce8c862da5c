"""The training loop: steps, and what happens between them.

state = fit(state, take_steps, plan, events)

run = fitting(state, plan, events)          # the same, by whoever takes the steps of many runs
wanted = next(run)                          # Wanted(first, count, state)
wanted = run.send((state, metrics))
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from convjax.config import ConfigError
from convjax.data.batches import steps_per_epoch
from convjax.interrupts import Interrupted, Interrupts
from convjax.training.metrics import Metrics, add, means, to_host
from convjax.training.state import TrainState


class Plan(NamedTuple):
    """How long to train, and after which steps to do what; all in steps but `batch_size`."""

    steps: int
    epoch: int
    batch_size: int
    eval_every: int
    save_every: int
    log_every: int


class Events(NamedTuple):
    """What is done between steps; each is told the number of steps taken.

    log: with the metrics of the steps since the last time, and images a second (None if unknown).
    evaluate: with the state; returns whether that was enough, and the training ends here.
    save: with the state and what else a resumed run goes on from.
    skipped: after steps that were skipped, with the newest state.
    """

    log: Callable[[int, Metrics, float | None], None]
    evaluate: Callable[[int, TrainState], bool]
    save: Callable[[int, TrainState, Left], None]
    skipped: Callable[[int, TrainState], None]


class Left(NamedTuple):
    """What a run has left undone, beside its state.

    since_log: the metrics of the steps since the last log.
    owes: whether an evaluation was due and was broken off, or not begun.
    """

    since_log: Metrics = Metrics()
    owes: bool = False


class Wanted(NamedTuple):
    """Steps that a run waits for: `count` of them from the `first` on, counted from 0."""

    first: int
    count: int
    state: Any


Fitting = Generator[Wanted, tuple[Any, Metrics], Any]


def make_plan(
    size: int,
    *,
    batch_size: int,
    epochs: float,
    eval_every_epochs: int = 1,
    eval_every_steps: int = 0,
    save_every_steps: int = 0,
    log_every_steps: int = 50,
) -> Plan:
    """The plan for `size` images. A fraction of an epoch is rounded to a whole number of steps.

    eval_every_steps: 0 goes by eval_every_epochs.
    save_every_steps: 0 saves once an epoch.

    >>> make_plan(1000, batch_size=100, epochs=2.5)
    Plan(steps=25, epoch=10, batch_size=100, eval_every=10, save_every=10, log_every=50)

    Raises:
        ConfigError: if a batch is larger than the data, or steps are more than an int32 counts.
    """
    try:
        epoch = steps_per_epoch(size, batch_size)
    except ValueError as error:
        raise ConfigError(f"config.batch_size: {error}") from None
    steps = max(round(epochs * epoch), 1)
    if steps >= 2**31:
        raise ConfigError(f"config.epochs is {epochs:g}: give fewer than {2**31 / epoch:.0f}")
    return Plan(
        steps=steps,
        epoch=epoch,
        batch_size=batch_size,
        eval_every=eval_every_steps or eval_every_epochs * epoch,
        save_every=save_every_steps or epoch,
        log_every=log_every_steps,
    )


def fit(
    state: TrainState,
    take_steps: Callable[[int, int, TrainState], tuple[TrainState, Metrics]],
    plan: Plan,
    events: Events,
    left: Left = Left(),
    at_once: int = 1,
    interrupts: Interrupts = Interrupts(),
) -> TrainState:
    """Trains from the state's own step to the end of the plan, or until an evaluation is enough.

    Evaluates, logs and saves as planned and after the last step, in this order: log, evaluate,
    save. So all that is known of a saved step was logged before. A progress bar on standard error
    shows loss, accuracy, images a second and time left; it is silent where that is no terminal.

    take_steps: `(n, count, state) -> (state, metrics)`, so many steps with the batches from the
        n-th on, counted from 0; and the sums of their metrics.
    left: what a resumed run has to begin with.
    at_once: the largest count; where something is due earlier, it is smaller.
    interrupts: a signal ends the training with Interrupted, once the last finished step is saved;
        it may break off `take_steps` and `evaluate` where these release it.
    """
    steps = fitting(state, plan, events, left, lambda: at_once, interrupts)
    return drive(steps, take_steps)


def drive(run: Fitting, take_steps: Callable[[int, int, Any], tuple[Any, Metrics]]) -> Any:
    """Takes the steps that a run waits for until it is over; returns what it gives.

    What `take_steps` raises is raised in the run, where it waits.
    """
    try:
        wanted = next(run)
        while True:
            try:
                taken = take_steps(*wanted)
            except BaseException as error:
                wanted = run.throw(error)
            else:
                wanted = run.send(taken)
    except StopIteration as end:
        return end.value


def fitting(
    state: TrainState,
    plan: Plan,
    events: Events,
    left: Left = Left(),
    at_once: Callable[[], int] = lambda: 1,
    interrupts: Interrupts = Interrupts(),
    *,
    shows: bool = True,
) -> Fitting:
    """The same as `fit`, which waits for its steps: it yields which, and is sent what they give.

    What it is sent as a state is handed to the events as it is, so that it may be the place of one.

    at_once: the largest count at that time. shows: whether there is a progress bar.
    """
    first = done = saved = int(state.step)
    since_log, owes = left
    pending: Metrics | None = None
    log = save = enough = False
    clock = _Clock()
    with _progress_bar(plan, first, shows) as bar, interrupts.held():
        try:
            while True:
                if log:
                    events.log(done, since_log, clock.images_per_second())
                    since_log = Metrics()
                    clock.start()
                with clock.stopped():
                    if owes:
                        enough = events.evaluate(done, state)
                        owes = False
                    if enough and any(since_log):
                        events.log(done, since_log, clock.images_per_second())
                        since_log = Metrics()
                    if (save or enough) and saved < done:
                        events.save(done, state, Left(since_log))
                        saved = done
                if enough or done >= plan.steps:
                    return state
                interrupts.check()
                count = min(at_once(), _steps_to_next(done, plan))
                state, metrics = yield Wanted(done, count, state)
                done += count
                if done == first + count:
                    clock.start()  # The first call compiles: its time says nothing about the rest.
                before, pending = pending, metrics
                log, owes, save = _due(done, plan)
                # Metrics are read one call late, when the device has its next step already.
                skipped = since_log.skipped
                if before is not None:
                    since_log = _count(before, since_log, clock, bar)
                if log or owes or save:
                    since_log, pending = _count(metrics, since_log, clock, bar), None
                if since_log.skipped > skipped:
                    events.skipped(done, state)
        except Interrupted:
            if pending is not None:
                since_log = _count(pending, since_log, clock, bar)
            if saved < done:
                events.save(done, state, Left(since_log, owes))
            raise


def _steps_to_next(done: int, plan: Plan) -> int:
    """How many steps there are until something is due."""
    periods = (plan.log_every, plan.eval_every, plan.save_every)
    return min(plan.steps - done, *(every - done % every for every in periods))


def _due(done: int, plan: Plan) -> tuple[bool, bool, bool]:
    """Whether to log, to evaluate and to save after that many steps."""
    periods = (plan.log_every, plan.eval_every, plan.save_every)
    log, evaluate, save = (done % every == 0 or done == plan.steps for every in periods)
    return log, evaluate, save


def _count(pending: Metrics, since_log: Metrics, clock: _Clock, bar: tqdm) -> Metrics:
    """Waits for the metrics of a step, adds them to the others and shows them."""
    metrics = to_host(pending)
    clock.images += metrics.count
    total = add(since_log, metrics)
    if not bar.disable:
        mean = means(total)
        shown = f"loss {mean['loss']:.4f}, accuracy {mean['accuracy']:.4f}"
        bar.set_postfix_str(shown, refresh=False)
        bar.update(metrics.count)
    return total


def _progress_bar(plan: Plan, first: int, shows: bool) -> tqdm:
    return tqdm(
        total=plan.steps * plan.batch_size,
        initial=first * plan.batch_size,
        unit=" images",
        unit_scale=True,
        disable=None if shows else True,  # None: where standard error is no terminal
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.25,
    )


class _Clock:
    """Counts images over the time spent on steps; what happens between steps stops it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.images = 0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        stop = time.perf_counter()
        yield
        self._since += time.perf_counter() - stop

    def images_per_second(self) -> float | None:
        seconds = time.perf_counter() - self._since
        return self.images / seconds if self.images and seconds > 0 else None
