"""What runs of one structure share: images, and the programs in which one or many of them train.

    group = Group(assemble(config), liftable(config, ...))
    state, metrics = group.alone(state, group.batch(numbers), count, knobs, *group.placed)
    stack = group.stack(8, state, knobs)                # eight places, all like this one
    stack.put(3, other_state, other_knobs)
    metrics = stack.step(numbers_of_each_place)         # each by what its place holds
    state = stack.state(3)

A program is given all in which the runs differ as arrays. With several devices the places are
spread over them, each place whole on one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from convjax.assemble import Assembled, augmentation
from convjax.assemble import network as checked_network
from convjax.compiler import compiler_options
from convjax.config import Experiment
from convjax.layer import Layer, Params, State, draw, plan, spec_of
from convjax.session import step_of
from convjax.sweep import numbers
from convjax.training import recipe
from convjax.training.feed import Images, OnDisk, gathered, repeated, taken
from convjax.training.metrics import Metrics
from convjax.training.optimizer import Hyper
from convjax.training.state import TrainState
from convjax.training.step import Batch, make_eval_step, normalise


class Knobs(NamedTuple):
    """All numbers in which runs of one structure differ, beside their seeds, as arrays.

    numbers: those that are lifted out of model and augmentation, by path.
    """

    hyper: Hyper
    numbers: dict[str, Array]


def can_share(config: Experiment) -> bool:
    """Whether runs of this config can be trained in places: in memory, and each on one device."""
    return config.parallel == "jit" and config.data.view is None


class Group:
    """The programs of runs that have one structure, as `numbers.structure` tells it.

    experiment: of one of them. lifted: what `numbers.liftable` says of its config.
    devices: over which places are spread; runs on their own have the first.
    """

    def __init__(
        self,
        experiment: Assembled,
        lifted: frozenset[str],
        devices: Sequence[Any] | None = None,
    ):
        net = _planned(experiment.net, experiment.spec)
        self.experiment, self.lifted = experiment._replace(net=net), lifted
        self.devices = list(devices or jax.local_devices())
        self.pixels = experiment.train.statistics()
        self.prepare = normalise(*self.pixels, experiment.config.precision)
        source = experiment.train.source
        assert not isinstance(source, OnDisk)
        self.images = Images(*map(np.asarray, source))
        self.on_host = self.devices[0].platform == "cpu"
        options = compiler_options(self.devices[0].platform)
        self.jit = functools.partial(jax.jit, compiler_options=options)
        self.placed = () if self.on_host else (jax.device_put(self.images, self.devices[0]),)
        batch = experiment.plan.batch_size * self.images.images[0].nbytes
        self.at_once = max(1, min(_AT_ONCE, _GIVEN // batch)) if self.on_host else _AT_ONCE
        self.alone = self.jit(self.steps, donate_argnums=0)
        self.judge = self.jit(self.evaluation)

    def experiment_of(self, config: Experiment) -> Assembled:
        """What a config of this structure means, checked as `assemble` does it.

        Raises:
            UserError: if its numbers are none that network, augmentation or optimizer take.
        """
        base, train = self.experiment, self.experiment.train
        if config == base.config:
            return base
        net, change, mix = base.net, base.change, base.mix
        if numbers.numbers_of(config) != numbers.numbers_of(base.config):
            net = checked_network(config, train)
            change, mix = augmentation(config, train)
        params, _ = jax.eval_shape(net.init, jax.random.key(0), base.spec)
        classes, epoch = len(train.classes), base.plan.epoch
        _, hyper = recipe.make(config, base.schedule, net, params, classes, epoch, tries=False)
        return base._replace(config=config, net=net, change=change, mix=mix, hyper=hyper)

    def knobs(self, experiment: Assembled) -> Knobs:
        """The numbers of one of the runs."""
        values = numbers.numbers_of(experiment.config)
        lifted = {path: jnp.float32(values[path]) for path in sorted(self.lifted)}
        return Knobs(experiment.hyper, lifted)

    def batch(self, which: Sequence[int] | np.ndarray) -> Any:
        """What a program is given for the images of these numbers `[..., batch]`."""
        each = np.asarray(which, np.int32)
        return gathered(self.images, each) if self.on_host else each

    def stack(self, count: int, state: TrainState, knobs: Knobs) -> Stack:
        """So many places, a multiple of the devices, which all hold copies of one run."""
        return Stack(self, count, state, knobs)

    # -- What is compiled --------------------------------------------------------------------------

    def step(self, state: TrainState, given: Any, knobs: Knobs, *placed: Images) -> Any:
        """A step of one run, to be compiled."""
        base = self.experiment
        if self.lifted:
            net = numbers.network(base.config, base.train, knobs.numbers)
            change, mix = numbers.augmentation(base.config, base.train, knobs.numbers)
            base = base._replace(net=net, change=change, mix=mix)
        batch = taken(placed[0], given) if placed else given
        return step_of(base, self.prepare)(state, batch, knobs.hyper)

    def steps(
        self, state: TrainState, given: Any, count: Array, knobs: Knobs, *placed: Images
    ) -> Any:
        """So many steps of one run, to be compiled; `given` is for `at_once` of them."""

        def one(number: Array, state: TrainState) -> Any:
            return self.step(state, jax.tree.map(lambda a: a[number], given), knobs, *placed)

        return repeated(one, count, state)

    def evaluation(
        self, model: tuple[Params, State], batch: Batch, lifted: dict[str, Array]
    ) -> Metrics:
        """The evaluation of one run on one batch, to be compiled."""
        base = self.experiment
        net = numbers.network(base.config, base.train, lifted) if self.lifted else base.net
        return make_eval_step(net, prepare=self.prepare)(model, batch)


class Stack:
    """Places in which runs train by one program, each on states of its own."""

    def __init__(self, group: Group, count: int, state: TrainState, knobs: Knobs):
        self._group, self.count = group, count
        self._mesh = Mesh(np.array(group.devices), ("place",), axis_types=(AxisType.Auto,))

        def copies(leaf: Array) -> Array:
            return jnp.broadcast_to(leaf, (count, *jnp.shape(leaf)))

        self._whole = NamedSharding(self._mesh, PartitionSpec())
        self._spread = NamedSharding(self._mesh, PartitionSpec("place"))
        copied = jax.jit(lambda tree: jax.tree.map(copies, tree), out_shardings=self._spread)
        self._states, self._knobs = copied(jax.device_put((state, knobs), self._whole))
        placed = jax.device_put(group.images, self._whole)
        self._placed = () if group.on_host else (placed,)
        self._step = group.jit(self._program(), donate_argnums=0)

    def step(self, which: np.ndarray) -> Metrics:
        """Takes a step in each place; metrics with one entry a place.

        which: the numbers of the images of each, int32 `[places, batch]`.
        """
        given = jax.device_put(self._group.batch(which), self._spread)
        self._states, metrics = self._step(self._states, given, self._knobs, *self._placed)
        return metrics

    def put(self, place: int, state: TrainState, knobs: Knobs) -> None:
        """Gives a place to a run."""
        state, knobs = jax.device_put((state, knobs), self._whole)
        self._states = _put(self._states, np.int32(place), state)
        self._knobs = _put(self._knobs, np.int32(place), knobs)

    def state(self, place: int) -> TrainState:
        """A copy of what a place holds, on the first device."""
        return jax.device_put(_get(self._states, np.int32(place)), self._group.devices[0])

    def _program(self) -> Callable[..., Any]:
        group, alone = self._group, self.count == len(self._group.devices)

        def places(states: Any, given: Any, knobs: Any, *placed: Any) -> Any:
            axes = (0, 0, 0, *(None for _ in placed))
            if alone:  # One on each device: nothing to go over.
                first = jax.tree.map(lambda leaf: leaf[0], (states, given, knobs))
                return jax.tree.map(lambda leaf: leaf[None], group.step(*first, *placed))
            return jax.vmap(group.step, axes)(states, given, knobs, *placed)

        if len(group.devices) == 1:
            return places
        spread, whole = PartitionSpec("place"), PartitionSpec()
        specs = (spread, spread, spread, *(whole for _ in self._placed))
        return jax.shard_map(
            places, mesh=self._mesh, in_specs=specs, out_specs=spread, check_vma=False
        )


_AT_ONCE = 8  # steps that one call takes
_GIVEN = 1 << 20  # bytes of the images that one call is given, where it is more than a batch


def _planned(net: Layer, spec: Any) -> Layer:
    """The same network, whose first parameters are drawn without tracing it each time."""
    if net.wire is None:
        return net
    calls = plan(net, spec)

    def init(key: Array, other: Any) -> tuple[Params, State]:
        return draw(key, calls) if spec_of(other) == spec else net.init(key, other)

    return net._replace(init=init)


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: Any, place: Any, one: Any) -> Any:
    return jax.tree.map(lambda many, leaf: many.at[place].set(leaf), stack, one)


@jax.jit
def _get(stack: Any, place: Any) -> Any:
    return jax.tree.map(lambda many: many[place], stack)
