"""The train step and the evaluation step, as pure functions that every mapper compiles alike.

    step = make_step(net, optimizer, cross_entropy, prepare=normalise(mean, std))
    state, metrics = step(state, Batch(images, labels), hyper)

Under `jax.vmap` over state and hyper one program trains many members at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from convjax.layer import Context, Layer, Params, State
from convjax.training.loss import Loss
from convjax.training.metrics import Metrics, correct
from convjax.training.optimizer import Hyper, Optimizer
from convjax.training.state import TrainState


class Batch(NamedTuple):
    """Images `[batch, *spatial, channels]`, labels int32 `[batch]`, and a mask of what counts.

    mask: bool `[batch]`; None counts all. It is about loss and metrics: masked images still take
    part in batch statistics, so that training batches are best full.
    """

    images: Any
    labels: Any
    mask: Any = None


Prepare = Callable[[Array], Array]
Step = Callable[[TrainState, Batch, Hyper], tuple[TrainState, Metrics]]
EvalStep = Callable[[tuple[Params, State], Batch], Metrics]


def normalise(mean: np.ndarray, std: np.ndarray) -> Prepare:
    """Images for the network: `(pixels - mean) / std` in float32, of uint8 pixels divided by 255.

    mean, std: `[channels]`, for pixels in [0, 1]. A channel that never varies (std 0) is left at 0.
    """
    mean = np.asarray(mean, np.float32)
    std = np.asarray(std, np.float32)
    std = np.where(std == 0, np.float32(1), std)

    def prepare(images: Array) -> Array:
        pixels = images.astype(jnp.float32)
        if jnp.issubdtype(images.dtype, jnp.integer):
            pixels = pixels / 255
        shape = (1,) * (images.ndim - 1) + (-1,)
        return (pixels - mean.reshape(shape)) / std.reshape(shape)

    return prepare


def make_step(
    net: Layer,
    optimizer: Optimizer,
    loss: Loss,
    *,
    prepare: Prepare = jnp.asarray,
    axis: str | None = None,
) -> Step:
    """One step of training: `(state, batch, hyper) -> (state, metrics)`.

    The randomness of step n is the state's key with n folded in. The gradient is that of the mean
    loss over the whole batch.

    prepare: what becomes of the images first, inside the compiled step.
    axis: the mapped axis over which the batch is spread (`pmap`, `shard_map`): gradients, batch
        statistics and metrics are those of the whole batch. Not for `jit`, where the batch is
        whole by itself. `shard_map` wants `check_vma=False`.
    """

    def step(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Metrics]:
        ctx = Context(jax.random.fold_in(state.key, state.step), train=True, axis=axis)
        images = prepare(batch.images)
        number = jnp.asarray(len(batch.labels)) if batch.mask is None else batch.mask.sum()
        # The sum of the devices' gradients of (sum here / count everywhere) is the gradient of the
        # mean over all examples, however the mask is spread; without any it is 0, not NaN.
        number = jnp.maximum(_psum(number, axis), 1).astype(jnp.float32)

        def objective(params: Params) -> tuple[Array, tuple[State, Metrics]]:
            logits, new_state = net.apply(params, state.state, images, ctx)
            total, count = loss(logits, batch.labels, batch.mask, hyper.label_smoothing)
            hits = correct(logits, batch.labels, batch.mask)
            return total / number, (new_state, Metrics(total, hits, count))

        grads, (new_state, metrics) = jax.grad(objective, has_aux=True)(state.params)
        grads, metrics = _psum((grads, metrics), axis)
        transform = optimizer(hyper, state.step)
        updates, opt = transform.update(grads, state.opt, state.params, value=metrics.loss / number)
        params: Any = optax.apply_updates(state.params, updates)  # type: ignore[arg-type]
        return TrainState(state.step + 1, params, new_state, opt, state.key), metrics

    return step


def make_eval_step(
    net: Layer, loss: Loss, *, prepare: Prepare = jnp.asarray, axis: str | None = None
) -> EvalStep:
    """One batch of an evaluation, `((params, state), batch) -> metrics`: no smoothing, no noise."""

    def step(model: tuple[Params, State], batch: Batch) -> Metrics:
        params, state = model
        logits, _ = net.apply(params, state, prepare(batch.images), Context(axis=axis))
        total, count = loss(logits, batch.labels, batch.mask, 0.0)
        return _psum(Metrics(total, correct(logits, batch.labels, batch.mask), count), axis)

    return step


def _psum(tree: Any, axis: str | None) -> Any:
    return tree if axis is None else lax.psum(tree, axis)
