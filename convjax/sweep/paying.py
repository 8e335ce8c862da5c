"""How many runs at once pay: what steps cost, measured on copies of one run, and told.

    paying = Paying(group, signals)
    paying.most(runs, alone, place)             # how many places to have for so many runs

A look costs about as much as one or two compilations; where it cannot be worth that, there is none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from convjax.compiler import Program
from convjax.interrupts import Interrupts
from convjax.sweep.group import Group
from convjax.sweep.places import Place

_SIZES = (8, 32, 128)  # places that are tried, each only if the one before has paid
_LOOK = 0.5  # seconds for which each is looked at
_GLANCE = 0.1  # seconds for a first look at one alone, by which it may be clear already
_CALL = 0.05  # seconds that a call with several steps may take
_WORTH = 3  # A look costs about one or two compilations.
# Seconds. A CPU gains what a call and its many small operations cost, and no more: docs/decisions.
_LONG_ON_CPU = 2e-3


class Paying:
    """Decides how many runs of a group are to train at once.

    asked: how many at once whatever pays; None measures.
    told: is told what was measured.
    """

    def __init__(
        self,
        group: Group,
        signals: Interrupts,
        asked: int | None = None,
        told: Callable[[str], None] = print,
    ):
        self._group, self._signals, self._asked, self._told = group, signals, asked, told
        # Seconds that a step takes with so many places; 1 is a run on its own.
        self._costs: dict[int, float] = {}
        self._has_said = False

    def most(self, runs: int, alone: Program, place: Place) -> int:
        """How many places to have for so many runs.

        alone: the step of a run on its own. place: that of any of the runs, in no stack.
        """
        if self._asked is not None:
            return self._rounded(min(self._asked, runs))
        if runs == 1:
            return 1
        if len(self._costs) < 2 and not self._is_worth_a_look(runs, alone, place):
            return 1
        if len(self._costs) < 2:
            self._measure(runs, alone, place)
        # With as many taken as there are runs a step of all is to cost less, by a tenth.
        limit = {size: min(size, runs) * self._costs[1] for size in self._costs}
        paying = [size for size, cost in self._costs.items() if cost * 1.1 < limit[size]]
        return min(paying, key=lambda size: self._costs[size] / min(size, runs), default=1)

    def at_once(self) -> int:
        """How many steps of a run alone one call takes: few enough that signals are soon seen."""
        return max(1, min(self._group.at_once, int(_CALL / self._costs.get(1, math.inf))))

    def is_thin(self, taken: int, places: int) -> bool:
        """Whether so few of the places are taken that their runs are faster one after another."""
        return taken * self._costs.get(1, math.inf) < self._costs.get(places, 0.0)

    # -- What these are made of --------------------------------------------------------------------

    def _is_worth_a_look(self, runs: int, alone: Program, place: Place) -> bool:
        """Whether so many runs may gain more by training at once than it costs to find out."""
        with self._signals.released():
            compilation = alone.compiled().seconds
        if 1 not in self._costs:
            self._costs[1] = self._seconds_alone(alone, place, _GLANCE)
        cost = self._costs[1]
        work = runs * self._group.experiment.plan.steps * cost
        if self._group.devices[0].platform == "cpu" and cost > _LONG_ON_CPU:
            why = "which keeps a CPU busy: more at once would not be faster"
        elif work < _WORTH * compilation:
            why = f"and {work:.0f} s of work are not worth a look at more at once"
        else:
            return True
        if not self._has_said:
            self._told(f"one run after another: a step takes {cost * 1e3:.3g} ms, {why}")
        self._has_said = True
        return False

    def _measure(self, runs: int, alone: Program, place: Place) -> None:
        """Measures steps of more and more places, for as long as more of them pay."""
        best = self._costs[1]
        for base in _SIZES:
            size = self._rounded(math.ceil(runs / math.ceil(runs / base)))
            if size in self._costs:
                break
            self._costs[size] = math.inf
            try:
                with self._signals.released():
                    self._costs[size] = self._seconds_together(size, place)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                break
            each = self._costs[size] / size
            if each * 1.1 > best:
                break
            best = each
        self._costs[1] = min(self._costs[1], self._seconds_alone(alone, place))
        self._tell()

    def _tell(self) -> None:
        each = {size: cost / size for size, cost in self._costs.items() if size > 1}
        shown = ", ".join(f"of {size} at once {cost * 1e3:.3g} ms" for size, cost in each.items())
        least = min(each, key=lambda size: each[size])
        says = f"{least} at once" if each[least] * 1.1 < self._costs[1] else "one after another"
        self._told(f"a step of one run {self._costs[1] * 1e3:.3g} ms, {shown} each: {says}")

    def _rounded(self, size: int) -> int:
        """A number of places that the devices can share."""
        devices = len(self._group.devices)
        return size if size == 1 else -(-size // devices) * devices

    def _seconds_alone(self, alone: Program, place: Place, look: float = _LOOK) -> float:
        state = self._group.experiment.mapper.place(place.alone)  # A copy, to be trained.

        def step() -> Any:
            nonlocal state
            given = self._group.batch(place.batches(self._group.at_once))
            state, metrics = alone(state, given, np.int32(1), place.knobs, *self._group.placed)
            return metrics

        return _seconds(step, look)

    def _seconds_together(self, size: int, place: Place) -> float:
        stack = self._group.stack(size, place.alone, place.knobs)
        which = np.tile(place.batch(), (size, 1))
        return _seconds(lambda: stack.step(which))


def _seconds(step: Callable[[], Any], look: float = _LOOK) -> float:
    """How long a step takes: the least of a few times, after one that may compile."""
    jax.block_until_ready(step())
    taken, end = [], time.perf_counter() + look
    while len(taken) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        jax.block_until_ready(step())
        taken.append(time.perf_counter() - begun)
    return min(taken)
