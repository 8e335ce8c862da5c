"""The networks in PyTorch: contiguous, channels-last, or compiled by `torch.compile`.

On the CPU in float32; on a GPU under autocast, with `dtype`.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases import LEARNING_RATE, MOMENTUM, Case, Weights, images_of, labels_of
from benchmarks.rivals import Rival

# -- Networks --------------------------------------------------------------------------------------


def lenet(classes: int) -> nn.Module:
    """Two 5x5 convolutions and two dense layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, classes)),
    )


def conv_norm(before: int, width: int, window: int, stride: int = 1, groups: int = 1) -> list:
    """A convolution without bias, and its norm."""
    padding = (window - 1) // 2
    conv = nn.Conv2d(before, width, window, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class Residual(nn.Module):
    """The sum of a body and a shortcut, and what follows."""

    def __init__(self, body: list, shortcut: nn.Module, then: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.then = nn.Sequential(*body), shortcut, then

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return self.then(self.body(x) + self.shortcut(x))


def basic(before: int, width: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions."""
    body = [
        *conv_norm(before, width, 3, stride),
        nn.ReLU(inplace=True),
        *conv_norm(width, width, 3),
    ]
    return Residual(body, _shortcut(before, width, stride), nn.ReLU(inplace=True))


def bottleneck(before: int, width: int, stride: int) -> nn.Module:
    """A 3x3 convolution between two 1x1 ones."""
    body = [
        *(*conv_norm(before, width, 1), nn.ReLU(inplace=True)),
        *(*conv_norm(width, width, 3, stride), nn.ReLU(inplace=True)),
        *conv_norm(width, 4 * width, 1),
    ]
    return Residual(body, _shortcut(before, 4 * width, stride), nn.ReLU(inplace=True))


def resnet(
    classes: int, depths: tuple[int, ...], block: Any, expansion: int, stem: list
) -> nn.Module:
    """A residual network."""
    layers, before = [*stem], 64
    for stage, depth in enumerate(depths):
        for number in range(depth):
            width, stride = 64 * 2**stage, 2 if stage > 0 and number == 0 else 1
            layers.append(block(before, width, stride))
            before = expansion * width
    return nn.Sequential(*layers, *_pool(), nn.Linear(before, classes))


def resnet18(classes: int) -> nn.Module:
    """ResNet-18 with the stem for images of 32 pixels."""
    stem = [*conv_norm(3, 64, 3), nn.ReLU(inplace=True)]
    return resnet(classes, (2, 2, 2, 2), basic, 1, stem)


def resnet50(classes: int) -> nn.Module:
    """ResNet-50 as torchvision builds it."""
    stem = [*conv_norm(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return resnet(classes, (3, 4, 6, 3), bottleneck, 4, stem)


class PreActivated(nn.Module):
    """Two 3x3 convolutions, each after a norm and a ReLU."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        reshaped = stride > 1 or before != width
        self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if reshaped else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both sides."""
        active = F.relu(self.norm1(x), inplace=True)
        y = self.conv2(F.relu(self.norm2(self.conv1(active)), inplace=True))
        return y + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(classes: int) -> nn.Module:
    """WRN-16-4."""
    sizes = ((16, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        *(PreActivated(*size) for size in sizes),
        *(nn.BatchNorm2d(256), nn.ReLU(inplace=True), *_pool(), nn.Linear(256, classes)),
    )


def inverted_residual(before: int, width: int, stride: int, expansion: int) -> nn.Module:
    """A depthwise 3x3 convolution between two 1x1 ones."""
    wide = expansion * before
    body = [*conv_norm(before, wide, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
    body += [*conv_norm(wide, wide, 3, stride, groups=wide), nn.ReLU6(inplace=True)]
    body += conv_norm(wide, width, 1)
    if stride == 1 and before == width:
        return Residual(body, nn.Identity(), nn.Identity())
    return nn.Sequential(*body)


def mobilenet_v2(classes: int) -> nn.Module:
    """MobileNetV2 as torchvision builds it."""
    layers, before = [*conv_norm(3, 32, 3, 2), nn.ReLU6(inplace=True)], 32
    for expansion, width, depth, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for number in range(depth):
            layers.append(inverted_residual(before, width, stride if number == 0 else 1, expansion))
            before = width
    layers += [*conv_norm(320, 1280, 1), nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, *_pool(), nn.Linear(1280, classes))


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels at each place of `[batch, channels, height, width]`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The normalised images."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """A learned factor for every channel, the last axis."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """The scaled input."""
        return self.scale * x


class Permute(nn.Module):
    """Its input with the axes in another order."""

    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """The view."""
        return x.permute(self.axes)


def convnext_block(width: int) -> nn.Module:
    """A depthwise 7x7 convolution and two dense layers."""
    body = [
        *(nn.Conv2d(width, width, 7, padding=3, groups=width), Permute(0, 2, 3, 1)),
        *(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.GELU()),
        *(nn.Linear(4 * width, width), LayerScale(width), Permute(0, 3, 1, 2)),
    ]
    return Residual(body, nn.Identity(), nn.Identity())


def convnext_tiny(classes: int) -> nn.Module:
    """ConvNeXt-T as torchvision builds it."""
    layers, width = [nn.Conv2d(3, 96, 4, 4), LayerNorm2d(96, eps=1e-6)], 96
    for stage, depth in enumerate((3, 3, 9, 3)):
        if stage > 0:
            layers += [LayerNorm2d(width, eps=1e-6), nn.Conv2d(width, 2 * width, 2, 2)]
            width *= 2
        layers += [convnext_block(width) for _ in range(depth)]
    head = [*_pool(), nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)]
    return nn.Sequential(*layers, *head)


def small(
    classes: int, size: int, channels: int = 1, width: int = 32, stages: int = 2
) -> nn.Module:
    """The small ConvNet of convjax, whose pools leave images of that size."""

    def features(before: int, width: int, pool: bool) -> list[nn.Module]:
        conv, norm = conv_norm(before, width, 3)
        return [conv, *([nn.MaxPool2d(2)] if pool else []), norm, nn.ReLU(inplace=True)]

    layers = features(channels, width, True)
    for _ in range(stages):
        layers += [*features(width, 2 * width, True), *features(2 * width, 2 * width, False)]
        layers.append(nn.Dropout(0.3))
        width *= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size * size * width, classes))


NETWORKS = {
    "lenet": lenet,
    "resnet18": resnet18,
    "wrn_16_4": wide_resnet,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "convnext_tiny": convnext_tiny,
}


def _pool() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def _shortcut(before: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and before == width:
        return nn.Identity()
    return nn.Sequential(*conv_norm(before, width, 1, stride))


# -- Training --------------------------------------------------------------------------------------


def build(
    case: Case,
    weights: Weights,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    device: str = "cpu",
    dtype: str | None = None,
) -> Rival:
    """The network of the case in PyTorch; dtype is that of autocast."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = NETWORKS[case.name](case.classes)
    load(model, weights, case.flattened)
    model = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    called = torch.compile(model, dynamic=False) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, fused=True)

    def place(images: np.ndarray) -> Tensor:
        return (
            torch.from_numpy(images).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)
        )

    def precision() -> Any:
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device, getattr(torch, dtype))

    images = place(images_of(case, case.batch))
    labels = torch.from_numpy(labels_of(case, case.batch)).long().to(device)

    def step() -> tuple[Any, Any]:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = F.cross_entropy(called(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach(), None

    def train_logits(images: np.ndarray) -> np.ndarray:
        # A copy, as the running statistics change; and as it is, since compiling it tells nothing.
        with torch.no_grad(), precision():
            return copy.deepcopy(model).train()(place(images)).float().cpu().numpy()

    def predictor(images: np.ndarray) -> Any:
        placed = place(images)

        def predict() -> Any:
            model.eval()
            with torch.inference_mode(), precision():
                return called(placed)

        return predict

    def wait(result: Any) -> Any:
        if device != "cpu":
            torch.cuda.synchronize()
        return result

    def device_peak() -> int | None:
        return None if device == "cpu" else torch.cuda.max_memory_allocated()

    return Rival(train_logits, step, predictor, wait, device_peak)


def load(model: nn.Module, weights: Weights, flattened: tuple[int, int, int] | None) -> None:
    """Sets the weights of convjax: layers in their order, images and kernels channels first.

    flattened: height, width and channels of what is flattened before the first dense layer.
    """
    layers = [
        layer
        for layer in model.modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    names = {"mean": "running_mean", "var": "running_var", "bias": "bias"}
    for layer, leaves in zip(layers, weights.values(), strict=True):
        expected = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        expected.pop("num_batches_tracked", None)
        given = {}
        for name, leaf in leaves.items():
            if name == "kernel":
                given["weight"], flattened = _weight(leaf, flattened)
            elif name == "scale" and isinstance(layer, LayerScale):
                given["scale"] = leaf
            else:
                given[names.get(name, "weight")] = leaf
        if given.keys() != expected.keys():
            raise ValueError(f"{layer} has {', '.join(expected)}, but is given {', '.join(given)}")
        for name, leaf in given.items():
            if leaf.shape != expected[name].shape:
                raise ValueError(
                    f"{name} of {layer} is {tuple(expected[name].shape)}, given {leaf.shape}"
                )
            expected[name].data.copy_(torch.from_numpy(np.ascontiguousarray(leaf)))


_Flattened = tuple[int, int, int] | None


def _weight(kernel: np.ndarray, flattened: _Flattened) -> tuple[np.ndarray, _Flattened]:
    """A kernel as PyTorch has it, and what is left to be told about flattening."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1), flattened
    if flattened is None:
        return kernel.T, None
    places = kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3)
    return places.reshape(kernel.shape).T, None
