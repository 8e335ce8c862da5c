"""What a trained network says of every image of a split, and the features that it says it by.

model = trained("runs/mine")
found = predictions(model, "test")
found.logits.argmax(1) == found.labels
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax.config import UserError
from convjax.insight.passes import with_inputs
from convjax.layer import Context, Layer, Params, State, plan
from convjax.surgery import capture
from convjax.trained import Trained
from convjax.training import feed, parallel
from convjax.training.evaluate import batch_size_for
from convjax.training.feed import Split
from convjax.training.parallel import Mapper
from convjax.training.step import Batch

# (numbers int32 [batch], images uint8) -> images uint8
Change = Callable[[Array, Array], Array]


class Predictions(NamedTuple):
    """What a network says of the images of a split, in their order, on the host.

    logits: float32 `[images, classes]`. labels: int32 `[images]`.
    features: what went into the last layer, float32 `[images, features]`; None unless asked for.
    """

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None = None


class Predictor:
    """The evaluation step of a trained network that keeps what it sees, compiled for all devices.

    features: whether it gives those, too, of `layer`, the path of the last layer.

    Raises:
        UserError: if features are asked for and the network has no dense layer and no convolution.
    """

    def __init__(self, model: Trained, *, features: bool = False):
        self.model, self.features = model, features
        self.mapper: Mapper = parallel.make(model.config.parallel)
        net, params, state = model.net, model.params, model.state
        self.layer = path = None
        if features:
            spec = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
            self.layer, _ = last_layer(net, spec)
            path = f"{self.layer}/input"
            net, params, state = with_inputs(net, params, state, [self.layer])
            net = capture(net, path)
        self._placed = self.mapper.place((params, state))
        self._step = self.mapper.compile(_step(net, model.prepare, path, self.mapper.axis))

    def predict(self, split: Split, change: Change | None = None) -> Predictions:
        """What the network says of every image, each once, whatever the size of the batches.

        change: what becomes of the images first.

        Raises:
            UserError: if there are no images.
        """
        if not split.size:
            raise UserError("the split has no images to evaluate")
        logits, labels, features = zip(*self.stream(split, change))
        whole = np.concatenate(features) if self.features else None
        return Predictions(np.concatenate(logits), np.concatenate(labels), whole)

    def stream(self, split: Split, change: Change | None = None) -> Iterator[Predictions]:
        """The same, batch by batch, of which none is kept."""
        waiting = None
        for batch in self._batches(split):
            if change is not None:
                batch = batch._replace(images=change(batch.numbers, batch.images))
            # One call late: the device has its next batch before the host waits for the last one.
            before, waiting = waiting, (self._step(self._placed, batch), batch)
            if before is not None:
                yield self._to_host(*before)
        if waiting is not None:
            yield self._to_host(*waiting)

    def _to_host(self, found: tuple[Array, Array], batch: Batch) -> Predictions:
        """Logits, labels and features of the images that count."""
        counts = np.asarray(batch.mask)
        logits, features, labels = (np.asarray(each)[counts] for each in (*found, batch.labels))
        return Predictions(logits, labels, features if self.features else None)

    def _batches(self, split: Split) -> Iterator[Batch]:
        """The batches of an evaluation, with the numbers of their images."""
        size = batch_size_for(
            self.model.config.eval_batch_size, len(self.mapper.devices), split.size
        )
        for number, batch in enumerate(feed.evaluation(split, size, self.mapper)):
            numbers = np.arange(number * size, (number + 1) * size, dtype=np.int32)
            yield batch._replace(numbers=self.mapper.shard(numbers))


def predictions(model: Trained, split: str | None = None, *, features: bool = False) -> Predictions:
    """What a trained network says of a split of its data, by default the one it was tested on."""
    return Predictor(model, features=features).predict(model.split(split))


def last_layer(net: Layer, spec: Any) -> tuple[str, int]:
    """The layer that makes the logits: of dense ones and convolutions, the last that is called.

    Returns its path, and how many features go into it.

    Raises:
        UserError: if there is neither.
    """
    makers = plan(net, spec).makers.items()
    found = [
        (path, maker.spec.shape[-1])
        for path, maker in makers
        if maker.layer.kind in ("dense", "conv") and path
    ]
    if not found:
        raise UserError("the network has no dense layer and no convolution to take features before")
    return found[-1]


def finite(found: Predictions, what: str) -> Predictions:
    """The same predictions, once it is known that their logits are finite.

    Raises:
        UserError: with how many images have others, and the first of them.
    """
    bad = np.flatnonzero(~np.isfinite(found.logits).all(1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of the {len(found.labels)} images of {what} have logits that are not "
            f"finite (the first is image {bad[0]}), of which no score can be told: look where "
            "they are from with `experiments.train --debug_nans`, or evaluate another --model"
        )
    return found


def _step(net: Layer, prepare: Any, path: str | None, axis: str | None) -> Any:
    """`((params, state), batch) -> (logits, features)`, whole on every device."""

    def step(model: tuple[Params, State], batch: Batch) -> tuple[Array, Array]:
        said, _ = net.apply(*model, prepare(batch.images), Context(axis=axis))
        logits, features = (said, said[:, :0]) if path is None else (said[0], said[1][path])
        if isinstance(features, tuple):  # Of a layer that is called several times, the last call.
            features = features[-1]
        # A convolution has features at each place: their means.
        features = features.astype(jnp.float32)
        features = features.mean(tuple(range(1, features.ndim - 1)))
        found = (logits.astype(jnp.float32), features)
        if axis is None:
            return found
        return jax.tree.map(lambda each: lax.all_gather(each, axis, tiled=True), found)

    return step
