"""The networks in Equinox: one image goes through the model, `jax.vmap` makes it a batch.

Images are channels first, as Equinox has them. Batch statistics are in mode "batch", which its
documentation recommends for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks.cases import LEARNING_RATE, MOMENTUM, Case, Weights, images_of, labels_of
from benchmarks.rivals import Rival, jax_peak

# -- Networks --------------------------------------------------------------------------------------

# The weights are given: no key needs to differ from another one.
KEY = jax.random.PRNGKey(0)
relu, relu6 = eqx.nn.Lambda(jax.nn.relu), eqx.nn.Lambda(jax.nn.relu6)
global_avg_pool = eqx.nn.Lambda(lambda x: x.mean((1, 2)))
batch_norm = partial(eqx.nn.BatchNorm, axis_name="batch", mode="batch")


def conv(before: int, width: int, window: int, stride: int = 1, groups: int = 1, **options: Any):
    """A convolution that keeps the image's size, but for the stride."""
    padding = options.pop("padding", (window - 1) // 2)
    return eqx.nn.Conv2d(before, width, window, stride, padding, groups=groups, key=KEY, **options)


def dense(before: int, width: int) -> eqx.nn.Linear:
    """A dense layer."""
    return eqx.nn.Linear(before, width, key=KEY)


def conv_norm(before: int, width: int, window: int, stride: int = 1, groups: int = 1) -> list:
    """A convolution without bias, and its norm."""
    return [conv(before, width, window, stride, groups, use_bias=False), batch_norm(width)]


def lenet(classes: int) -> eqx.Module:
    """Two 5x5 convolutions and two dense layers."""
    return eqx.nn.Sequential(
        [
            *(conv(1, 32, 5), relu, eqx.nn.MaxPool2d(2, 2)),
            *(conv(32, 64, 5), relu, eqx.nn.MaxPool2d(2, 2)),
            *(eqx.nn.Lambda(jnp.ravel), dense(64 * 7 * 7, 128), relu, dense(128, classes)),
        ]
    )


class Residual(eqx.nn.StatefulLayer):
    """The sum of a body and a shortcut, and what follows."""

    body: eqx.nn.Sequential
    shortcut: eqx.nn.Sequential
    then: Callable = eqx.field(static=True)

    def __init__(self, body: Sequence, shortcut: Sequence = (), then: Callable = lambda x: x):
        self.body, self.shortcut = eqx.nn.Sequential(body), eqx.nn.Sequential(shortcut)
        self.then = then

    def __call__(self, x: Array, state: eqx.nn.State, *, key: Any = None):
        """The sum, and the batch statistics."""
        y, state = self.body(x, state)
        side, state = self.shortcut(x, state)
        return self.then(y + side), state


def basic(before: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    body = [*conv_norm(before, width, 3, stride), relu, *conv_norm(width, width, 3)]
    return Residual(body, _shortcut(before, width, stride), jax.nn.relu)


def bottleneck(before: int, width: int, stride: int) -> Residual:
    """A 3x3 convolution between two 1x1 ones."""
    body = [
        *(*conv_norm(before, width, 1), relu, *conv_norm(width, width, 3, stride), relu),
        *conv_norm(width, 4 * width, 1),
    ]
    return Residual(body, _shortcut(before, 4 * width, stride), jax.nn.relu)


def resnet(
    classes: int, depths: Sequence[int], block: Callable, expansion: int, stem: Sequence
) -> eqx.Module:
    """A residual network."""
    layers, before = [*stem], 64
    for stage, depth in enumerate(depths):
        for number in range(depth):
            width, stride = 64 * 2**stage, 2 if stage > 0 and number == 0 else 1
            layers.append(block(before, width, stride))
            before = expansion * width
    return eqx.nn.Sequential([*layers, global_avg_pool, dense(before, classes)])


def resnet18(classes: int) -> eqx.Module:
    """ResNet-18 with the stem for images of 32 pixels."""
    return resnet(classes, (2, 2, 2, 2), basic, 1, [*conv_norm(3, 64, 3), relu])


def resnet50(classes: int) -> eqx.Module:
    """ResNet-50 as torchvision builds it."""
    stem = [*conv_norm(3, 64, 7, 2), relu, eqx.nn.MaxPool2d(3, 2, 1)]
    return resnet(classes, (3, 4, 6, 3), bottleneck, 4, stem)


class PreActivated(eqx.nn.StatefulLayer):
    """Two 3x3 convolutions, each after a norm and a ReLU."""

    norm1: eqx.nn.BatchNorm
    conv1: eqx.nn.Conv2d
    norm2: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    shortcut: eqx.nn.Conv2d | None

    def __init__(self, before: int, width: int, stride: int):
        self.norm1, self.norm2 = batch_norm(before), batch_norm(width)
        self.conv1 = conv(before, width, 3, stride, use_bias=False)
        self.conv2 = conv(width, width, 3, use_bias=False)
        reshaped = stride > 1 or before != width
        self.shortcut = conv(before, width, 1, stride, use_bias=False) if reshaped else None

    def __call__(self, x: Array, state: eqx.nn.State, *, key: Any = None):
        """The sum of both sides, and the batch statistics."""
        y, state = self.norm1(x, state)
        active = jax.nn.relu(y)
        y, state = self.norm2(self.conv1(active), state)
        y = self.conv2(jax.nn.relu(y))
        return y + (x if self.shortcut is None else self.shortcut(active)), state


def wide_resnet(classes: int) -> eqx.Module:
    """WRN-16-4."""
    sizes = ((16, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))
    blocks = [PreActivated(*size) for size in sizes]
    stem = conv(3, 16, 3, use_bias=False)
    head = [batch_norm(256), relu, global_avg_pool, dense(256, classes)]
    return eqx.nn.Sequential([stem, *blocks, *head])


def inverted_residual(before: int, width: int, stride: int, expansion: int) -> Any:
    """A depthwise 3x3 convolution between two 1x1 ones."""
    wide = expansion * before
    body = [*conv_norm(before, wide, 1), relu6] if expansion > 1 else []
    body += [*conv_norm(wide, wide, 3, stride, wide), relu6, *conv_norm(wide, width, 1)]
    return Residual(body) if stride == 1 and before == width else eqx.nn.Sequential(body)


def mobilenet_v2(classes: int) -> eqx.Module:
    """MobileNetV2 of the paper's table 2."""
    layers, before = [*conv_norm(3, 32, 3, 2), relu6], 32
    for expansion, width, depth, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for number in range(depth):
            layers.append(inverted_residual(before, width, stride if number == 0 else 1, expansion))
            before = width
    layers += [*conv_norm(320, 1280, 1), relu6]
    return eqx.nn.Sequential([*layers, global_avg_pool, dense(1280, classes)])


def everywhere(layer: Callable, x: Array) -> Array:
    """A layer of vectors at each place of an image `[height, width, channels]`."""
    return jax.vmap(jax.vmap(layer))(x)


class Norm2d(eqx.Module):
    """Normalises the channels at each place of `[channels, height, width]`."""

    norm: eqx.nn.LayerNorm

    def __init__(self, width: int):
        self.norm = eqx.nn.LayerNorm(width, eps=1e-6)

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        """The normalised image."""
        return everywhere(self.norm, x.transpose(1, 2, 0)).transpose(2, 0, 1)


class LayerScale(eqx.Module):
    """A learned factor for every channel."""

    scale: Array

    def __init__(self, width: int):
        self.scale = jnp.full(width, 1e-6)

    def __call__(self, x: Array) -> Array:
        """The scaled input."""
        return self.scale * x


class ConvNeXtBlock(eqx.Module):
    """A depthwise 7x7 convolution and two dense layers."""

    depthwise: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    expand: eqx.nn.Linear
    project: eqx.nn.Linear
    scale: LayerScale

    def __init__(self, width: int):
        self.depthwise = conv(width, width, 7, groups=width)
        self.norm = eqx.nn.LayerNorm(width, eps=1e-6)
        self.expand, self.project = dense(width, 4 * width), dense(4 * width, width)
        self.scale = LayerScale(width)

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        """The sum of both sides."""

        def pointwise(x: Array) -> Array:
            y = jax.nn.gelu(self.expand(self.norm(x)), approximate=False)
            return self.scale(self.project(y))

        return x + everywhere(pointwise, self.depthwise(x).transpose(1, 2, 0)).transpose(2, 0, 1)


def convnext_tiny(classes: int) -> eqx.Module:
    """ConvNeXt-T."""
    layers: list = [conv(3, 96, 4, 4, padding=0), Norm2d(96)]
    width = 96
    for stage, depth in enumerate((3, 3, 9, 3)):
        if stage > 0:
            layers += [Norm2d(width), conv(width, 2 * width, 2, 2, padding=0)]
            width *= 2
        layers += [ConvNeXtBlock(width) for _ in range(depth)]
    head = [global_avg_pool, eqx.nn.LayerNorm(width, eps=1e-6), dense(width, classes)]
    return eqx.nn.Sequential([*layers, *head])


NETWORKS = {
    "lenet": lenet,
    "resnet18": resnet18,
    "wrn_16_4": wide_resnet,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "convnext_tiny": convnext_tiny,
}


def _shortcut(before: int, width: int, stride: int) -> list:
    return [] if stride == 1 and before == width else conv_norm(before, width, 1, stride)


# -- Training --------------------------------------------------------------------------------------

OPTIMIZER = optax.sgd(LEARNING_RATE, MOMENTUM)


def _logits(model: Any, state: Any, images: Array) -> tuple[Array, Any]:
    batched = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return batched(images, state)


@eqx.filter_jit(donate="all-except-first")
def _train_step(batch: Any, model: Any, state: Any, opt: Any) -> tuple[Any, Any, Any, Array]:
    images, labels = batch

    def loss_of(model: Any) -> tuple[Array, Any]:
        logits, changed = _logits(model, state, images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, changed

    (loss, state), grads = eqx.filter_value_and_grad(loss_of, has_aux=True)(model)
    updates, opt = OPTIMIZER.update(grads, opt)
    return eqx.apply_updates(model, updates), state, opt, loss


def build(case: Case, weights: Weights) -> Rival:
    """The network of the case in Equinox."""
    model, state = eqx.nn.make_with_state(NETWORKS[case.name])(case.classes)
    model, state = load(model, state, weights, case.flattened)
    opt = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    place = _channels_first
    batch = place(images_of(case, case.batch)), jnp.asarray(labels_of(case, case.batch))

    @eqx.filter_jit
    def in_training(model: Any, state: Any, images: Array) -> Array:
        return _logits(model, state, images)[0]

    @eqx.filter_jit
    def in_inference(model: Any, state: Any, images: Array) -> Array:
        return _logits(eqx.nn.inference_mode(model), state, images)[0]

    def step() -> tuple[Any, Any]:
        nonlocal model, state, opt
        model, state, opt, loss = _train_step(batch, model, state, opt)
        return loss, (model, state, opt)

    def predictor(images: np.ndarray) -> Any:
        placed = place(images)
        return lambda: in_inference(model, state, placed)

    return Rival(
        lambda images: np.asarray(in_training(model, state, place(images))),
        step,
        predictor,
        _wait,
        jax_peak,
    )


_KINDS = (eqx.nn.Conv2d, eqx.nn.Linear, eqx.nn.LayerNorm, eqx.nn.BatchNorm, LayerScale)


def load(model: Any, state: Any, weights: Weights, flattened: Any) -> tuple[Any, Any]:
    """The model and its state with the weights of convjax: layers in the order of their fields.

    flattened: height, width and channels of what is flattened before the first dense layer.
    """

    def layers(model: Any) -> list:
        found = jax.tree.leaves(model, is_leaf=lambda layer: isinstance(layer, _KINDS))
        return [layer for layer in found if isinstance(layer, _KINDS)]

    loaded = []
    for layer, leaves in zip(layers(model), weights.values(), strict=True):
        given = {name: leaf for name, leaf in leaves.items() if name not in ("mean", "var")}
        if "kernel" in given:
            given["weight"], flattened = _weight(given.pop("kernel"), flattened)
        elif not isinstance(layer, LayerScale):
            given["weight"] = given.pop("scale")
        if "bias" in given and isinstance(layer, eqx.nn.Conv2d):
            given["bias"] = given["bias"].reshape(-1, 1, 1)
        for name, leaf in given.items():
            if getattr(layer, name).shape != leaf.shape:
                raise ValueError(
                    f"{name} of {layer} is {getattr(layer, name).shape}, given {leaf.shape}"
                )
            layer = eqx.tree_at(lambda each: getattr(each, name), layer, jnp.asarray(leaf))  # noqa: B023
        if isinstance(layer, eqx.nn.BatchNorm):
            statistics = jnp.asarray(leaves["mean"]), jnp.asarray(leaves["var"])
            state = state.set(layer.batch_state_index, statistics)
        loaded.append(layer)
    return eqx.tree_at(layers, model, loaded), state


def _weight(kernel: np.ndarray, flattened: Any) -> tuple[np.ndarray, Any]:
    """A kernel as Equinox has it, and what is left to be told about flattening."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1), flattened
    if flattened is None:
        return kernel.T, None
    return kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3).reshape(kernel.shape).T, None


def _channels_first(images: np.ndarray) -> Array:
    return jnp.asarray(images.transpose(0, 3, 1, 2))


def _wait(result: Any) -> Any:
    jax.block_until_ready(eqx.filter(result, eqx.is_array))
    return result
