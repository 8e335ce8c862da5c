"""The members of a population in the places of one stack: they step, are judged, and evolve.

    places = Places(group, levers, states, values)
    metrics = places.step(which)
    metrics = places.judge("valid")
    parents = places.evolve(scores, key)        # in one program: who goes on from whom, and how

With several devices the places are spread over them, in all of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from convjax.layer import Params, State
from convjax.sweep.evolution import drawn, evolve
from convjax.sweep.group import Group, Stack
from convjax.sweep.levers import Levers
from convjax.training import feed as feeds
from convjax.training import recipe
from convjax.training.evaluate import batch_size_for
from convjax.training.metrics import Metrics
from convjax.training.state import TrainState


class Places(Stack):
    """One place for each member.

    states: what each begins with; their number is a multiple of the devices.
    values: those of the levers, float32 `[members, paths]`.
    """

    def __init__(self, group: Group, levers: Levers, states: Sequence[TrainState], values: Any):
        experiment = group.experiment
        knobs = group.knobs(experiment)
        super().__init__(group, len(states), states[0], knobs)
        for place, state in enumerate(states):
            self.put(place, state, knobs)
        self._whole = NamedSharding(self._mesh, PartitionSpec())
        self._levers = levers
        self._turn = jax.jit(jax.vmap(levers.knobs), out_shardings=self._spread)
        self._judged = group.jit(self._spread_out(self._judge_one))
        outs = (self._spread, self._spread, self._whole, self._whole)
        self._evolved = group.jit(self._evolve, donate_argnums=0, out_shardings=outs)
        self._set(values)

    @property
    def values(self) -> np.ndarray:
        """The values of the levers, float32 `[members, paths]`."""
        return np.asarray(self._values)

    @property
    def bad_steps(self) -> np.ndarray:
        """How many of the newest steps of each member were skipped, int32 `[members]`."""
        assert self._states.watch is not None
        return np.asarray(self._states.watch.in_a_row)

    def content(self) -> dict[str, Any]:
        """All that the members go on from, as a pytree of arrays."""
        return {"states": self._states, "values": self._values}

    def content_spec(self) -> dict[str, Any]:
        """Shapes, dtypes and shardings of the content."""

        def spec(leaf: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

        return jax.tree.map(spec, self.content())

    def restore(self, content: dict[str, Any]) -> None:
        """Goes on from such a content."""
        self._states = jax.device_put(content["states"], self._spread)
        self._set(content["values"])

    def judge(self, split: str, *, average: bool = False) -> Metrics:
        """Sums over all images of a split, one entry a member, in double precision.

        average: whether the averages are judged.
        """
        experiment = self._group.experiment
        images, mapper = experiment.judged[split], experiment.mapper
        size = batch_size_for(experiment.config.eval_batch_size, 1, images.size)
        models = self._averages() if average else self._models(self._states)
        found = []
        for batch in feeds.evaluation(images, size, mapper):
            given = jax.device_put(batch, self._whole)
            found.append(self._judged(models, self._knobs.numbers, given))
            # One call late: the devices have their next batch before the host waits for the last.
            if len(found) > 1:
                found[-2] = jax.device_get(found[-2])
        columns = zip(*jax.device_get(found))
        return Metrics(*(np.stack(column).astype(float).sum(0) for column in columns))

    def evolve(self, scores: np.ndarray, key: Array) -> np.ndarray:
        """Has the worst members go on from the best, see `evolution.evolve`; whom each went on
        from, int32 `[members]`.

        A member that goes on from another has all of its state but the key of its noise, so that
        from then on they differ in more than their numbers.

        scores: float `[members]`, greater ones are better, without a finite one for what diverged.
        """
        given = jax.device_put((np.asarray(scores, np.float32), key), self._whole)
        self._states, self._knobs, self._values, parents = self._evolved(
            self._states, self._values, *given
        )
        return np.asarray(parents)

    # -- What is compiled --------------------------------------------------------------------------

    def _evolve(self, states: Any, values: Array, scores: Array, key: Array) -> Any:
        draws = drawn(key, *values.shape)
        parents, values = evolve(scores, values, draws, self._levers.ranges)
        copied = jax.tree.map(lambda leaf: leaf[parents], states._replace(key=None))
        knobs = jax.vmap(self._levers.knobs)(values)
        return copied._replace(key=states.key), knobs, values, parents

    def _judge_one(self, model: Any, numbers: Any, batch: Any) -> Metrics:
        return self._group.evaluation(model, batch, numbers)

    def _spread_out(self, one: Callable[..., Any]) -> Callable[..., Any]:
        """Does for all members what `one` does for one of them, with the same last argument."""

        def places(first: Any, second: Any, same: Any) -> Any:
            return jax.vmap(one, (0, 0, None))(first, second, same)

        spread, whole = PartitionSpec("place"), PartitionSpec()
        return jax.shard_map(
            places,
            mesh=self._mesh,
            in_specs=(spread, spread, whole),
            out_specs=spread,
            check_vma=False,
        )

    def _models(self, states: TrainState) -> tuple[Params, State]:
        chosen = self._group.experiment.config.optimizer
        return recipe.evaluated(chosen, states), states.state

    def _averages(self) -> tuple[Params, State]:
        return self._states.average

    def _set(self, values: Any) -> None:
        self._values = jax.device_put(jnp.asarray(values, jnp.float32), self._whole)
        self._knobs = self._turn(self._values)
