"""Exploit and explore: which members of a population go on from others, and with which numbers.

    values = first(key, 16, ranges)                             # a number for each member and path
    parents, values = evolve(scores, values, drawn(key, 16, 2), ranges)

The rules are those of Jaderberg et al., Population Based Training of Neural Networks, 2017. All of
it may be traced, and is a function of its arguments alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.sweep.distributions import ends, members

if TYPE_CHECKING:
    from convjax.sweep.distributions import Distribution

SHARE = 5  # The worst fifth goes on from the best fifth.
FRESH = 0.25  # how often a number is drawn anew
FACTORS = (0.8, 1.2)  # by one of which it is multiplied otherwise


class Ranges(NamedTuple):
    """What each path is varied by, each `[1, paths]`.

    low, high: float32, the ends; of values those of their places in the list, 0, 1, ...
    is_log: whether the logarithm is uniform. is_choice: whether it is one of several values.
    """

    low: np.ndarray
    high: np.ndarray
    is_log: np.ndarray
    is_choice: np.ndarray


class Draws(NamedTuple):
    """All that is random about a generation.

    parent: float32 in [0, 1), `[members]`: which of the best a member would go on from.
    up: bool `[members, paths]`: whether a number would grow, or its value be the next one.
    fresh: bool `[members, paths]`: whether it would be drawn anew.
    share: float32 in [0, 1), `[members, paths]`: how far through the range that would be.
    """

    parent: Array
    up: Array
    fresh: Array
    share: Array


def ranges_of(distributions: Sequence[Distribution]) -> Ranges:
    """The ranges of as many paths; integers are one of several values, too."""
    choices = [members(each) for each in distributions]
    bounds = [
        list(map(float, ends(each))) if values is None else [0.0, len(values) - 1.0]
        for each, values in zip(distributions, choices)
    ]
    low, high = np.asarray(bounds, np.float32).reshape(-1, 2).T[:, None]
    is_choice = np.asarray([[values is not None for values in choices]], bool)
    is_log = np.asarray([[bool(getattr(each, "log", False)) for each in distributions]], bool)
    return Ranges(low, high, is_log & ~is_choice, is_choice)


@functools.partial(jax.jit, static_argnames="members")
def first(key: Array, members: int, ranges: Ranges) -> Array:
    """The numbers that a population begins with, float32 `[members, paths]`.

    Of each path a range is divided into as many shares of equal probability as there are members,
    and each member has one of them: a Latin hypercube (McKay et al., 1979), so that few members
    have all of a range between them.
    """
    paths = ranges.low.shape[1]
    keys = jax.random.split(jax.random.fold_in(key, 0), paths)
    places = jax.vmap(lambda each: jax.random.permutation(each, members), out_axes=1)(keys)
    within = jax.random.uniform(jax.random.fold_in(key, 1), (members, paths))
    return at((places.astype(jnp.float32) + within) / members, ranges)


def drawn(key: Array, members: int, paths: int) -> Draws:
    """What one generation draws."""
    parent, up, fresh, share = jax.random.split(key, 4)
    return Draws(
        jax.random.uniform(parent, (members,)),
        jax.random.bernoulli(up, 0.5, (members, paths)),
        jax.random.bernoulli(fresh, FRESH, (members, paths)),
        jax.random.uniform(share, (members, paths)),
    )


def evolve(scores: Array, values: Array, draws: Draws, ranges: Ranges) -> tuple[Array, Array]:
    """Whom each member goes on from, int32 `[members]`, itself for most; and the numbers then.

    Exploit: of the worst fifth, one at least, each goes on from one of the best fifth, all of
    which are as likely. A member without a finite score is among the worst, always goes on from
    another one, and nobody from it. Explore: who goes on from another takes each of its numbers
    with a change: drawn anew with a probability of 1/4, else multiplied by 0.8 or 1.2; one of
    several values becomes the one before or after. All stay within their ranges.

    scores: float32 `[members]`, greater ones are better; one of them at least is finite.
    values: float32 `[members, paths]`.
    """
    members = len(scores)
    count = max(members // SHARE, 1)
    good = jnp.isfinite(scores)
    order = jnp.argsort(jnp.where(good, -scores, jnp.inf), stable=True)
    rank = jnp.argsort(order, stable=True)
    best = jnp.clip(good.sum(dtype=jnp.int32), 1, count)
    chosen = jnp.minimum((draws.parent * best.astype(jnp.float32)).astype(jnp.int32), best - 1)
    replaced = (rank >= members - count) | ~good
    parents = jnp.where(replaced, order[chosen], jnp.arange(members)).astype(jnp.int32)
    taken = values[parents]
    less, more = map(np.float32, FACTORS)
    moved = jnp.where(
        jnp.broadcast_to(ranges.is_choice, taken.shape),
        taken + jnp.where(draws.up, jnp.float32(1), jnp.float32(-1)),
        taken * jnp.where(draws.up, more, less),
    )
    new = jnp.clip(jnp.where(draws.fresh, at(draws.share, ranges), moved), ranges.low, ranges.high)
    return parents, jnp.where(replaced[:, None], new, values)


def at(shares: Array, ranges: Ranges) -> Array:
    """The numbers that are these shares, in [0, 1), of the way through their ranges."""
    low, high, is_log, is_choice = (jnp.broadcast_to(each, shares.shape) for each in ranges)
    begin, end = (jnp.log(jnp.where(is_log, each, jnp.float32(1))) for each in (low, high))
    found = jnp.where(
        is_choice,
        jnp.floor(shares * (high + 1)),
        jnp.where(is_log, jnp.exp(begin + shares * (end - begin)), low + shares * (high - low)),
    )
    return jnp.clip(found, low, high)
