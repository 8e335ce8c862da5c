"""A place in a program for many runs, the run that has it, and what it is sent of each step.

place = Place(0, run, order, state_of)
place.take(next(run.fitting))               # the run waits for a step, and has a state
place.batch()                               # which images it waits for
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from convjax.config import Experiment
from convjax.sweep.group import Knobs
from convjax.training.feed import Order
from convjax.training.fit import Fitting, Wanted
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


class Entering(NamedTuple):
    """A run before its first step in this sitting: what it waits with, in place of a state."""

    first: TrainState
    knobs: Knobs
    check: Callable[[], None]

    @property
    def step(self) -> Any:
        """How many steps it has taken."""
        return self.first.step

    def state(self) -> TrainState:
        """What it begins with."""
        return self.first


class Place:
    """A place with the run that has it: a state, as far as the run is concerned.

    number: which one it is.
    order: that of the run's images.
    state_of: what a place has been trained to, wherever that is kept.
    """

    alone: TrainState  # what it has been trained to, but in a stack
    knobs: Knobs
    wanted: Wanted

    def __init__(
        self, number: int, run: Run, order: Order, state_of: Callable[[Place], TrainState]
    ):
        self.number, self.run = number, run
        self._order, self._state_of = order, state_of
        self.check: Callable[[], None] = lambda: None

    def take(self, wanted: Wanted) -> None:
        """Notes what the run waits for."""
        self.wanted = wanted
        if isinstance(wanted.state, Entering):
            self.alone, self.knobs, self.check = wanted.state

    def batch(self) -> np.ndarray:
        """The numbers of the images that it waits for."""
        return self._order.batch(self.wanted.first)

    def batches(self, at_once: int) -> np.ndarray:
        """The numbers of the images of all steps that it waits for, `[at_once, batch]`.

        Rows beyond these steps, which nobody looks at, are as the last.
        """
        first, count, _ = self.wanted
        return np.stack([self._order.batch(first + min(n, count - 1)) for n in range(at_once)])

    def state(self) -> TrainState:
        """What the run has been trained to."""
        return self._state_of(self)


class Rows:
    """Metrics of all places, which the host reads once, when the first run asks for its own."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def of(self, place: int) -> Metrics:
        """Those of one place, which are read when they are made a number."""
        return Metrics(*(_Entry(self, name, place) for name in Metrics._fields))

    def read(self, name: str, place: int) -> Any:
        """One number of them."""
        self._metrics = jax.device_get(self._metrics)
        return getattr(self._metrics, name)[place]


class _Entry(NamedTuple):
    """A number of a place's metrics."""

    rows: Rows
    name: str
    place: int

    def __float__(self) -> float:
        return float(self.rows.read(self.name, self.place))

    def __int__(self) -> int:
        return int(self.rows.read(self.name, self.place))
