"""Paths of a config whose numbers change while it trains, and the arrays of a step that they are.

    levers = Levers(group, {"optimizer.learning_rate": log(1e-4, 1e-1)})
    knobs = levers.knobs(values)                # in a program: of float32 [paths]
    point = levers.point(values)                # {"optimizer.learning_rate": 0.01}

Which of the arrays belong to a path is found by setting it, and looking at what changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.assemble import Assembled
from convjax.config import Experiment, UserError
from convjax.sweep.distributions import at, ends, members
from convjax.sweep.evolution import ranges_of
from convjax.sweep.group import Group, Knobs
from convjax.sweep.numbers import refused, structure
from convjax.sweep.space import Point, Space, corners, resolve, shown, trace

if TYPE_CHECKING:
    from convjax.sweep.distributions import Distribution

_MOST = 100  # values of one path


def distributions_of(space: Space) -> dict[str, Distribution]:
    """What each path of a space is varied by.

    Raises:
        UserError: for a space with conditions, of which points have different paths.
    """
    found = [trace(space, point) for point in corners(space)]
    if any(each != found[0] for each in found) or not found[0]:
        raise UserError(
            "a population varies the same paths of all members, whatever the values of others: "
            "give --vary, or a sweep's page without conditions"
        )
    return found[0]


def middle(config: Experiment, distributions: Mapping[str, Distribution]) -> Experiment:
    """The config with all that is varied in the middle, where no number is a special one."""
    point = {path: at(each, 0.5) for path, each in distributions.items()}
    return resolve(config, point, config.seed)


class Levers:
    """The numbers of several paths as arrays of a step.

    group: of a config that is `middle(config, distributions)`.

    Raises:
        UserError: for a path whose values a step does not take as arrays; it says why.
    """

    def __init__(self, group: Group, distributions: Mapping[str, Distribution]):
        self.paths, self._distributions = list(distributions), list(distributions.values())
        self.ranges = ranges_of(self._distributions)
        self._group = group
        self._base = group.knobs(group.experiment)
        self._tables: list[dict[int, np.ndarray | None]] = []
        taken: dict[int, str] = {}
        for path, each in distributions.items():
            table = self._table(path, each)
            for leaf in table:
                if leaf in taken:
                    raise UserError(f"--vary: {path} and {taken[leaf]} are the same numbers")
                taken[leaf] = path
            self._tables.append(table)

    def knobs(self, values: Array) -> Knobs:
        """The numbers of a step, of the values of the paths, float32 `[paths]`."""
        leaves = list(jax.tree.leaves(self._base))
        for value, table in zip(values, self._tables):
            for leaf, rows in table.items():
                known = rows is not None
                leaves[leaf] = jnp.asarray(rows)[value.astype(jnp.int32)] if known else value
        return jax.tree.unflatten(jax.tree.structure(self._base), leaves)

    def point(self, values: Sequence[float] | np.ndarray) -> Point:
        """The values as a config has them, of which it makes the same float32 again."""
        pairs = zip(self._distributions, np.asarray(values, np.float32))
        return {path: _plain(*pair) for path, pair in zip(self.paths, pairs)}

    # -- What the arrays are -----------------------------------------------------------------------

    def _table(self, path: str, distribution: Distribution) -> dict[int, np.ndarray | None]:
        """The arrays that are a path's, by number: their values by choice; None, its own value."""
        choices = members(distribution)
        if choices is not None and len(choices) > _MOST:
            raise UserError(f"--vary {path} has {len(choices)} values: give {_MOST} at most")
        low, high = ends(distribution)[0], ends(distribution)[-1]
        values = [low, at(distribution, 0.5), high] if choices is None else list(choices)
        rows = [self._arrays(path, value) for value in values]
        base = jax.tree.leaves(self._base)
        changed = [
            leaf
            for leaf in range(len(base))
            if any(not np.array_equal(row[leaf], rows[0][leaf]) for row in rows)
        ]
        if not changed:
            raise UserError(
                f"--vary {path}: no step of {self._group.experiment.config.optimizer.name} or of "
                "the network asks for it, so that members would not differ: leave it out"
            )
        if choices is not None:
            return {leaf: np.stack([row[leaf] for row in rows]) for leaf in changed}
        for leaf in changed:
            if any(not np.array_equal(row[leaf], np.float32(v)) for row, v in zip(rows, values)):
                raise UserError(f"--vary {path} is no number of a step as it is: give values of it")
        return dict.fromkeys(changed)

    def _arrays(self, path: str, value: Any) -> list[np.ndarray]:
        """All numbers of a step where a path has this value."""
        base = self._group.experiment
        point = {path: value}
        config = resolve(base.config, point, base.config.seed)
        lifted = self._group.lifted
        if structure(config, lifted) != structure(base.config, lifted):
            raise UserError(self._why_not(path, value))
        experiment = self._group.experiment_of(config)
        # A number may be a special one, as a rate of 0 is where a network then has another part.
        if _shapes(experiment) != _shapes(base):
            raise UserError(f"--vary: {shown(point)} makes another network: narrow its range")
        return [np.asarray(leaf) for leaf in jax.tree.leaves(self._group.knobs(experiment))]

    def _why_not(self, path: str, value: Any) -> str:
        base = self._group.experiment
        found = refused(base.config, base.train)
        reason = found.get(path, "it decides on the program, or on what all members are fed")
        if type(value) is int:
            reason += " (a whole number does; if it may have a fraction, write 1.0 in place of 1)"
        return (
            f"--vary {path}: the members of a population train in one program, which cannot take "
            f"{value!r} as an array: {reason}; vary it by --sampler and --trials instead"
        )


def _shapes(experiment: Assembled) -> Any:
    return jax.eval_shape(experiment.net.init, jax.random.key(0), experiment.spec)


def _plain(distribution: Distribution, value: np.float32) -> Any:
    choices = members(distribution)
    if choices is not None:
        return choices[int(value)]
    low, high = ends(distribution)
    # The shortest number that is this float32: 0.1, and not 0.10000000149.
    return min(max(float(str(value)), low), high)
