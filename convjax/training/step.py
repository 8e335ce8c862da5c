"""The train step and the evaluation step, as pure functions that every mapper compiles alike.

    step = make_step(net, optimizer, cross_entropy, prepare=normalise(mean, std))
    state, metrics = step(state, Batch(images, labels), hyper)

Under `jax.vmap` over state and hyper one program trains many members at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.typing import DTypeLike

from convjax.augment.compose import Draw
from convjax.layer import Context, Layer, Params, State, fold
from convjax.training import loss_scale, watch
from convjax.training.accumulate import in_parts
from convjax.training.average import Average
from convjax.training.loss import Loss, cross_entropy
from convjax.training.metrics import Metrics, correct
from convjax.training.optimizer import Hyper, Optimizer
from convjax.training.state import TrainState
from convjax.training.views import View, averaged


class Batch(NamedTuple):
    """Images `[batch, *spatial, channels]`, labels int32 `[batch]`, and a mask of what counts.

    mask: bool `[batch]`; None counts all. It is about loss and metrics: masked images still take
    part in batch statistics, so that training batches are best full.
    numbers: that of each image in its data set, int32 `[batch]`, for augmentations that ask.
    """

    images: Any
    labels: Any
    mask: Any = None
    numbers: Any = None


Prepare = Callable[[Array], Array]
# (draw, images) -> images, as `convjax.augment.augment` makes it
Change = Callable[[Draw, Array], Array]
# (key, images, labels) -> (images, probabilities [batch, classes])
Mix = Callable[[Array, Array, Array], tuple[Array, Array]]
Step = Callable[[TrainState, Batch, Hyper], tuple[Any, ...]]
EvalStep = Callable[[tuple[Params, State], Batch], Metrics]


def normalise(mean: np.ndarray, std: np.ndarray, dtype: DTypeLike = jnp.float32) -> Prepare:
    """Images for the network: `(pixels - mean) / std` in float32, of uint8 pixels divided by 255.

    mean, std: `[channels]`, for pixels in [0, 1]. A channel that never varies (std 0) is left at 0.
    dtype: what they are rounded to then, and so what the network computes in; norms and sums keep
        to float32 inside.
    """
    mean = np.asarray(mean, np.float32)
    std = np.asarray(std, np.float32)
    std = np.where(std == 0, np.float32(1), std)

    def prepare(images: Array) -> Array:
        pixels = images.astype(jnp.float32)
        if jnp.issubdtype(images.dtype, jnp.integer):
            pixels = pixels / 255
        shape = (1,) * (images.ndim - 1) + (-1,)
        return ((pixels - mean.reshape(shape)) / std.reshape(shape)).astype(dtype)

    return prepare


def make_step(
    net: Layer,
    optimizer: Optimizer,
    loss: Loss,
    *,
    prepare: Prepare = jnp.asarray,
    change: Change | None = None,
    mix: Mix | None = None,
    hold: Callable[[Params], Params] | None = None,
    sharpen: Callable[[Any, Array], Any] | None = None,
    parts: int = 1,
    average: Average | None = None,
    epoch: int = 1,
    patience: int | Array = 10,
    show: Callable[[Params, Array], Any] | None = None,
    axis: str | None = None,
) -> Step:
    """One step of training: `(state, batch, hyper) -> (state, metrics)`.

    The randomness of step n is the state's key with n folded in. The gradient is that of the mean
    loss over the whole batch. Where the state has a loss scale, the loss is multiplied by it for
    the backward pass.

    Where the state has a watch, a step is skipped whole if its loss, a gradient, batch statistic or
    new parameter, or what the optimizer remembers, is not finite: it changes nothing but the watch,
    the count of steps and the loss scale, and its metrics are those of no example.

    change: what random changes become of the images first, inside the compiled step; image i of the
        whole batch is given a key of its own.
    prepare: what becomes of the images then, such as `normalise`.
    mix: what becomes of images and labels together then: the labels as probabilities. Along a
        mapped axis an image is mixed with another of its device.
    hold: stops the gradient of parameters that are frozen, so that nothing of it is computed.
    sharpen: makes another gradient of the gradient, `(gradient, hyper.sam_rho) -> gradient`.
    parts: how many equal parts a batch is taken in, one after the other, for a fraction of the
        memory. The gradient is that of the whole batch, but for batch norm, which sees a part at a
        time, and noise, which is drawn for each part.
    average: follows parameters and batch statistics, in `state.average`.
    epoch: the steps of an epoch, for augmentations that go by it.
    patience: after so many skipped steps in a row nothing is trained any more, see
        `watch.diverged`; those by which a loss scale comes down to 1 are not counted.
    show: what a step gives besides, as a third result, of its gradients and of the number that they
        are yet to be multiplied by, such as `convjax.training.seen.show`.
    axis: the mapped axis over which the batch is spread (`pmap`, `shard_map`): gradients, batch
        statistics and metrics are those of the whole batch. Not for `jit`, where the batch is
        whole by itself. `shard_map` wants `check_vma=False`.

    Raises:
        ValueError: for a patience below 1.
    """

    if isinstance(patience, int) and patience < 1:
        raise ValueError(f"patience is {patience}: give 1 or more steps")

    def step(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[Any, ...]:
        if state.scale is not None and state.watch is None:
            raise ValueError("a state with a loss scale needs a watch, too: give watch.start()")
        calls = watch.Calls()
        key = jax.random.fold_in(state.key, state.step)
        if change is not None:
            batch = batch._replace(
                images=change(_draw(state, batch, key, epoch, axis), batch.images)
            )
        batch = batch._replace(images=prepare(batch.images))
        if mix is not None:
            images, labels = mix(fold(key, "mix"), batch.images, batch.labels)
            batch = batch._replace(images=images, labels=labels)
        scale = jnp.float32(1) if state.scale is None else state.scale.scale
        count = len(batch.labels) if batch.mask is None else batch.mask.sum()
        number = _divisor(_psum(jnp.asarray(count, jnp.int32), axis))

        def sums(params: Params, model_state: State, part: Batch, key: Array) -> Any:
            """The gradient of the summed loss over `number`, scaled; statistics, and the sums."""

            def objective(params: Params) -> tuple[Array, tuple[State, tuple[Array, Metrics]]]:
                params = params if hold is None else hold(params)
                ctx = watch.Noting(key, train=True, axis=axis, calls=calls)
                logits, new_state = net.apply(params, model_state, part.images, ctx)
                total, weight = loss(
                    logits, part.labels, part.mask, hyper.label_smoothing, **hyper.loss
                )
                hits = correct(logits, part.labels, part.mask)
                count = len(part.labels) if part.mask is None else part.mask.sum()
                metrics = Metrics(total, hits, jnp.asarray(count, jnp.int32), jnp.int32(0))
                scaled = scale * (total / number)
                return scaled, (new_state, (weight.astype(jnp.float32), metrics))

            return jax.grad(objective, has_aux=True)(params)

        def gradient(params: Params) -> tuple[Params, tuple[State, Metrics, Any]]:
            whole = in_parts(sums, parts)(params, state.state, batch, key)
            grads, (new_state, (weight, metrics)) = whole
            # The sum of the devices' gradients of (sum here / weight everywhere) is the gradient of
            # the mean over all examples, however the mask is spread; without any it is 0, not NaN.
            grads, weight, metrics = _psum((grads, weight, metrics), axis)
            # Where examples are weighted, the mean loss of the batch stands for each of them.
            share = number / _divisor(weight)
            # Of the products XLA makes others, rounded otherwise, where anybody else sees them.
            shown = None if show is None else show(grads, share / scale)
            grads = jax.tree.map(lambda grad: grad * (share / scale).astype(grad.dtype), grads)
            return grads, (new_state, metrics._replace(loss=metrics.loss * share), shown)

        sharp = gradient if sharpen is None else sharpen(gradient, hyper.sam_rho)
        grads, (new_state, metrics, shown) = sharp(state.params)
        transform = optimizer(hyper, state.step)
        updates, opt = transform.update(grads, state.opt, state.params, value=metrics.loss / number)
        params: Any = optax.apply_updates(state.params, updates)  # type: ignore[arg-type]
        follower = state.average
        if average is not None:
            follower, (params, new_state) = average(follower, (params, new_state), state.step)
        new = state._replace(params=params, state=new_state, opt=opt, average=follower)
        if state.watch is not None:
            order = watch.order_of(calls, state.params, state.state)
            bad = watch.look(metrics.loss, grads, new_state, params, opt)
            # What one device alone has seen is bad for all: they are to stay alike.
            bad = _psum(bad.astype(jnp.int32), axis) > 0
            new, metrics = _kept(state, new, metrics, bad, order, patience)
        new = new._replace(step=state.step + 1)
        return (new, metrics) if show is None else (new, metrics, shown)

    return step


def make_eval_step(
    net: Layer,
    loss: Loss = cross_entropy,
    *,
    prepare: Prepare = jnp.asarray,
    views: Sequence[View] = (),
    axis: str | None = None,
) -> EvalStep:
    """One batch of an evaluation, `((params, state), batch) -> metrics`: no smoothing, no noise.

    views: test-time augmentation, by the mean of the logits of several views of each image.
    """

    def step(model: tuple[Params, State], batch: Batch) -> Metrics:
        def logits_of(images: Array) -> Array:
            return net.apply(*model, images, Context(axis=axis))[0]

        predict = averaged(logits_of, views) if views else logits_of
        logits = predict(prepare(batch.images))
        total, _ = loss(logits, batch.labels, batch.mask, 0.0)
        count = len(batch.labels) if batch.mask is None else batch.mask.sum()
        hits = correct(logits, batch.labels, batch.mask)
        metrics = Metrics(total, hits, jnp.int32(count), jnp.int32(0))
        return _psum(metrics, axis)

    return step


def _kept(
    before: TrainState,
    after: TrainState,
    metrics: Metrics,
    bad: Array,
    order: Sequence[int],
    patience: int | Array,
) -> tuple[TrainState, Metrics]:
    """The state after a good step with its metrics; after a bad one the old state, and none."""
    assert before.watch is not None
    excused = False if before.scale is None else before.scale.scale > 1
    good, seen = watch.follow(before.watch, bad, order, before.step, patience, excused)
    scale = None if before.scale is None else loss_scale.follow(before.scale, good)
    metrics = watch.choose(good, metrics, jax.tree.map(jnp.zeros_like, metrics))
    metrics = metrics._replace(skipped=seen.skipped - before.watch.skipped)
    return watch.choose(good, after, before)._replace(scale=scale, watch=seen), metrics


def _draw(state: TrainState, batch: Batch, key: Array, epoch: int, axis: str | None) -> Draw:
    """What the images are changed by: image i of the whole batch by the key with i folded in."""
    first = 0 if axis is None else lax.axis_index(axis) * len(batch.labels)
    places = first + jnp.arange(len(batch.labels))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(fold(key, "change"), places)
    return Draw(keys, fold(state.key, "change"), batch.numbers, state.step // epoch)


def _divisor(number: Array) -> Array:
    """What to divide by, float32: the number, or 1 in place of 0."""
    return jnp.where(number > 0, number, 1).astype(jnp.float32)


def _psum(tree: Any, axis: str | None) -> Any:
    return tree if axis is None else lax.psum(tree, axis)
