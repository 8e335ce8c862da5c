"""airbench94: the same numbers as its network in PyTorch, its first values, its optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from oracle import assert_close, channels_first, conv_weight, x64  # noqa: F401
from torch.nn import functional as F

from convjax import Context, models, tree
from convjax.config import Optimizer
from convjax.initializers import constant
from convjax.models.airbench import identity_first, torch_uniform, whitened, whitening
from convjax.training import optimizer, schedule
from convjax.training.loss import cross_entropy
from convjax.training.rules import parse

NET = models.create("airbench94", classes=10)
SPEC = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)


@pytest.fixture(scope="module")
def trained() -> Any:
    """Parameters and state as after some training: all of them drawn."""
    draw = np.random.default_rng(0)
    params, state = jax.eval_shape(NET.init, jax.random.key(0), SPEC)

    def kernel_or_bias(leaf: Any) -> np.ndarray:
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.3
        return (spread * draw.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree.map(kernel_or_bias, params)
    state = jax.tree.map(lambda leaf: draw.uniform(0.5, 1.5, leaf.shape).astype(np.float32), state)
    return params, state


def pictures(count: int, size: int = 32, channels: int = 3) -> np.ndarray:
    """Images whose neighbouring pixels and channels are alike, of mean 0: `[N, H, W, C]`."""
    draw = np.random.default_rng(1)
    x = draw.standard_normal((count, size + 2, size + 2, channels))
    x = x[:, 2:, 2:] + 0.7 * x[:, 1:-1, 2:] + 0.4 * x[:, 2:, 1:-1]
    x = x @ np.array([[1.0, 0.8, 0.5], [0.0, 0.7, 0.6], [0.0, 0.0, 0.3]])[:channels, :channels]
    return x - x.mean((0, 1, 2))


# -- The network -----------------------------------------------------------------------------------


Tensors = dict[str, torch.Tensor]


def in_pytorch(weights: Tensors, moments: Tensors, x: torch.Tensor, train: bool) -> torch.Tensor:
    """Logits of the network of the paper's code; when it trains, `moments` are updated in place."""

    def norm(path: str, x: torch.Tensor) -> torch.Tensor:
        mean, var = moments[f"{path}/mean"], moments[f"{path}/var"]
        # PyTorch's momentum is the share of the new; 0.6 there is that of the old.
        return F.batch_norm(x, mean, var, None, weights[f"{path}/bias"], train, 1 - 0.6, 1e-12)

    x = F.gelu(F.conv2d(x, weights["whitening/kernel"], weights["whitening/bias"]))
    for block in ("block1", "block2", "block3"):
        x = F.conv2d(x, weights[f"{block}/conv1/kernel"], padding="same")
        x = F.gelu(norm(f"{block}/norm1", F.max_pool2d(x, 2)))
        x = F.conv2d(x, weights[f"{block}/conv2/kernel"], padding="same")
        x = F.gelu(norm(f"{block}/norm2", x))
    return F.max_pool2d(x, 3).flatten(1) @ weights["head/kernel"].T / 9


def tensors(leaves: Any) -> Tensors:
    """Leaves by path as PyTorch has them: kernels `[out, in, *window]`."""
    arrays = {path: np.asarray(leaf) for path, leaf in tree.leaves(leaves).items()}
    return {
        path: conv_weight(leaf) if leaf.ndim > 1 else torch.tensor(leaf)
        for path, leaf in arrays.items()
    }


def assert_equal_to(theirs: Tensors, ours: Any, tolerance: float) -> None:
    found = tensors(ours)
    assert found.keys() == theirs.keys()
    for path, leaf in found.items():
        assert_close(leaf, theirs[path].detach(), tolerance)


@pytest.mark.parametrize("train", [False, True])
def test_logits_and_statistics_equal_those_of_the_network_in_pytorch(trained: Any, train: bool):
    params, state = trained
    images = pictures(4).astype(np.float32)
    logits, after = jax.jit(NET.apply)(params, state, images, Context(train=train))
    moments = tensors(state)
    expected = in_pytorch(tensors(params), moments, channels_first(images), train)
    largest = np.abs(expected.numpy()).max()
    assert largest > 0.05
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * largest)
    assert_equal_to(moments, after, 1e-4)


def test_images_of_28_pixels_and_one_channel_are_taken_too():
    net = models.create("airbench94", classes=7, widths=(4, 6, 5))
    spec = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec)
    assert params["whitening"]["kernel"].shape == (2, 2, 1, 8)
    logits, _ = jax.eval_shape(net.apply, params, state, spec, Context())
    assert logits.shape == (2, 7)


# -- First values ----------------------------------------------------------------------------------


def test_fresh_blocks_hand_their_inputs_on():
    """As `torch.nn.init.dirac_` of as many features as there are inputs; no feature is another's.

    Whatever PyTorch draws lies within 1 / sqrt(fan_in).
    """
    params, _ = NET.init(jax.random.key(0), SPEC)
    for path, inputs in (("conv1", 24), ("conv2", 64)):
        kernel = np.asarray(params["block1"][path]["kernel"])
        handed_on = torch.nn.init.dirac_(torch.empty(inputs, inputs, 3, 3))
        assert_close(conv_weight(kernel)[:inputs], handed_on, tolerance=0)
    drawn = np.asarray(params["block1"]["conv1"]["kernel"])[..., 24:]
    limit = 1 / np.sqrt(9 * 24)
    assert 0.99 * limit < np.abs(drawn).max() <= limit
    np.testing.assert_allclose(drawn.std(), limit / np.sqrt(3), rtol=0.02)
    assert not np.asarray(params["whitening"]["bias"]).any()


@pytest.mark.parametrize("shape", [(3, 3, 5, 3), (2, 5, 4), (4, 4)])
def test_identity_is_that_of_pytorch_for_any_window_and_more_inputs_than_outputs(
    shape: tuple[int, ...],
):
    init = identity_first(constant(7.0))
    kernel = init(jax.random.key(0), shape)
    if len(shape) == 2:
        expected = np.eye(4)
    else:
        weight = torch.full((shape[-1], shape[-2], *shape[:-2]), 7.0)
        torch.nn.init.dirac_(weight[: shape[-2]])
        expected = np.moveaxis(weight.numpy(), (0, 1), (-1, -2))
    np.testing.assert_array_equal(kernel, expected)


def test_first_values_under_jit_are_the_same():
    init = identity_first(torch_uniform)
    shape = (3, 3, 2, 6)
    compiled = jax.jit(lambda key: init(key, shape))(jax.random.key(3))
    assert_close(compiled, init(jax.random.key(3), shape), tolerance=1e-6)


@pytest.mark.parametrize("window", [2, 3])
def test_whitening_kernel_is_that_of_an_eigendecomposition_in_pytorch(x64: None, window: int):  # noqa: F811
    """But for the sign of each eigenvector, which nobody fixes; float64."""
    images = pictures(20, size=9)
    x = channels_first(images)
    patches = x.unfold(2, window, 1).unfold(3, window, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    patches = patches.flatten(0, 2)
    variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    expected = (vectors / torch.sqrt(variances + 5e-4)).flip(1).T.numpy()
    count = 3 * window**2
    kernel = whitening(images, window)
    assert kernel.shape == (window, window, 3, 2 * count)
    ours = conv_weight(np.asarray(kernel)).flatten(1).numpy()
    signs = np.sign((ours[:count] * expected).sum(1))[:, None]
    assert_close(signs * ours[:count], expected, tolerance=1e-8)
    np.testing.assert_array_equal(ours[count:], -ours[:count])


def test_what_the_whitening_layer_sees_is_uncorrelated_and_of_variance_1():
    images = pictures(64)
    params = whitened(NET.init(jax.random.key(0), SPEC)[0], images.astype(np.float32))
    weight = conv_weight(np.asarray(params["whitening"]["kernel"])).double()
    seen = torch.conv2d(channels_first(images), weight).permute(0, 2, 3, 1).reshape(-1, 24).numpy()
    moments = seen.T @ seen / len(seen)
    # 5e-4 is added to each variance, of which the least is 0.02 here.
    np.testing.assert_allclose(moments[:12, :12], np.eye(12), atol=0.03)
    np.testing.assert_allclose(seen[:, 12:], -seen[:, :12], atol=1e-5)


def test_only_the_whitening_kernel_is_set():
    params, _ = NET.init(jax.random.key(0), SPEC)
    after = tree.leaves(whitened(params, pictures(4).astype(np.float32)))
    before = tree.leaves(params)
    assert [*after] == [*before]
    assert [path for path in before if (after[path] != before[path]).any()] == ["whitening/kernel"]
    assert after["whitening/kernel"].dtype == np.float32


def test_shapes_are_checked_without_computing():
    """As a launcher does before anything is computed."""
    params, _ = jax.eval_shape(NET.init, jax.random.key(0), SPEC)
    after = jax.eval_shape(whitened, params, SPEC)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda x: x.shape, params)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 32, 32, 1), np.float32, r"a kernel float32\[2,2,1,8\] .* give images of as many chan"),
        ((4, 32, 32, 3), np.uint8, r"got uint8\[4,32,32,3\]: normalise them first"),
        ((4, 1, 32, 3), np.float32, r"at least 2x2 pixels, got float32\[4,1,32,3\]"),
        ((0, 32, 32, 3), np.float32, r"got float32\[0,32,32,3\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], dtype: Any, message: str):
    params, _ = jax.eval_shape(NET.init, jax.random.key(0), SPEC)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(whitened, params, jax.ShapeDtypeStruct(shape, dtype))


def test_parameters_of_another_network_are_refused():
    with pytest.raises(ValueError, match="the parameters are head, stem: give those of airbench94"):
        whitened({"head": {}, "stem": {}}, pictures(1))


# -- Training --------------------------------------------------------------------------------------

# For batches of 1024; for others the learning rate is as many times larger or smaller.
OURS = Optimizer(
    "sgd",
    learning_rate=1.5,
    weight_decay=0.0153 / 11.5,
    decay=("*",),
    rules=(
        "whitening/kernel: freeze",
        "*/norm*/bias: learning_rate=64, weight_decay=0.015625",
    ),
    args={"momentum": 0.85, "nesterov": True},
    schedule="linear",
    warmup_steps=110,
    warmup_start=0.2,
    final_factor=0.07,
)


def of_the_paper(weights: Tensors, batch: int) -> torch.optim.SGD:
    """The optimizer of the paper's code, for the sum of the losses of a batch."""
    kilostep = 1024 * (1 + 1 / (1 - 0.85))
    rate, decay = 11.5 / kilostep, 0.0153 * batch / kilostep
    biases = [leaf for path, leaf in weights.items() if "norm" in path]
    others = [leaf for path, leaf in weights.items() if "norm" not in path and leaf.requires_grad]
    return torch.optim.SGD(
        [
            {"params": biases, "lr": 64 * rate, "weight_decay": decay / (64 * rate)},
            {"params": others, "lr": rate, "weight_decay": decay / rate},
        ],
        momentum=0.85,
        nesterov=True,
    )


def test_steps_of_training_are_those_of_the_code_of_the_paper():
    batch, steps = 16, 3
    net = models.create("airbench94", classes=5, widths=(8, 12, 8))
    images = pictures(batch * steps, size=25).astype(np.float32).reshape(steps, batch, 25, 25, 3)
    labels = np.random.default_rng(0).integers(0, 5, (steps, batch))
    params, state = net.init(jax.random.key(0), images[0])
    params = whitened(params, images[0])
    weights, moments = tensors(params), tensors(state)
    for path, leaf in weights.items():
        leaf.requires_grad = path != "whitening/kernel"
    sgd = of_the_paper(weights, batch)

    rules = [parse(text) for text in OURS.rules]
    numbers = (OURS.learning_rate * batch / 1024, OURS.weight_decay, 0.2, OURS.args)
    hyper = optimizer.hyper_of(*numbers, rules=rules)
    flat = schedule.make("constant", steps=steps)
    made = optimizer.make("sgd", flat, decay=OURS.decay, rules=rules, args=OURS.args)
    transform = made(hyper, jnp.int32(0))

    @jax.jit
    def step(params: Any, state: Any, opt: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, after = net.apply(params, state, images, Context(train=True))
            total, _ = cross_entropy(logits, labels, smoothing=hyper.label_smoothing)
            return total / batch, after

        grads, state = jax.grad(loss, has_aux=True)(params)
        updates, opt = transform.update(grads, opt, params)
        return optax.apply_updates(params, updates), state, opt

    opt = jax.jit(transform.init)(params)
    for number in range(steps):
        params, state, opt = step(params, state, opt, images[number], labels[number])
        logits = in_pytorch(weights, moments, channels_first(images[number]), train=True)
        target = torch.tensor(labels[number])
        sgd.zero_grad()
        F.cross_entropy(logits, target, label_smoothing=0.2, reduction="sum").backward()
        sgd.step()
    assert_equal_to(weights, params, 1e-6)
    assert_equal_to(moments, state, 1e-5)


def test_learning_rate_is_the_triangle_of_the_paper_within_a_third_of_a_percent():
    """From 0.2 to the peak at 23 % of 476 steps, rounded down, and down to 0.07."""
    share = jax.vmap(schedule.from_config(OURS, 476, 48))(jnp.arange(476))
    triangle = np.interp(np.arange(476), [0, 109, 476], [0.2, 1, 0.07])
    np.testing.assert_allclose(share, triangle, atol=0.0033)
