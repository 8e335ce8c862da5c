"""What a network's features know, asked without learning anything: votes of the nearest images.

    votes = neighbour_votes(train_features, train_labels, features, classes=10, k=200)
    accuracy = (votes.argmax(1) == labels).mean()

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
    parts = -(-len(bank) // _PART)
    size = -(-len(bank) // parts)
    filled = np.zeros((parts * size, bank.shape[1]), np.float32)
    filled[: len(bank)] = bank
    numbers = np.full(parts * size, -1, np.int32)
    numbers[: len(bank)] = bank_labels
    known = _unit(jnp.asarray(filled)).reshape(parts, size, -1)
    known_labels = jnp.asarray(numbers).reshape(parts, size)
    found = []
    for first in range(0, len(features), _AT_ONCE):
        some = np.asarray(features[first : first + _AT_ONCE], np.float32)
        queries = np.zeros((_AT_ONCE, some.shape[1]), np.float32)
        queries[: len(some)] = some
        votes = _votes(known, known_labels, jnp.asarray(queries), temperature, k, classes)
        found.append(np.asarray(votes)[: len(some)])
    return np.concatenate(found) if found else np.zeros((0, classes), np.float32)


@functools.partial(jax.jit, static_argnames=("k", "classes"))
def _votes(
    known: Array, known_labels: Array, queries: Array, temperature: float, k: int, classes: int
) -> Array:
    queries = _unit(queries)

    def nearer(best: tuple[Array, Array], part: tuple[Array, Array]):
        """The k nearest of those found so far and of a part of the bank."""
        features, labels = part
        alike = jnp.einsum("qf,kf->qk", queries, features, precision=lax.Precision.HIGHEST)
        alike = jnp.where(labels[None] >= 0, alike, -jnp.inf)
        values = jnp.concatenate([best[0], alike], 1)
        candidates = jnp.concatenate([best[1], jnp.broadcast_to(labels[None], alike.shape)], 1)
        top, places = lax.top_k(values, k)
        return (top, jnp.take_along_axis(candidates, places, 1)), None

    none = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32))
    (similar, labels), _ = lax.scan(nearer, none, (known, known_labels))
    # Against the nearest one, so that no temperature overflows.
    weights = jnp.exp((similar - similar[:, :1]) / temperature)
    return (jax.nn.one_hot(labels, classes) * weights[..., None]).sum(1)


def _unit(features: Array) -> Array:
    """The features as vectors of length 1; zeros stay."""
    length = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.where(length > 0, length, 1)
