"""The networks in Flax linen, trained as in its examples: a `TrainState`, optax, one `jax.jit`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from benchmarks.cases import LEARNING_RATE, MOMENTUM, Case, Weights, images_of, labels_of
from benchmarks.rivals import Rival, jax_peak

# -- Networks --------------------------------------------------------------------------------------


class LeNet(nn.Module):
    """Two 5x5 convolutions and two dense layers."""

    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Logits of images."""
        conv, dense = partial(nn.Conv, dtype=self.dtype), partial(nn.Dense, dtype=self.dtype)
        for width in (32, 64):
            x = nn.max_pool(nn.relu(conv(width, (5, 5))(x)), (2, 2), strides=(2, 2))
        x = nn.relu(dense(128)(x.reshape(len(x), -1)))
        return dense(self.classes)(x)


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    conv: Any
    norm: Any
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The sum of both sides."""
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm()(self.conv(self.width, (3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(self.width, (1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, beside a shortcut."""

    conv: Any
    norm: Any
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The sum of both sides."""
        y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1)(y)
        y = nn.relu(self.norm()(y))
        y = self.norm()(self.conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(4 * self.width, (1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network; `imagenet` has the 7x7 stem and its pool."""

    classes: int
    depths: Sequence[int]
    block: type[nn.Module]
    imagenet: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Logits of images."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        window, stride, padding = (7, 2, 3) if self.imagenet else (3, 1, 1)
        x = nn.relu(norm()(conv(64, (window, window), strides=stride, padding=padding)(x)))
        if self.imagenet:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]
        for stage, depth in enumerate(self.depths):
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                x = self.block(conv, norm, 64 * 2**stage, stride)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


class PreActivated(nn.Module):
    """Two 3x3 convolutions, each after a norm and a ReLU."""

    conv: Any
    norm: Any
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The sum of both sides."""
        active = nn.relu(self.norm()(x))
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1)(active)
        y = self.conv(self.width, (3, 3), padding=1)(nn.relu(self.norm()(y)))
        if x.shape != y.shape:
            x = self.conv(self.width, (1, 1), strides=self.stride)(active)
        return x + y


class WideResNet(nn.Module):
    """WRN-16-4: two blocks a stage, four times as wide."""

    classes: int

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Logits of images."""
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = conv(16, (3, 3), padding=1)(x)
        for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
            x = PreActivated(conv, norm, width, stride)(x)
        return nn.Dense(self.classes)(nn.relu(norm()(x)).mean((1, 2)))


class InvertedResidual(nn.Module):
    """A depthwise 3x3 convolution between two 1x1 ones."""

    conv: Any
    norm: Any
    width: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The projection, with the input where it has the same shape."""
        wide, y = self.expansion * x.shape[-1], x
        if self.expansion > 1:
            y = nn.relu6(self.norm()(self.conv(wide, (1, 1))(y)))
        y = self.conv(wide, (3, 3), strides=self.stride, padding=1, feature_group_count=wide)(y)
        y = nn.relu6(self.norm()(y))
        y = self.norm()(self.conv(self.width, (1, 1))(y))
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """MobileNetV2 of the paper's table 2."""

    classes: int

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Logits of images."""
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu6(norm()(conv(32, (3, 3), strides=2, padding=1)(x)))
        for expansion, width, depth, stride in (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ):
            for number in range(depth):
                step = stride if number == 0 else 1
                x = InvertedResidual(conv, norm, width, step, expansion)(x)
        x = nn.relu6(norm()(conv(1280, (1, 1))(x)))
        return nn.Dense(self.classes)(x.mean((1, 2)))


class LayerScale(nn.Module):
    """A learned factor for every channel."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The scaled input."""
        return x * self.param("scale", nn.initializers.constant(1e-6), x.shape[-1:])


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution and two dense layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The sum of both sides."""
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), padding=3, feature_group_count=width)(x)
        y = nn.Dense(4 * width)(nn.LayerNorm()(y))
        y = nn.Dense(width)(nn.gelu(y, approximate=False))
        return x + LayerScale()(y)


class ConvNeXt(nn.Module):
    """ConvNeXt-T."""

    classes: int

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Logits of images."""
        x = nn.LayerNorm()(nn.Conv(96, (4, 4), strides=4, padding="VALID")(x))
        for stage, depth in enumerate((3, 3, 9, 3)):
            if stage > 0:
                halve = nn.Conv(96 * 2**stage, (2, 2), strides=2, padding="VALID")
                x = halve(nn.LayerNorm()(x))
            for _ in range(depth):
                x = ConvNeXtBlock()(x)
        return nn.Dense(self.classes)(nn.LayerNorm()(x.mean((1, 2))))


NETWORKS = {
    "lenet": LeNet,
    "resnet18": partial(ResNet, depths=(2, 2, 2, 2), block=Basic, imagenet=False),
    "wrn_16_4": WideResNet,
    "resnet50": partial(ResNet, depths=(3, 4, 6, 3), block=Bottleneck, imagenet=True),
    "mobilenet_v2": MobileNetV2,
    "convnext_tiny": ConvNeXt,
}

# -- Training --------------------------------------------------------------------------------------


class State(TrainState):
    """A `TrainState` with batch statistics."""

    batch_stats: Any


@partial(jax.jit, donate_argnums=0)
def _train_step(state: State, images: Any, labels: Any) -> tuple[State, Any]:
    def loss_of(params: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(variables, images, True, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, changed.get("batch_stats", {})

    (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


def build(case: Case, weights: Weights, *, dtype: str | None = None) -> Rival:
    """The network of the case in Flax linen; dtype is that of the computation."""
    model = NETWORKS[case.name](case.classes, **({"dtype": dtype} if dtype else {}))
    variables = _variables(model, weights, (1, *case.image))
    state = State.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=optax.sgd(LEARNING_RATE, MOMENTUM),
    )
    batch = jax.device_put((images_of(case, case.batch), labels_of(case, case.batch)))

    @jax.jit
    def in_training(variables: Any, images: Any) -> Any:
        return model.apply(variables, images, True, mutable=["batch_stats"])[0]

    @jax.jit
    def in_inference(variables: Any, images: Any) -> Any:
        return model.apply(variables, images, False)

    def current() -> Any:
        return {"params": state.params, "batch_stats": state.batch_stats}

    def step() -> tuple[Any, Any]:
        nonlocal state
        state, loss = _train_step(state, *batch)
        return loss, state

    def predictor(images: np.ndarray) -> Any:
        placed = jax.device_put(images)
        return lambda: in_inference(current(), placed)

    return Rival(
        lambda images: np.asarray(in_training(current(), images), np.float32),
        step,
        predictor,
        jax.block_until_ready,
        jax_peak,
    )


def _variables(model: nn.Module, weights: Weights, shape: tuple[int, ...]) -> Any:
    """The weights as linen's variables: its layers are taken in the order of their calls."""
    paths = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(
            context.module, nn.Conv | nn.Dense | nn.BatchNorm | nn.LayerNorm | LayerScale
        ):
            paths.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        spec = jax.ShapeDtypeStruct(shape, jnp.float32)
        expected = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), spec)
    variables: dict[str, Any] = {}
    for path, leaves in zip(paths, weights.values(), strict=True):
        for name, leaf in leaves.items():
            kind = "batch_stats" if name in ("mean", "var") else "params"
            tree = variables.setdefault(kind, {})
            for part in path:
                tree = tree.setdefault(part, {})
            tree[name] = jnp.asarray(leaf)
    shapes = jax.tree.map(jnp.shape, variables)
    if shapes != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"the weights do not fit {type(model).__name__}")
    return variables
