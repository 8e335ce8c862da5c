"""What a step shows of its gradients, for those who look on, and how weights and these are spread.

    step = make_step(net, optimizer, loss, show=seen.show)
    state, metrics, seen = step(state, batch, hyper)        # seen: four numbers of each leaf
    spread(weights, seen)                                   # {"conv1/kernel": {"weights": ...}}

Of gradients it is sizes alone that a step gives: XLA moves sums and choices of the numbers
themselves into what gradients are made by, and rounds the training otherwise. Weights are there to
be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.layer import Params

PERCENTILES = (1, 7, 16, 31, 50, 69, 84, 93, 99)  # of weights
MOST = 100_000  # weights of one leaf that are looked at


class Seen(NamedTuple):
    """Of the gradient of each leaf, in the tree's order, float32 `[leaves]`.

    squares, sizes: the sums of the squares and of the absolute values of its numbers.
    largest: the greatest absolute value. zeros: how many of them are 0.
    """

    squares: Array
    sizes: Array
    largest: Array
    zeros: Array


def show(grads: Params, factor: Array) -> Seen:
    """What is shown of gradients that are yet to be multiplied by a factor, inside the step.

    factor: positive.
    """
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(grads)]
    absolute = [jnp.abs(leaf) for leaf in leaves]
    if not leaves:
        return none(grads)
    squares = jnp.stack([jnp.sum(leaf * leaf) for leaf in leaves])
    sizes, largest = (jnp.stack([of(leaf) for leaf in absolute]) for of in (jnp.sum, jnp.max))
    zeros = jnp.stack([jnp.sum(leaf == 0, dtype=jnp.float32) for leaf in leaves])
    return Seen(squares * jnp.square(factor), sizes * factor, largest * factor, zeros)


def none(params: Params) -> Seen:
    """Zeros, of the shapes that `show` gives."""
    return Seen(*(jnp.zeros(len(jax.tree.leaves(params)), jnp.float32) for _ in Seen._fields))


def norm(seen: Seen) -> float:
    """The norm of the whole gradient; waits for the device.

    >>> norm(show({"kernel": jnp.array([6.0, 8.0])}, jnp.float32(0.5)))
    5.0
    """
    return _root(float(np.sum(np.asarray(seen.squares, np.float64))))


def spread(
    weights: Mapping[str, np.ndarray], seen: Seen | None = None
) -> dict[str, dict[str, list[float]]]:
    """How the weights of each leaf are spread, and its gradient, if there is one; by path.

    Each is a list. Of weights: their root mean square, and the `PERCENTILES`, of every so many-th
    one where there are more than `MOST`. Of a gradient: its norm; mean, root mean square and
    maximum of its absolute values; and the share of them that are 0.

    weights: by path, in the tree's order.

    >>> spread({"bias": np.array([1.0, 1.0])})["bias"]["weights"][:2]
    [1.0, 1.0]
    >>> seen = show({"bias": jnp.array([-3.0, 0.0, 0.0, 4.0])}, jnp.float32(1))
    >>> spread({"bias": np.ones(4)}, seen)["bias"]["gradients"]
    [5.0, 1.75, 2.5, 4.0, 0.5]
    """
    found = {path: {"weights": _of_weights(leaf)} for path, leaf in weights.items()}
    if seen is not None:
        rows = np.stack([np.asarray(each, np.float64) for each in seen], 1)
        for (path, leaf), row in zip(weights.items(), rows):
            found[path]["gradients"] = _of_gradient(row, leaf.size)
    return found


def _of_weights(leaf: np.ndarray) -> list[float]:
    few = leaf.ravel()[:: -(-leaf.size // MOST)].astype(np.float64)
    return _rounded([math.sqrt(float(np.mean(np.square(few)))), *np.percentile(few, PERCENTILES)])


def _of_gradient(row: np.ndarray, size: int) -> list[float]:
    squares, sizes, largest, zeros = map(float, row)
    return _rounded([_root(squares), sizes / size, _root(squares / size), largest, zeros / size])


def _root(squares: float) -> float:
    """Of a sum that may be no number, after a bad step."""
    return math.sqrt(squares) if squares >= 0 else math.nan


def _rounded(row: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in row]
