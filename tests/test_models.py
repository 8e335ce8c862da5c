"""Models: parameter counts of the papers, paths in golden files, logits of torchvision's networks.

The golden files say how the parameters of each model are called: `python tests/test_models.py`
writes them again, for a change that is meant to rename some.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracle import assert_close, channels_first, conv_weight

from convjax import Context, Layer, batch_norm, capture, conv, models, relu, serial, tree
from convjax.models.resnet import pad_channels

GOLDEN = Path(__file__).parent / "golden"
ZOO = Path(__file__).parents[2] / "shared" / "zoo" / "reference"

# Classes and image of each paper; all others are for ImageNet.
IMAGENET = (1000, (224, 224, 3))
INPUTS = {
    "lenet5": (10, (28, 28, 1)),
    "small": (10, (28, 28, 1)),
    **{f"resnet{depth}": (10, (32, 32, 3)) for depth in (20, 32, 44, 56, 110)},
    "all_cnn_c": (10, (32, 32, 3)),
    **{f"wrn_{size}": (10, (32, 32, 3)) for size in ("16_4", "28_10", "40_4")},
    "airbench94": (10, (32, 32, 3)),
}

# Those of torchvision's table of weights. Of a CIFAR ResNet of 6n + 2 layers, by hand: the stem
# 27 * 16 + 32, the head 64 * 10 + 10, and 97,216 n - 23,008 between them. Of a Wide ResNet of
# 6n + 4 layers, by hand too: the stem 27 * 16, the head 128 k + 640 k + 10, and in a stage from `c`
# to `w` features 2c + 9cw + 2w + 9ww + cw, then n - 1 times 4w + 18ww: 2.7, 36.5 and 8.9 million.
# Of airbench94, by hand: the whitening layer 24 * 12 + 24, the head 10 * 256, and in a block from
# `c` to `w` features 9cw + 9ww + 2w.
PARAMETERS = {
    "lenet5": 61_706,
    "all_cnn_c": 1_369_738,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "wrn_16_4": 2_748_890,
    "wrn_28_10": 36_479_194,
    "wrn_40_4": 8_949_210,
    "mobilenet_v2": 3_504_872,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "airbench94": 1_971_640,
}


# -- Shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name: str):
    assert tree.count(_abstract(name)[0]) == PARAMETERS[name]


@pytest.mark.parametrize("name", models.names())
def test_paths_and_shapes_are_those_of_the_golden_file(name: str):
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    assert _described(name) == expected, "meant? then run: python tests/test_models.py"


def test_every_golden_file_is_of_a_model():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == models.names()


@pytest.mark.parametrize("name", models.names())
def test_logits_are_one_for_each_class(name: str):
    classes, shape = INPUTS.get(name, IMAGENET)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.bfloat16)
    net = models.create(name, classes=classes)
    logits, _ = jax.eval_shape(net.apply, *_abstract(name), x, Context())
    assert (logits.shape, logits.dtype) == ((2, classes), jnp.bfloat16)


def test_stages_of_a_resnet_see_the_sizes_of_the_paper():
    """He et al. 2015, table 1."""
    seen = _stages("resnet50", (224, 224, 3))
    assert seen == [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]


def test_stages_of_a_cifar_resnet_see_the_sizes_of_the_paper():
    """He et al. 2015, section 4.2."""
    assert _stages("resnet20", (32, 32, 3)) == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]


def test_stages_of_a_vgg_halve_the_image():
    expected = [(112, 112, 64), (56, 56, 128), (28, 28, 256), (14, 14, 512), (7, 7, 512)]
    assert _stages("vgg16", (224, 224, 3)) == expected


def test_stages_of_a_wide_resnet_see_the_sizes_of_the_paper():
    """Zagoruyko and Komodakis 2016, table 1."""
    assert _stages("wrn_28_10", (32, 32, 3)) == [(32, 32, 160), (16, 16, 320), (8, 8, 640)]


def test_stages_of_mobilenet_v2_see_the_sizes_of_the_paper():
    """Sandler et al. 2018, table 2."""
    sizes = [(112, 16), (56, 24), (28, 32), (14, 64), (14, 96), (7, 160), (7, 320)]
    expected = [(size, size, width) for size, width in sizes]
    assert _stages("mobilenet_v2", (224, 224, 3)) == expected


def test_strides_and_width_change_every_stage_of_mobilenet_v2():
    """Widths of 0.75 by hand: 18 becomes 24, since 16 would be more than 10 % less."""
    changes = {"strides": (1, 1, 1, 2, 2, 1, 2, 1), "width_multiplier": 0.75}
    sizes = [(32, 16), (32, 24), (16, 24), (8, 48), (8, 72), (4, 120), (4, 240)]
    expected = [(size, size, width) for size, width in sizes]
    assert _stages("mobilenet_v2", (32, 32, 3), **changes) == expected


def test_strides_that_are_too_few_are_refused():
    with pytest.raises(ValueError, match=r"of the stem and of 7 stages, 8 numbers, got \(2, 1\)"):
        models.create("mobilenet_v2", classes=10, strides=(2, 1))


def test_stages_of_a_convnext_see_the_sizes_of_the_paper():
    """Liu et al. 2022, table 9."""
    expected = [(56, 56, 96), (28, 28, 192), (14, 14, 384), (7, 7, 768)]
    assert _stages("convnext_tiny", (224, 224, 3)) == expected


def test_patches_of_a_convnext_may_be_smaller():
    expected = [(16, 16, 96), (8, 8, 192), (4, 4, 384), (2, 2, 768)]
    assert _stages("convnext_tiny", (32, 32, 3), patch=2) == expected


def test_shortcut_without_parameters_takes_every_second_pixel_and_adds_zero_channels():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    shortcut: Any = pad_channels(6, 2, batch_norm)
    y = shortcut(jnp.asarray(x))
    expected = np.zeros((2, 3, 2, 6), np.float32)
    expected[..., 1:4] = x[:, ::2, ::2]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("widening", [1, 2])
def test_wide_resnet_computes_what_pytorch_does(widening: int):
    net = models.create("wrn_16_4", classes=5, widening=widening)
    rng = np.random.default_rng(0)
    params, state = _init_abstractly(net, (8, 8, 3))
    params = jax.tree.map(
        lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), params
    )
    state = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), state)
    x = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    logits, _ = jax.jit(net.apply)(params, state, x, Context())
    expected = _wide_resnet(params, state, channels_first(x))
    assert_close(logits, expected, tolerance=1e-5)


def _wide_resnet(params: Any, state: Any, x: torch.Tensor) -> np.ndarray:
    """Figure 1 (a) and table 1 of Zagoruyko and Komodakis 2016 in PyTorch, for evaluation."""

    def active(params: Any, state: Any, x: torch.Tensor) -> torch.Tensor:
        mean, var = (torch.from_numpy(state[name]) for name in ("mean", "var"))
        scale, bias = (torch.from_numpy(params[name]) for name in ("scale", "bias"))
        return torch.relu(torch.nn.functional.batch_norm(x, mean, var, scale, bias))

    def conv(params: Any, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = conv_weight(params["kernel"])
        return torch.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = conv(params["stem"], x)
    for stage in (1, 2, 3):
        for block in (1, 2):
            own = params[f"stage{stage}"][f"block{block}"]
            moments = state[f"stage{stage}"][f"block{block}"]
            stride = 2 if stage > 1 and block == 1 else 1
            first = active(own["norm1"], moments["norm1"], x)
            y = conv(own["conv1"], first, stride)
            y = conv(own["conv2"], active(own["norm2"], moments["norm2"], y))
            x = y + (conv(own["shortcut"], first, stride) if "shortcut" in own else x)
    x = active(params["norm"], state["norm"], x).mean((2, 3))
    return x.numpy() @ params["head"]["kernel"] + params["head"]["bias"]


# -- Training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "changes"),
    [
        ("lenet5", (28, 28, 1), {}),
        ("small", (16, 16, 3), {}),
        ("resnet20", (8, 8, 3), {}),
        ("wrn_16_4", (8, 8, 3), {"widening": 1}),
        ("mobilenet_v2", (8, 8, 3), {"stages": ((1, 8, 1), (6, 8, 2)), "strides": (1, 1, 2)}),
        ("airbench94", (25, 25, 1), {"widths": (8, 8, 8)}),
        # From 1e-6 on, gradients would be a millionth as large.
        ("convnext_tiny", (32, 32, 3), {"depths": (1, 2), "width": 8, "first_scale": 1.0}),
    ],
)
def test_gradient_reaches_every_parameter_and_training_every_statistic(
    name: str, shape: tuple[int, ...], changes: dict[str, Any]
):
    net = models.create(name, classes=5, **changes)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((8, *shape)), jnp.float32)
    labels = rng.integers(0, 5, 8)
    params, state = net.init(jax.random.key(0), images)

    def step(params: Any) -> Any:
        def loss(params: Any) -> Any:
            ctx = Context(jax.random.key(1), train=True)
            logits, new = net.apply(params, state, images, ctx)
            return -jax.nn.log_softmax(logits)[np.arange(8), labels].mean(), new

        return jax.grad(loss, has_aux=True)(params)

    # It runs once: to optimise it would cost ten times what it saves.
    gradient, new = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})(params)
    largest = {path: float(np.abs(leaf).max()) for path, leaf in tree.leaves(gradient).items()}
    assert largest.keys() == tree.leaves(params).keys()
    # MobileNetV2's linear ends: the norms after the next 1x1 convolutions take any shift away.
    idle = {path for path in largest if path.endswith("project/norm1/bias")}
    for path, value in largest.items():
        assert value < 1e-6 if path in idle else 1e-6 < value < np.inf, (path, value)
    before = tree.leaves(state)
    assert all((np.asarray(leaf) != before[path]).any() for path, leaf in tree.leaves(new).items())


@pytest.mark.parametrize(
    ("name", "before"),
    [("convnext_tiny", "layer_scale"), ("resnet18", "norm2"), ("resnet50", "norm3")],
)
def test_stochastic_depth_grows_from_never_to_the_full_rate(name, before):
    """Three blocks at the full rate 1: examples skip the first never, the third always."""
    net = models.create(name, classes=5, depths=(1, 1, 1), width=4, drop_path_rate=1.0)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((32, 16, 16, 3)), jnp.float32)
    params, state = net.init(jax.random.key(0), images)
    blocks = capture(net, [f"stage?/block1/{before}", "stage?/block1/drop_path"])
    ctx = Context(jax.random.key(1), train=True)
    (_, seen), _ = jax.jit(blocks.apply)(params, state, images, ctx)
    branch, dropped = (
        [np.asarray(seen[f"stage{n}/block1/{part}"]) for n in (1, 2, 3)]
        for part in (before, "drop_path")
    )
    np.testing.assert_array_equal(dropped[0], branch[0])
    kept = np.any(dropped[1], (1, 2, 3))
    assert 8 <= kept.sum() <= 24  # of 32 examples at rate 1/2: three deviations
    np.testing.assert_array_equal(dropped[1], 2 * branch[1] * kept[:, None, None, None])
    assert branch[2].any()
    assert not dropped[2].any()


def test_dropout_of_a_wide_resnet_stands_before_the_last_convolution_of_a_block():
    """At the rate 1 nothing reaches it: the block is its shortcut."""
    changes = {"depths": (2,), "widening": 2, "dropout_rate": 1.0}
    net = models.create("wrn_16_4", classes=5, **changes)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)), jnp.float32)
    params, state = net.init(jax.random.key(0), images)
    blocks = capture(net, ["stage1/block?", "stage1/block?/shortcut"])
    ctx = Context(jax.random.key(1), train=True)
    (_, seen), _ = jax.jit(blocks.apply)(params, state, images, ctx)
    for block in ("stage1/block1", "stage1/block2"):
        assert np.asarray(seen[block]).any()
        np.testing.assert_array_equal(seen[block], seen[f"{block}/shortcut"])


def test_layer_scales_of_a_convnext_begin_with_a_millionth():
    net = models.create("convnext_tiny", classes=5, depths=(1, 1), width=4)
    params, _ = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    scales = [leaf for path, leaf in tree.leaves(params).items() if "layer_scale" in path]
    for scale, width in zip(scales, (4, 8), strict=True):
        np.testing.assert_array_equal(scale, np.full(width, 1e-6, np.float32))


# -- The same numbers as torchvision ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg11_bn", "vgg16", "mobilenet_v2", "convnext_tiny"]
)
def test_logits_equal_those_of_torchvision(name: str):
    path = ZOO / f"{name}.json"
    if not path.exists():
        pytest.skip("the reference networks lie beside the repo, in ../shared/zoo: not here")
    reference = json.loads(path.read_text())
    seed, size = reference["seed"], reference["size"]
    net = models.create(name, classes=1000)
    spec = _init_abstractly(net, (size, size, 3))
    wanted = {"params": tree.leaves(spec[0]), "state": tree.leaves(spec[1])}

    given: dict[str, Any] = {"params": {}, "state": {}}
    for where, ours, key in _torch_keys(name, reference["state_dict"]):
        leaf = _from_torch(_tensor(seed, key, tuple(reference["state_dict"][key])), key)
        assert leaf.shape == wanted[where].pop(ours).shape, ours
        _put(given[where], ours, leaf)
    assert wanted == {"params": {}, "state": {}}  # every leaf was given, and given once

    images = np.random.default_rng(seed).standard_normal((2, 3, size, size)).astype(np.float32)
    logits, _ = jax.jit(net.apply)(**given, x=images.transpose(0, 2, 3, 1), ctx=Context())
    theirs = np.asarray(reference["logits"])
    assert np.abs(logits - theirs).max() <= 1e-4 * np.abs(theirs).max()


def _tensor(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of a reference network, as the README beside it defines them."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode()))
    leaf = key.rsplit(".", 1)[-1]
    is_scale = leaf == "layer_scale" or (leaf == "weight" and len(shape) == 1)
    if leaf == "running_var" or is_scale:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values = rng.standard_normal(shape)
    values *= np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) >= 2 else 0.1
    return values.astype(np.float32)


def _torch_keys(name: str, keys: Any) -> Iterator[tuple[str, str, str]]:
    """(params or state, our path, torch's key) of every tensor of a torchvision network."""
    families = {"resnet": _resnet_part, "mobilenet": _mobilenet_part, "convnext": _convnext_part}
    part_of = families.get(re.split("[0-9_]", name)[0]) or _vgg_parts(name)
    for key in keys:
        part, leaf = key.rsplit(".", 1)
        ours = part_of(part)
        if leaf in ("running_mean", "running_var"):
            yield "state", f"{ours}/{leaf.removeprefix('running_')}", key
        elif leaf == "layer_scale":
            yield "params", f"{ours}/layer_scale/scale", key
        elif leaf != "num_batches_tracked":
            is_norm = "norm" in ours.rsplit("/", 1)[-1]
            weight = "scale" if is_norm else "kernel"
            yield "params", f"{ours}/{weight if leaf == 'weight' else leaf}", key


def _resnet_part(part: str) -> str:
    """`layer2.0.bn1` as `stage2/block1/norm1`."""
    names = part.split(".")
    own = names[-1].replace("bn", "norm")
    if names[0] == "fc":
        return "head"
    if not names[0].startswith("layer"):
        return f"stem/{own}"
    block = f"{names[0].replace('layer', 'stage')}/block{int(names[1]) + 1}"
    if names[2] == "downsample":
        return f"{block}/shortcut/{('conv1', 'norm1')[int(names[3])]}"
    return f"{block}/{own}"


def _mobilenet_part(part: str) -> str:
    """`features.3.conv.0.1` as `stage2/block2/expand/norm1`."""
    names = part.split(".")
    if names[0] == "classifier":
        return "head"
    number, pair = int(names[1]), ("conv1", "norm1")
    if number in (0, 18):
        return f"{'stem' if number == 0 else 'last'}/{pair[int(names[2])]}"
    depths = (1, 2, 3, 4, 3, 3, 1)
    blocks = [f"stage{n}/block{m + 1}" for n, depth in enumerate(depths, 1) for m in range(depth)]
    # torch numbers those with a ReLU in pairs, `conv.1.0`, and the linear end through, `conv.2`.
    active = ["expand", "depthwise"] if number > 1 else ["depthwise"]
    index = int(names[3])
    if index < len(active):
        own = f"{active[index]}/{pair[int(names[4])]}"
    else:
        own = f"project/{pair[index - len(active)]}"
    return f"{blocks[number - 1]}/{own}"


def _convnext_part(part: str) -> str:
    """`features.3.0.block.2` as `stage2/block1/norm1`: stem and downsampling have even numbers."""
    names = part.split(".")
    if names[0] == "classifier":
        return {"0": "norm", "2": "head"}[names[1]]
    if names[1] == "0":
        return f"stem/{('conv1', 'norm1')[int(names[2])]}"
    stage = f"stage{int(names[1]) // 2 + 1}"
    if int(names[1]) % 2 == 0:
        return f"{stage}/downsample/{('norm1', 'conv1')[int(names[2])]}"
    block = f"{stage}/block{int(names[2]) + 1}"
    owns = {"0": "conv1", "2": "norm1", "3": "dense1", "5": "dense2"}
    return f"{block}/{owns[names[4]]}" if len(names) == 5 else block


def _vgg_parts(name: str) -> Any:
    """`features.5` as `stage2/conv1`: torch counts ReLUs and pools too."""
    depths = {"vgg11_bn": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}[name]
    parts = {"classifier.0": "head/dense1", "classifier.3": "head/dense2"}
    parts["classifier.6"] = "head/dense3"
    index = 0
    for stage, depth in enumerate(depths, 1):
        for number in range(1, depth + 1):
            for kind in ("conv", "norm", "relu") if name.endswith("_bn") else ("conv", "relu"):
                parts[f"features.{index}"] = f"stage{stage}/{kind}{number}"
                index += 1
        index += 1  # the pool
    return parts.__getitem__


def _from_torch(tensor: np.ndarray, key: str) -> np.ndarray:
    """OIHW as HWIO, and [out, in] as [in, out]."""
    if key.endswith("layer_scale"):
        return tensor.reshape(-1)
    if key == "classifier.0.weight" and tensor.ndim == 2:
        # VGG's, after flattening: torch has channels first, we channels last.
        tensor = tensor.reshape(-1, 512, 7, 7)
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if tensor.ndim > 1 else tensor


# -- The registry ----------------------------------------------------------------------------------


def test_names_are_sorted_and_hold_the_models_of_the_papers():
    assert models.names() == sorted({*PARAMETERS, "small"})


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="there is no model 'resnet19': did you mean 'resnet1"):
        models.create("resnet19", classes=10)


def test_unknown_keyword_names_the_nearest():
    message = "model 'small' has no keyword 'widht': did you mean 'width'"
    with pytest.raises(ValueError, match=message):
        models.create("small", classes=10, widht=8)


def test_keyword_changes_the_model():
    params, _ = _init_abstractly(models.create("resnet20", classes=3, width=4), (8, 8, 1))
    assert params["stem"]["conv1"]["kernel"].shape == (3, 3, 1, 4)
    assert params["head"]["kernel"].shape == (16, 3)


def own_model(classes: int, *, width: int = 8) -> Layer:
    return serial(conv(width, 3), relu, head=conv(classes, 1))


def not_a_model(classes: int) -> int:
    return classes


def test_model_of_ones_own_is_named_by_module_and_function():
    net = models.create(f"{__name__}:own_model", classes=3, width=5)
    params, _ = _init_abstractly(net, (8, 8, 1))
    assert tree.leaves(params)["head/kernel"].shape == (1, 1, 5, 3)


def test_keyword_that_takes_a_function_takes_its_name():
    net = models.create("small", classes=3, norm="convjax.layers:layer_norm")
    params, state = _init_abstractly(net, (8, 8, 1))
    usual, _ = _init_abstractly(models.create("small", classes=3), (8, 8, 1))
    assert tree.leaves(params).keys() == tree.leaves(usual).keys()
    assert state == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.nets:net", "there is no module 'no_such_package'"),
        ("convjax.models.nets:net", "there is no module 'convjax.models.nets'"),
        ("convjax.models.resnet:resnet81", "has no function 'resnet81'. did you mean 'resnet18'"),
        (f"{__name__}:not_a_model", "returned int, not a convjax Layer"),
    ],
)
def test_model_that_cannot_be_had_says_why(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        models.create(name, classes=3)


def wants_text(classes: int, *, greeting: str) -> Layer:
    """A model with a keyword that has no default."""
    return serial(conv(classes, 1)).named(greeting)


def test_text_for_a_keyword_without_a_default_stays_text():
    assert models.create(f"{__name__}:wants_text", classes=2, greeting="hello").kind == "hello"


@pytest.mark.parametrize("rank", [1, 3])
def test_option_a_shortcut_works_in_any_number_of_dimensions(rank: int):
    x = np.arange(4.0**rank * 2, dtype=np.float32).reshape(1, *(4,) * rank, 2)
    y = np.asarray(pad_channels(4, 2, batch_norm)(jnp.asarray(x)))
    assert y.shape == (1, *(2,) * rank, 4)
    np.testing.assert_array_equal(y[..., 1:3], x[(slice(None), *[slice(None, None, 2)] * rank)])
    assert not y[..., [0, 3]].any()


def test_function_valued_keyword_without_a_module_says_how_to_name_it():
    with pytest.raises(ValueError, match="norm of model 'small' is a function, named as package"):
        models.create("small", classes=3, norm="layer_norm")


# -- What they share -------------------------------------------------------------------------------


@functools.cache
def _abstract(name: str) -> Any:
    """Parameters and state of a model as shapes: nothing is drawn."""
    classes, shape = INPUTS.get(name, IMAGENET)
    return _init_abstractly(models.create(name, classes=classes), shape)


def _init_abstractly(net: Layer, shape: tuple[int, ...]) -> Any:
    spec = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(lambda key: net.init(key, spec), jax.random.key(0))


def _stages(name: str, shape: tuple[int, ...], **changes: Any) -> list[tuple[int, ...]]:
    """The shapes of what the stages of a model put out."""
    net = capture(models.create(name, classes=10, **changes), "stage?")
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params, state = _init_abstractly(net, shape)
    (_, seen), _ = jax.eval_shape(net.apply, params, state, x, Context())
    return [seen[stage].shape[1:] for stage in sorted(seen)]


def _described(name: str) -> dict[str, Any]:
    """What the golden file of a model holds."""
    classes, shape = INPUTS.get(name, IMAGENET)
    params, state = (
        {path: list(leaf.shape) for path, leaf in tree.leaves(each).items()}
        for each in _abstract(name)
    )
    return {"classes": classes, "image": list(shape), "params": params, "state": state}


def _put(nested: dict[str, Any], path: str, leaf: Any) -> None:
    *outer, last = path.split("/")
    for name in outer:
        nested = nested.setdefault(name, {})
    nested[last] = leaf


def write_golden_files() -> None:
    """Writes the paths and shapes of every model, a line each."""
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name in models.names():
        text = json.dumps(_described(name), indent=1)
        text = re.sub(r"\[[^]]*\]", lambda shape: "".join(shape[0].split()), text)
        (GOLDEN / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    write_golden_files()
