"""Watches the numbers of training inside the compiled step, so that a bad step is skipped whole.

    bad = look(loss, grads, statistics, params, memory)       # bool, one for each thing
    good, watch = follow(watch, bad, order, step, patience)
    params, memory = choose(good, (params, memory), before)

After so many bad steps in a row the run has diverged: `diverged` tells the host, `report` people.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax import tree
from convjax.layer import Context, Params, State


class Watch(NamedTuple):
    """What was seen of bad steps, each an int32; a step is bad if one of its numbers is not finite.

    skipped: how many there were in the run.
    in_a_row: how many the newest ones are; 0 after a good step.
    first_step: the number of the first of these, that is how many steps were taken before it; or
        -1.
    culprit: what was bad first, as an index into `names`, at the first step of the newest row; -1
        if no step was bad yet.
    """

    skipped: Any
    in_a_row: Any
    first_step: Any
    culprit: Any


def start() -> Watch:
    """The watch before the first step.

    >>> [int(each) for each in start()]
    [0, 0, -1, -1]
    """
    return Watch(*(jnp.asarray(np.int32(number)) for number in (0, 0, -1, -1)))


def names(params: Params, state: State) -> list[str]:
    """What is watched, by its index: the loss first, and what the optimizer remembers last.

    >>> names({"conv1": {"kernel": 0}}, {"norm1": {"mean": 0}})[:3]
    ['loss', 'gradient of conv1/kernel', 'batch statistic norm1/mean']
    >>> names({"conv1": {"kernel": 0}}, {"norm1": {"mean": 0}})[3:]
    ['parameter conv1/kernel', 'memory of the optimizer']
    """
    params, state = tree.leaves(params), tree.leaves(state)
    return [
        "loss",
        *(f"gradient of {path}" for path in params),
        *(f"batch statistic {path}" for path in state),
        *(f"parameter {path}" for path in params),
        "memory of the optimizer",
    ]


def diverged(watch: Watch, patience: int) -> bool:
    """Whether the newest `patience` steps were all bad; waits for the device.

    From then on no step changes anything but the count of steps, the watch neither: it may be asked
    as late as suits.
    """
    return int(watch.in_a_row) >= patience


def report(watch: Watch, names: Sequence[str]) -> str:
    """What a person is told of the newest row of bad steps.

    >>> report(Watch(12, 10, 312, 1), ["loss", "gradient of conv1/kernel"])
    'diverged: 10 steps in a row were skipped, the first is step 312, where the gradient of \
conv1/kernel was not finite'
    """
    return (
        f"diverged: {int(watch.in_a_row)} steps in a row were skipped, the first is step "
        f"{int(watch.first_step)}, where the {names[int(watch.culprit)]} was not finite"
    )


# -- Inside the step -------------------------------------------------------------------------------


def look(loss: Array, grads: Params, state: State, params: Params, memory: Any) -> Array:
    """Which of all that a step gives is not finite: bool, in the order of `names`.

    state, params, memory: those that the step has made. A single number of the memory may be
        meant to be infinite, as the best loss of none so far, and is not looked at.
    """
    arrays = [leaf for leaf in jax.tree.leaves(memory) if jnp.ndim(leaf)]
    kept = (*_bad(state, _HALF), *_bad(params, _HALF), _any(_bad(arrays, _HALF)))
    return jnp.stack([*_bad(loss), *_bad(grads), *kept])


def finite(numbers: Any) -> Array:
    """Whether every number of every leaf is finite, as a bool: neither infinite nor NaN."""
    return ~_any(_bad(numbers))


def follow(
    watch: Watch,
    bad: Array,
    order: Sequence[int],
    step: Array,
    patience: int | Array,
    excused: bool | Array = False,
) -> tuple[Array, Watch]:
    """Whether the step is to be kept, and the watch after it.

    bad: as `look` gives it.
    order: all its indices; the first bad one in this order is told as the culprit.
    step: the number of the step.
    patience: after so many bad ones in a row nothing is kept any more, and nothing counted.
    excused: a bad step is skipped and counted, but is none of a row.
    """
    over = watch.in_a_row >= patience
    good = ~bad.any()
    skipped = ~good & ~over
    in_row = skipped & ~jnp.asarray(excused)
    first = skipped & (watch.in_a_row == 0)
    ordered = np.asarray(order, np.int32)
    culprit = jnp.asarray(ordered)[jnp.argmax(bad[ordered])]
    new = Watch(
        skipped=watch.skipped + skipped.astype(jnp.int32),
        in_a_row=jnp.where(good, 0, watch.in_a_row + in_row.astype(jnp.int32)),
        first_step=jnp.where(good, -1, jnp.where(first & in_row, step, watch.first_step)),
        culprit=jnp.where(first, culprit, watch.culprit),
    )
    return good & ~over, choose(over, watch, new)


def choose(first: Array, one: Any, other: Any) -> Any:
    """One tree or the other, leaf by leaf, to the bit."""
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), one, other)


# What stays is bad from half the largest number on: XLA may compute it once to be looked at and
# once to be kept, and round otherwise; and the difference of two such numbers is finite, too.
_HALF = 0.5


def _bad(numbers: Any, share: float = 1.0) -> list[Array]:
    """Whether a leaf holds a NaN, or a number beyond that share of the largest, leaf by leaf."""

    def one(leaf: Any) -> Array:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return jnp.asarray(False)
        most = np.asarray(float(jnp.finfo(dtype).max) * share, jnp.finfo(dtype).dtype)
        return ~(jnp.abs(leaf) <= most).all()

    return [one(leaf) for leaf in jax.tree.leaves(numbers)]


def _any(flags: list[Array]) -> Array:
    return jnp.stack([jnp.asarray(False), *flags]).any()


# -- Which is told of several that are bad ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Calls:
    """The paths of the parts of a network, in the order of their first call."""

    places: dict[str, int] = field(default_factory=dict)

    def place(self, path: str) -> int:
        """That of the layer to which a leaf belongs; -1 for one that was never called."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition("/")[0]
        return -1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["key"],
    meta_fields=["train", "axis", "path", "plan", "calls"],
)
@dataclass(frozen=True)
class Noting(Context):
    """A context that notes which part is called when, while a network is traced."""

    calls: Calls = field(default_factory=Calls)

    def at(self, name: str) -> Context:
        """The context of the part called `name`."""
        ctx = super().at(name)
        self.calls.places.setdefault(ctx.path, len(self.calls.places))
        return ctx


def order_of(calls: Calls, params: Params, state: State) -> list[int]:
    """The indices of `names` in the order in which a step computes them.

    What is not finite spoils all that is computed of it: the first one tells where it arose. Batch
    statistics come in the network's order, then the loss, then gradients from the last layer to the
    first, then parameters.
    """

    def ranked(paths: Sequence[str], first: int) -> list[int]:
        by_call = sorted(range(len(paths)), key=lambda n: (calls.place(paths[n]), n))
        return [first + n for n in by_call]

    params_at, state_at = list(tree.leaves(params)), list(tree.leaves(state))
    gradients = ranked(params_at, 1)
    statistics = ranked(state_at, 1 + len(params_at))
    parameters = ranked(params_at, 1 + len(params_at) + len(state_at))
    last = 1 + 2 * len(params_at) + len(state_at)
    return [*statistics, 0, *reversed(gradients), *parameters, last]
