"""The networks in convjax, with its own training step; `plain` is what JAX makes of them by itself.

Plain means: every convolution, pool and norm as one `lax` operation, and no compile options.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.cases import LEARNING_RATE, MOMENTUM, Case, Weights, images_of, labels_of
from benchmarks.rivals import Rival, jax_peak
from convjax import Context, Layer, conv, dense, flatten, max_pool, models, ops, relu, serial
from convjax.allocator import keep_freed_memory
from convjax.models.resnet import cifar_stem
from convjax.training import optimizer as optimizers
from convjax.training import parallel, schedule
from convjax.training.loss import cross_entropy
from convjax.training.state import TrainState
from convjax.training.step import Batch, make_step


def lenet(classes: int) -> Layer:
    """Two 5x5 convolutions of 32 and 64 features, each with a pool, and two dense layers."""
    return serial(
        *(conv(32, 5), relu, max_pool(2)),
        *(conv(64, 5), relu, max_pool(2)),
        *(flatten, dense(128), relu, dense(classes)),
    )


# Without dropout and stochastic depth, so that every library computes the same numbers.
NETWORKS = {
    "lenet": lenet,
    "resnet18": partial(models.create, "resnet18", stem=cifar_stem),
    "wrn_16_4": partial(models.create, "wrn_16_4", dropout_rate=0.0),
    "resnet50": partial(models.create, "resnet50"),
    "mobilenet_v2": partial(models.create, "mobilenet_v2", dropout_rate=0.0),
    "convnext_tiny": partial(models.create, "convnext_tiny", drop_path_rate=0.0),
}


def build(case: Case, weights: Weights, *, plain: bool = False, dtype: str = "float32") -> Rival:
    """The network of the case in convjax.

    dtype: of the images, and so of the computation; parameters are float32.
    """
    if not plain:
        keep_freed_memory()  # As convjax's own launcher does.
    net = NETWORKS[case.name](classes=case.classes)
    mapper = parallel.make("jit")

    def compiled(fn: Any, donate: bool = False) -> Any:
        if not plain:
            return mapper.compile(fn, donate=donate)

        def traced(*arguments: Any) -> Any:
            with ops.algorithm("lax"):
                return fn(*arguments)

        return jax.jit(traced, donate_argnums=(0,) if donate else ())

    def logits(train: bool, model: Any, images: Any) -> Any:
        return net.apply(*model, images, Context(jax.random.key(0), train=train))[0]

    def place(images: np.ndarray) -> Any:
        return mapper.shard(jax.numpy.asarray(images, dtype))

    momentum = {"momentum": MOMENTUM}
    optimizer = optimizers.make("sgd", schedule.make("constant", steps=1), args=momentum)
    hyper = mapper.replicate(optimizers.hyper_of(LEARNING_RATE, args=momentum))
    params, state = unflatten(weights)
    zero = jax.numpy.zeros((), jax.numpy.int32)
    opt = optimizer(hyper, zero).init(params)
    current = mapper.replicate(TrainState(zero, params, state, opt, jax.random.key(0)))
    batch = mapper.shard(Batch(place(images_of(case, case.batch)), labels_of(case, case.batch)))
    train_step = compiled(make_step(net, optimizer, cross_entropy, axis=mapper.axis), donate=True)
    in_training, in_inference = (compiled(partial(logits, train)) for train in (True, False))

    def step() -> tuple[Any, Any]:
        nonlocal current
        current, metrics = train_step(current, batch, hyper)
        return metrics.loss / case.batch, current

    def train_logits(images: np.ndarray) -> np.ndarray:
        return np.asarray(in_training((current.params, current.state), place(images)), np.float32)

    def predictor(images: np.ndarray) -> Any:
        placed = place(images)
        return lambda: in_inference((current.params, current.state), placed)

    return Rival(train_logits, step, predictor, jax.block_until_ready, jax_peak)


def unflatten(weights: Weights) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and state of convjax as nested dicts, from leaves by path."""
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for path, leaves in weights.items():
        for name, leaf in leaves.items():
            tree = state if name in ("mean", "var") else params
            for part in path.split("/"):
                tree = tree.setdefault(part, {})
            tree[name] = leaf
    return params, state
