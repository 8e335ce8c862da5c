"""What is measured: six networks with their images, and the libraries that compute them.

Nothing here imports any of those libraries: each of them has a process to itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# So small that the loss follows the gradient: with larger steps, a ResNet-50 of eight images and
# batch norm turns what float32 rounds into tenths of the loss, in every library.
LEARNING_RATE = 5e-5
MOMENTUM = 0.9

# Path to the leaves of that layer (kernel, bias, scale; mean, var), in the order of their calls.
Weights = dict[str, dict[str, np.ndarray]]


class Case(NamedTuple):
    """A network with the images that it is measured on.

    image: height, width, channels.
    batch: images a step of training.
    flattened: height, width and channels of what is flattened before the first dense layer, for
        libraries that flatten channels first; None where a global pool stands there.
    """

    name: str
    title: str
    image: tuple[int, int, int]
    batch: int
    classes: int
    flattened: tuple[int, int, int] | None = None


class Competitor(NamedTuple):
    """A library in one of its modes.

    module: in `benchmarks.rivals`; its `build` takes the case, the weights and the options.
    needs: what must be installed.
    """

    title: str
    module: str
    needs: str
    options: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}


CASES = {
    case.name: case
    for case in (
        Case("lenet", "LeNet", (28, 28, 1), 128, 10, flattened=(7, 7, 64)),
        Case("resnet18", "ResNet-18", (32, 32, 3), 128, 10),
        Case("wrn_16_4", "WRN-16-4", (32, 32, 3), 128, 10),
        Case("resnet50", "ResNet-50", (224, 224, 3), 8, 1000),
        Case("mobilenet_v2", "MobileNetV2", (96, 96, 3), 64, 1000),
        Case("convnext_tiny", "ConvNeXt-T", (224, 224, 3), 8, 1000),
    )
}

OURS = "convjax"
COMPETITORS = {
    OURS: Competitor("convjax", "convjax_", "convjax"),
    "lax": Competitor("plain lax", "convjax_", "convjax", {"plain": True}),
    "linen": Competitor("Flax linen", "linen", "flax"),
    "equinox": Competitor("Equinox", "equinox_", "equinox"),
    "keras": Competitor("Keras on JAX", "keras_", "keras", {}, {"KERAS_BACKEND": "jax"}),
    "torch": Competitor("PyTorch contiguous", "torch_", "torch"),
    "torch_channels_last": Competitor(
        "PyTorch channels-last", "torch_", "torch", {"channels_last": True}
    ),
    "torch_compile": Competitor(
        "torch.compile", "torch_", "torch", {"channels_last": True, "compiled": True}
    ),
}


def images_of(case: Case, batch: int, seed: int = 0) -> np.ndarray:
    """Random images, float32 `[batch, height, width, channels]`, the same in every process."""
    shape = (batch, *case.image)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def labels_of(case: Case, batch: int, seed: int = 0) -> np.ndarray:
    """Random labels, int32 `[batch]`, the same in every process."""
    return np.random.default_rng(seed).integers(case.classes, size=batch, dtype=np.int32)
