"""What a network's features know, asked without learning anything: votes of the nearest images.

    votes = neighbour_votes(train_features, train_labels, features, classes=10, k=200)
    accuracy = (votes.argmax(1) == labels).mean()

A bank that memory does not hold goes by in parts: `Nearest`.

Wu, Xiong, Yu and Lin, Unsupervised feature learning via non-parametric instance discrimination,
2018 (arXiv 1805.01978), section 3.4.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

NEIGHBOURS = 200
TEMPERATURE = 0.07
_AT_ONCE = 256  # queries
_PART = 16384  # of the bank, compared at once


def neighbour_votes(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    features: np.ndarray,
    *,
    classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Of each query, the sum of the weights of its `k` nearest neighbours of each class.

    The nearest are those of highest cosine similarity s, and their weight is
    exp(s / temperature), as a share of that of the nearest one.

    bank: float `[known images, features]`. features: `[images, features]`.

    Returns float32 `[images, classes]`. A vector of zeros is like nothing: its similarity is 0.

    Raises:
        ValueError: unless 1 <= k <= the number of known images.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}: give 1 to {len(bank)}, the number of known images")
    nearest = Nearest(features, k)
    nearest.see(bank, bank_labels)
    return nearest.votes(classes, temperature)


class Nearest:
    """The `k` nearest known images of each query, while known ones go by: no more are kept.

    What is found does not depend on how many go by at a time.

    features: of the queries, float `[images, features]`.
    """

    def __init__(self, features: np.ndarray, k: int):
        self.k, self.images, self.known = k, len(features), 0
        self._queries = [
            _filled(np.asarray(features[first : first + _AT_ONCE], np.float32), _AT_ONCE)
            for first in range(0, len(features), _AT_ONCE)
        ]
        similar, labels = jnp.full((_AT_ONCE, k), -jnp.inf), jnp.full((_AT_ONCE, k), -1, jnp.int32)
        self._best = [(similar, labels)] * len(self._queries)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._room = _PART  # for so many more, before those that wait are compared
        self._part = 0  # how many are compared at once, since the first were

    def see(self, bank: np.ndarray, labels: np.ndarray) -> None:
        """Compares the queries with known images, `[count, features]`, or keeps these for later."""
        self.known += len(bank)
        while len(bank):
            self._waiting.append((bank[: self._room], labels[: self._room]))
            bank, labels = bank[self._room :], labels[self._room :]
            self._room -= len(self._waiting[-1][1])
            if not self._room:
                self._compare()

    def votes(self, classes: int, temperature: float = TEMPERATURE) -> np.ndarray:
        """The votes for each class, float32 `[images, classes]`; see `neighbour_votes`.

        Raises:
            ValueError: if fewer than `k` images went by, or k is less than 1.
        """
        if not 1 <= self.k <= self.known:
            raise ValueError(f"k is {self.k}: give 1 to {self.known}, the number of known images")
        if self._waiting:
            self._compare()
        found = [np.asarray(_votes(*best, temperature, classes)) for best in self._best]
        return np.concatenate([np.zeros((0, classes), np.float32), *found])[: self.images]

    def _compare(self) -> None:
        """Compares the queries with the known images that wait."""
        bank, labels = map(np.concatenate, zip(*self._waiting))
        self._waiting, self._room = [], _PART
        self._part = max(self._part, len(bank))  # The last ones are fewer: one program for all.
        known = jnp.asarray(_filled(bank.astype(np.float32), self._part))
        numbers = jnp.asarray(_filled(labels.astype(np.int32), self._part, -1))
        self._best = [
            _nearer(best, jnp.asarray(queries), known, numbers)
            for best, queries in zip(self._best, self._queries)
        ]


def _filled(rows: np.ndarray, count: int, value: int = 0) -> np.ndarray:
    """The same rows, and that value up to that count of them."""
    missing = count - len(rows)
    pads = [(0, missing), *[(0, 0)] * (rows.ndim - 1)]
    return np.pad(rows, pads, constant_values=value) if missing else rows


@jax.jit
def _nearer(
    best: tuple[Array, Array], queries: Array, known: Array, labels: Array
) -> tuple[Array, Array]:
    """The k nearest of those found so far and of more; a label below 0 is that of no image."""
    alike = jnp.einsum("qf,kf->qk", _unit(queries), _unit(known), precision=lax.Precision.HIGHEST)
    alike = jnp.where(labels[None] >= 0, alike, -jnp.inf)
    values = jnp.concatenate([best[0], alike], 1)
    candidates = jnp.concatenate([best[1], jnp.broadcast_to(labels[None], alike.shape)], 1)
    top, places = lax.top_k(values, best[0].shape[1])
    return top, jnp.take_along_axis(candidates, places, 1)


@functools.partial(jax.jit, static_argnames=("classes",))
def _votes(similar: Array, labels: Array, temperature: float, classes: int) -> Array:
    # Against the nearest one, so that no temperature overflows.
    weights = jnp.exp((similar - similar[:, :1]) / temperature)
    return (jax.nn.one_hot(labels, classes) * weights[..., None]).sum(1)


def _unit(features: Array) -> Array:
    """The features as vectors of length 1; zeros stay."""
    length = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.where(length > 0, length, 1)
