"""The networks in Keras 3 on JAX: layers that are subclassed or sequential, and a stateless step.

The step is that of Keras' guide to training loops in JAX, which its own JAX trainer follows too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import keras
import numpy as np
from keras import layers

from benchmarks.cases import LEARNING_RATE, MOMENTUM, Case, Weights, images_of, labels_of
from benchmarks.rivals import Rival, jax_peak

# -- Networks --------------------------------------------------------------------------------------

batch_norm = partial(layers.BatchNormalization, momentum=0.9, epsilon=1e-5)
layer_norm = partial(layers.LayerNormalization, epsilon=1e-6)


def relu6() -> layers.Layer:
    """ReLU that ends at 6."""
    return layers.ReLU(max_value=6.0)


def padded(layer: layers.Layer, padding: int) -> list[layers.Layer]:
    """A layer after as many zeros on every side, as keras.applications has it."""
    return [layers.ZeroPadding2D(padding), layer] if padding else [layer]


def conv_norm(width: int, window: int, stride: int = 1) -> list[layers.Layer]:
    """A convolution without bias, and its norm."""
    if stride == 1:
        return [layers.Conv2D(width, window, padding="same", use_bias=False), batch_norm()]
    conv = layers.Conv2D(width, window, stride, use_bias=False)
    return [*padded(conv, (window - 1) // 2), batch_norm()]


def lenet(classes: int) -> keras.Model:
    """Two 5x5 convolutions and two dense layers."""
    return keras.Sequential(
        [
            *(layers.Conv2D(32, 5, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(64, 5, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(classes)),
        ]
    )


class Residual(layers.Layer):
    """The sum of a body and a shortcut, and what follows."""

    def __init__(self, body: list, shortcut: list | None = None, then: str = "linear"):
        super().__init__()
        self.body = keras.Sequential(body)
        self.shortcut = keras.Sequential(shortcut) if shortcut else None
        self.then = keras.activations.get(then)

    def call(self, x: Any, training: bool = False) -> Any:
        """The sum."""
        side = x if self.shortcut is None else self.shortcut(x, training=training)
        return self.then(self.body(x, training=training) + side)


def basic(width: int, stride: int, reshaped: bool) -> Residual:
    """Two 3x3 convolutions."""
    body = [*conv_norm(width, 3, stride), layers.ReLU(), *conv_norm(width, 3)]
    return Residual(body, conv_norm(width, 1, stride) if reshaped else None, "relu")


def bottleneck(width: int, stride: int, reshaped: bool) -> Residual:
    """A 3x3 convolution between two 1x1 ones."""
    body = [
        *(*conv_norm(width, 1), layers.ReLU(), *conv_norm(width, 3, stride), layers.ReLU()),
        *conv_norm(4 * width, 1),
    ]
    return Residual(body, conv_norm(4 * width, 1, stride) if reshaped else None, "relu")


def resnet(classes: int, depths: tuple[int, ...], block: Any, stem: list) -> keras.Model:
    """A residual network."""
    blocks = []
    for stage, depth in enumerate(depths):
        for number in range(depth):
            stride = 2 if stage > 0 and number == 0 else 1
            reshaped = stride > 1 or (number == 0 and block is bottleneck)
            blocks.append(block(64 * 2**stage, stride, reshaped))
    head = [layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    return keras.Sequential([*stem, *blocks, *head])


def resnet18(classes: int) -> keras.Model:
    """ResNet-18 with the stem for images of 32 pixels."""
    return resnet(classes, (2, 2, 2, 2), basic, [*conv_norm(64, 3), layers.ReLU()])


def resnet50(classes: int) -> keras.Model:
    """ResNet-50, with its strides where torchvision has them."""
    pool = padded(layers.MaxPooling2D(3, 2), 1)
    return resnet(classes, (3, 4, 6, 3), bottleneck, [*conv_norm(64, 7, 2), layers.ReLU(), *pool])


class PreActivated(layers.Layer):
    """Two 3x3 convolutions, each after a norm and a ReLU."""

    def __init__(self, width: int, stride: int, reshaped: bool):
        super().__init__()
        conv = partial(layers.Conv2D, width, use_bias=False)
        first = conv(3, padding="same") if stride == 1 else conv(3, stride)
        self.norm1 = batch_norm()
        self.conv1 = keras.Sequential(padded(first, 1 if stride > 1 else 0))
        self.norm2 = batch_norm()
        self.conv2 = conv(3, padding="same")
        self.shortcut = conv(1, stride) if reshaped else None

    def call(self, x: Any, training: bool = False) -> Any:
        """The sum of both sides."""
        active = keras.ops.relu(self.norm1(x, training=training))
        y = keras.ops.relu(self.norm2(self.conv1(active), training=training))
        return self.conv2(y) + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(classes: int) -> keras.Model:
    """WRN-16-4."""
    blocks = [
        PreActivated(width, stride if number == 0 else 1, number == 0)
        for width, stride in ((64, 1), (128, 2), (256, 2))
        for number in range(2)
    ]
    stem = layers.Conv2D(16, 3, padding="same", use_bias=False)
    head = [batch_norm(), layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    return keras.Sequential([stem, *blocks, *head])


def inverted_residual(before: int, width: int, stride: int, expansion: int) -> list:
    """A depthwise 3x3 convolution between two 1x1 ones."""
    body = [*conv_norm(expansion * before, 1), relu6()] if expansion > 1 else []
    if stride == 1:
        body.append(layers.DepthwiseConv2D(3, padding="same", use_bias=False))
    else:
        body += padded(layers.DepthwiseConv2D(3, stride, use_bias=False), 1)
    body += [batch_norm(), relu6(), *conv_norm(width, 1)]
    return [Residual(body)] if stride == 1 and before == width else body


def mobilenet_v2(classes: int) -> keras.Model:
    """MobileNetV2 of the paper's table 2, with its zeros where torchvision has them."""
    parts, before = [*conv_norm(32, 3, 2), relu6()], 32
    for expansion, width, depth, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for number in range(depth):
            parts += inverted_residual(before, width, stride if number == 0 else 1, expansion)
            before = width
    head = [layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    return keras.Sequential([*parts, *conv_norm(1280, 1), relu6(), *head])


class LayerScale(layers.Layer):
    """A learned factor for every channel, as in keras.applications."""

    def build(self, shape: Any) -> None:
        """Makes the factors."""
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        """The scaled input."""
        return x * self.scale


def convnext_block(width: int) -> Residual:
    """A depthwise 7x7 convolution and two dense layers."""
    return Residual(
        [
            *(layers.DepthwiseConv2D(7, padding="same"), layer_norm()),
            *(layers.Dense(4 * width), layers.Activation(_gelu), layers.Dense(width)),
            LayerScale(),
        ]
    )


def convnext_tiny(classes: int) -> keras.Model:
    """ConvNeXt-T."""
    parts = [layers.Conv2D(96, 4, 4), layer_norm()]
    for stage, depth in enumerate((3, 3, 9, 3)):
        if stage > 0:
            parts += [layer_norm(), layers.Conv2D(96 * 2**stage, 2, 2)]
        parts += [convnext_block(96 * 2**stage) for _ in range(depth)]
    head = [layers.GlobalAveragePooling2D(), layer_norm(), layers.Dense(classes)]
    return keras.Sequential([*parts, *head])


NETWORKS = {
    "lenet": lenet,
    "resnet18": resnet18,
    "wrn_16_4": wide_resnet,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "convnext_tiny": convnext_tiny,
}


def _gelu(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=False)


# -- Training --------------------------------------------------------------------------------------


def build(case: Case, weights: Weights) -> Rival:
    """The network of the case in Keras."""
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=jax before its import"
        )
    model = NETWORKS[case.name](case.classes)
    model.build((None, *case.image))
    load(model, weights)
    optimizer = keras.optimizers.SGD(LEARNING_RATE, MOMENTUM)
    optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def compute_loss(trainable: Any, non_trainable: Any, images: Any, labels: Any) -> Any:
        logits, non_trainable, *_ = model.stateless_call(
            trainable, non_trainable, images, training=True
        )
        return loss_fn(labels, logits), non_trainable

    gradient = jax.value_and_grad(compute_loss, has_aux=True)

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        trainable, non_trainable, opt = state
        (loss, non_trainable), grads = gradient(trainable, non_trainable, images, labels)
        trainable, opt = optimizer.stateless_apply(opt, grads, trainable)
        return (trainable, non_trainable, opt), loss

    @partial(jax.jit, static_argnums=2)
    def predict(state: Any, images: Any, training: bool) -> Any:
        return model.stateless_call(*state[:2], images, training=training)[0]

    variables = model.trainable_variables, model.non_trainable_variables, optimizer.variables
    state: Any = tuple([variable.value for variable in each] for each in variables)
    batch = jax.device_put((images_of(case, case.batch), labels_of(case, case.batch)))

    def step() -> tuple[Any, Any]:
        nonlocal state
        state, loss = train_step(state, *batch)
        return loss, state

    def predictor(images: np.ndarray) -> Any:
        placed = jax.device_put(images)
        return lambda: predict(state, placed, False)

    return Rival(
        lambda images: np.asarray(predict(state, images, True)),
        step,
        predictor,
        jax.block_until_ready,
        jax_peak,
    )


_NAMES = {
    "kernel": "kernel",
    "bias": "bias",
    "gamma": "scale",
    "scale": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


def load(model: keras.Model, weights: Weights) -> None:
    """Sets the weights of convjax: Keras' variables come layer by layer, in the same order."""
    variables = list(model.weights)
    for path, leaves in weights.items():
        mine, variables = variables[: len(leaves)], variables[len(leaves) :]
        given = {_NAMES[variable.name]: variable for variable in mine}
        if given.keys() != leaves.keys():
            raise ValueError(f"{path} has {', '.join(leaves)}, Keras has {', '.join(given)}")
        for name, variable in given.items():
            leaf = leaves[name]
            if name == "kernel" and variable.shape != leaf.shape:  # of a depthwise convolution
                leaf = leaf.swapaxes(2, 3)
            if variable.shape != leaf.shape:
                raise ValueError(f"{path}/{name} is {leaf.shape}, Keras has {variable.shape}")
            variable.assign(leaf)
    if variables:
        raise ValueError(f"Keras has {len(variables)} variables more than convjax")
