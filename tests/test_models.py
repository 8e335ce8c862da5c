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
}

# Those of torchvision's table of weights. Of a CIFAR ResNet of 6n + 2 layers, by hand: the stem
# 27 * 16 + 32, the head 64 * 10 + 10, and 97,216 n - 23,008 between them.
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


def test_shortcut_without_parameters_takes_every_second_pixel_and_adds_zero_channels():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    shortcut: Any = pad_channels(6, 2, batch_norm)
    y = shortcut(jnp.asarray(x))
    expected = np.zeros((2, 3, 2, 6), np.float32)
    expected[..., 1:4] = x[:, ::2, ::2]
    np.testing.assert_array_equal(y, expected)


# -- Training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lenet5", (28, 28, 1)), ("small", (16, 16, 3)), ("resnet20", (8, 8, 3))],
)
def test_gradient_reaches_every_parameter_and_training_every_statistic(
    name: str, shape: tuple[int, ...]
):
    net = models.create(name, classes=5)
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
    assert all(1e-6 < value < np.inf for value in largest.values()), largest
    before = tree.leaves(state)
    assert all((np.asarray(leaf) != before[path]).any() for path, leaf in tree.leaves(new).items())


# -- The same numbers as torchvision ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn", "vgg16"])
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
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values = rng.standard_normal(shape)
    values *= np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) >= 2 else 0.1
    return values.astype(np.float32)


def _torch_keys(name: str, keys: Any) -> Iterator[tuple[str, str, str]]:
    """(params or state, our path, torch's key) of every tensor of a torchvision network."""
    part_of = _resnet_part if name.startswith("resnet") else _vgg_parts(name)
    for key in keys:
        part, leaf = key.rsplit(".", 1)
        ours = part_of(part)
        if leaf in ("running_mean", "running_var"):
            yield "state", f"{ours}/{leaf.removeprefix('running_')}", key
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
    if key == "classifier.0.weight":  # torch flattens channels first, we channels last
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


def _stages(name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of what the stages of a model put out."""
    net = capture(models.create(name, classes=10), "stage?")
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
