"""The one catalogue of layers: `test_catalogue.py` runs every entry under every transformation.

An entry is called after the public name that it stands for, then what is special about it:
"conv/strided". A new layer enters here, or the test that the catalogue is complete fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import convjax
from convjax import (
    batch_norm,
    branch,
    compose,
    conv,
    dense,
    drop_path,
    dropout,
    flatten,
    gelu,
    layer_norm,
    max_pool,
    relu,
    residual,
    serial,
    stack,
)
from convjax.layer import Layer, as_layer

# One example for each of the eight devices of the tests; no two sizes are alike.
VECTOR = (8, 6)
LINE = (8, 7, 4)
IMAGE = (8, 6, 5, 4)
VOLUME = (8, 4, 5, 3, 4)
DIMENSIONS = {"1d": LINE, "2d": IMAGE, "3d": VOLUME}


class Entry(NamedTuple):
    """What is run: `shape` is that of the input, or a tuple of such shapes for several inputs."""

    name: str
    make: Callable[[], Layer]
    shape: Any

    @property
    def layer(self) -> Layer:
        return self.make()

    @property
    def spec(self) -> Any:
        """The input's shape and dtype, as `init` takes it."""
        several = isinstance(self.shape[0], tuple)
        shapes = self.shape if several else (self.shape,)
        specs = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        return specs if several else specs[0]


def entries() -> list[Entry]:
    """Every entry; making one draws nothing."""
    made = [
        *_activations(),
        *_convolutions(),
        *_norms(),
        *_noise(),
        *_pools(),
        *_shapes(),
        *_combinators(),
        *_surgery(),
    ]
    return [Entry(name, lambda part=part: as_layer(part), shape) for name, part, shape in made]


Rows = list[tuple[str, Any, Any]]  # name, a layer or a function of an array, shape of its input


def _everywhere(name: str, part: Any) -> Rows:
    """A layer over one, two and three spatial dimensions."""
    return [(f"{name}/{rank}", part, shape) for rank, shape in DIMENSIONS.items()]


def _activations() -> Rows:
    names = (
        *("celu", "elu", "gelu", "gelu_tanh", "glu", "hard_sigmoid", "hard_swish", "hard_tanh"),
        *("leaky_relu", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid"),
        *("silu", "softmax", "softplus", "softsign", "tanh"),
    )
    return [
        *((name, getattr(convjax, name), VECTOR) for name in names),
        ("prelu", convjax.prelu(), IMAGE),
        ("prelu/shared", convjax.prelu(shared=True), VECTOR),
    ]


def _convolutions() -> Rows:
    return [
        *_everywhere("conv", conv(3, 3)),
        ("conv/strided", conv(3, (3, 2), stride=(2, 1), bias=False), IMAGE),
        ("conv/valid", conv(3, 3, padding="VALID"), IMAGE),
        ("conv/explicit_padding", conv(3, 3, padding=((0, 2), (1, 0))), IMAGE),
        ("conv/circular", conv(3, 3, padding="CIRCULAR"), IMAGE),
        ("conv/reflect", conv(3, 3, padding="REFLECT"), IMAGE),
        ("conv/dilated", conv(3, 2, dilation=2), IMAGE),
        ("conv/grouped", conv(6, 3, groups=2), IMAGE),
        *_everywhere("conv_transpose", convjax.conv_transpose(3, 3, stride=2)),
        ("conv_transpose/grouped", convjax.conv_transpose(6, 2, stride=2, groups=2), IMAGE),
        (
            "conv_transpose/padded",
            convjax.conv_transpose(3, 3, stride=2, padding=1, output_padding=1),
            IMAGE,
        ),
        *_everywhere("depthwise_conv", convjax.depthwise_conv(3)),
        ("depthwise_conv/multiplier", convjax.depthwise_conv(3, multiplier=2, stride=2), IMAGE),
        *_everywhere("separable_conv", convjax.separable_conv(5, 3)),
        ("dense", dense(3), VECTOR),
        ("dense/each_pixel", dense(3, bias=False), IMAGE),
        ("weight_standardized/conv", convjax.weight_standardized(conv(3, 3)), IMAGE),
        ("weight_standardized/dense", convjax.weight_standardized(dense(3)), VECTOR),
        *_everywhere("squeeze_excite", convjax.squeeze_excite(0.5)),
    ]


def _norms() -> Rows:
    return [
        *_everywhere("batch_norm", batch_norm()),
        ("batch_norm/vectors", batch_norm(momentum=0.5, scale=False, bias=False), VECTOR),
        *_everywhere("frozen_norm", convjax.frozen_norm(batch_norm())),
        ("ghost_norm/1d", convjax.ghost_norm(batch_norm(), 2), (16, 5, 4)),
        ("ghost_norm/2d", convjax.ghost_norm(batch_norm(scale=False), 4), (32, 3, 2, 4)),
        ("ghost_norm/3d", convjax.ghost_norm(batch_norm(), 1), (8, 2, 3, 2, 4)),
        ("layer_norm", layer_norm(), IMAGE),
        *_everywhere("group_norm", convjax.group_norm(2)),
        *_everywhere("instance_norm", convjax.instance_norm()),
        ("rms_norm", convjax.rms_norm(), IMAGE),
        ("local_response_norm", convjax.local_response_norm(3, alpha=1.0), IMAGE),
    ]


def _noise() -> Rows:
    return [
        ("dropout", dropout(0.4), IMAGE),
        ("dropout/vectors", dropout(0.4), VECTOR),
        *_everywhere("spatial_dropout", convjax.spatial_dropout(0.4)),
        ("drop_path", drop_path(0.4), IMAGE),
    ]


def _pools() -> Rows:
    return [
        *_everywhere("max_pool", max_pool(2)),
        ("max_pool/overlapping", max_pool(3, stride=2, padding=1), IMAGE),
        *_everywhere("avg_pool", convjax.avg_pool(2)),
        ("avg_pool/same", convjax.avg_pool(3, stride=2, padding="SAME"), IMAGE),
        ("avg_pool/count_padding", convjax.avg_pool(3, padding=1, count_padding=True), IMAGE),
        *_everywhere("adaptive_avg_pool", convjax.adaptive_avg_pool(2)),
        *_everywhere("adaptive_max_pool", convjax.adaptive_max_pool(2)),
        *_everywhere("global_avg_pool", convjax.global_avg_pool),
        *_everywhere("global_max_pool", convjax.global_max_pool),
        *_everywhere("blur_pool", convjax.blur_pool()),
    ]


def _shapes() -> Rows:
    return [
        ("flatten", flatten, IMAGE),
        ("identity", convjax.identity, IMAGE),
        ("concatenate", convjax.concatenate, (IMAGE, (*IMAGE[:-1], 3))),
        *_everywhere("resize", convjax.resize(5)),
        ("resize/nearest", convjax.resize((9, 3), method="nearest"), IMAGE),
        ("resize/cubic", convjax.resize((9, 8), method="cubic"), IMAGE),
        ("pixel_shuffle/1d", convjax.pixel_shuffle(2), LINE),
        ("pixel_shuffle/2d", convjax.pixel_shuffle(2), IMAGE),
        ("pixel_shuffle/3d", convjax.pixel_shuffle(2), (8, 2, 3, 1, 8)),
        ("pixel_unshuffle/1d", convjax.pixel_unshuffle(2), (8, 6, 3)),
        ("pixel_unshuffle/2d", convjax.pixel_unshuffle(2), (8, 6, 4, 3)),
        ("pixel_unshuffle/3d", convjax.pixel_unshuffle(2), (8, 2, 4, 2, 3)),
    ]


def _features(width: int) -> Layer:
    """A part with parameters and state."""
    return serial(conv(width, 3), batch_norm(), relu).named("features")


def _noisy(width: int) -> Layer:
    """One with randomness too, for the combinators that deal with keys."""
    return serial(conv(width, 3), batch_norm(), dropout(0.3)).named("noisy")


def _twice(net: Any, x: Any) -> Any:
    """Calls one part twice, so that its parameters are shared and its state is updated twice."""
    return net.norm(net.shared(net.norm(net.shared(x))))


def _combinators() -> Rows:
    return [
        ("serial", serial(_noisy(3), max_pool(2), flatten, head=dense(2)), IMAGE),
        ("residual", residual(_features(4), drop_path(0.3), then=relu), IMAGE),
        ("residual/projected", residual(_features(3), shortcut=conv(3, 1)), IMAGE),
        ("branch", branch(conv(2, 1), _features(3), max_pool(3, stride=1, padding=1)), IMAGE),
        ("branch/summed", branch(conv(2, 1), conv(2, 3), join=sum), IMAGE),
        ("parallel", convjax.parallel(_features(2), dense(3)), (IMAGE, VECTOR)),
        ("repeat", convjax.repeat(2, _features(3)), IMAGE),
        ("loop", convjax.loop(2, _noisy(4)), IMAGE),
        ("stack", stack(3, _noisy(4)), IMAGE),
        ("stack/nested", stack(2, residual(stack(2, dense(6)), gelu)), VECTOR),
        ("shaped", convjax.shaped(lambda x: _features(x.shape[-1])), IMAGE),
        ("remat", convjax.remat(_noisy(3)), IMAGE),
        ("remat/stacked", stack(2, convjax.remat(_noisy(4))), IMAGE),
        ("compose", compose(_twice, shared=conv(4, 3), norm=batch_norm()), IMAGE),
        ("function", convjax.function(lambda x: x * 2 + 1, "affine"), VECTOR),
        (
            "parametric",
            convjax.parametric(
                "gain",
                lambda params, x: x * params["gain"].astype(x.dtype),
                gain=lambda key, x: jnp.ones((1,) * len(x.shape)),
            ),
            IMAGE,
        ),
    ]


def _surgery() -> Rows:
    net = serial(_features(3), block=residual(conv(3, 3), relu))
    return [
        ("replace", convjax.replace(net, "*/relu*", gelu), IMAGE),
        ("replace_norms", convjax.replace_norms(net, "*", convjax.frozen_norm), IMAGE),
        ("rewrite", convjax.rewrite(net, _layer_norms), IMAGE),
        ("after", convjax.after(net, "features1", jnp.tanh), IMAGE),
        ("capture", convjax.capture(net, ["features1", "block/conv*"]), IMAGE),
    ]


def _layer_norms(path: str, part: Layer) -> Layer:
    return layer_norm() if part.kind == "norm" else part
