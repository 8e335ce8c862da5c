"""What a linear map can read from a network's features: logistic regression on top of them.

    probe = fit_probe(train_features, train_labels, classes=10)
    accuracy = (probe.logits(features).argmax(1) == labels).mean()

Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax


class Probe(NamedTuple):
    """A linear map of features that are standardised first.

    mean, std: of each feature. kernel: `[features, classes]`. bias: `[classes]`.
    steps: that were taken. slope: the largest entry of the gradient at the end, by size.
    converged: whether it ended by its tolerance, and not by the number of its steps.
    """

    mean: np.ndarray
    std: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    steps: int
    slope: float
    converged: bool

    def logits(self, features: np.ndarray) -> np.ndarray:
        """What it says of features `[images, features]`: `[images, classes]`."""
        return ((features - self.mean) / self.std) @ self.kernel + self.bias


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    penalty: float = 1.0,
    steps: int = 1000,
    tolerance: float = 1e-4,
) -> Probe:
    """Logistic regression by L-BFGS on the device, from zeros: one answer, and no chance in it.

    It minimises the sum of the cross-entropies and half of `penalty` times the squares of the
    kernel, as `sklearn.linear_model.LogisticRegression(C=1 / penalty)` does, divided by the number
    of images, until no entry of the gradient is above `tolerance`, which is scikit-learn's rule,
    too, or so many steps were taken.

    features: float `[images, features]`; a feature that never varies counts for nothing.

    Raises:
        ValueError: if there are no images, or features are not finite.
    """
    features = np.asarray(features, np.float32)
    if not len(features) or not np.isfinite(features).all():
        raise ValueError(f"a probe needs finite features of an image or more: {features.shape}")
    mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    # What varies by rounding alone does not vary.
    std = np.where(std > 1e-6 * np.abs(mean).clip(1e-30), std, np.inf)
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    scaled = jnp.asarray((features - mean) / std)
    start = (jnp.zeros((features.shape[1], classes)), jnp.zeros(classes))
    numbers = jnp.asarray(labels, jnp.int32)
    (kernel, bias), count, slope = _minimise(
        start, scaled, numbers, penalty / len(features), steps, tolerance
    )
    told = (int(count), float(slope), float(slope) <= tolerance)
    return Probe(mean, std, np.asarray(kernel), np.asarray(bias), *told)


@jax.jit
def _minimise(
    start: tuple[Array, Array],
    features: Array,
    labels: Array,
    penalty: float,
    steps: int,
    tolerance: float,
) -> tuple[tuple[Array, Array], Array, Array]:
    def loss(weights: tuple[Array, Array]) -> Array:
        kernel, bias = weights
        logits = jnp.dot(features, kernel, precision=lax.Precision.HIGHEST) + bias[None]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean() + penalty / 2 * jnp.square(kernel).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def going_on(carry):
        _, _, count, slope = carry
        return (count < steps) & (slope > tolerance)

    def step(carry):
        weights, state, count, _ = carry
        value, grads = value_and_grad(weights, state=state)
        updates, state = solver.update(
            grads, state, weights, value=value, grad=grads, value_fn=loss
        )
        entries = jax.tree.leaves(optax.tree.get(state, "grad"))
        slope = jnp.stack([jnp.abs(each).max() for each in entries]).max()
        return optax.apply_updates(weights, updates), state, count + 1, slope

    first: Any = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    weights, _, count, slope = lax.while_loop(going_on, step, first)
    return weights, count, slope
