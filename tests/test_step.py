"""The one step: the same under every mapper, for many members at once, and for any number."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convjax import ops, tree
from convjax.combine import serial
from convjax.config import ConfigError
from convjax.layers import batch_norm, conv, dense, dropout
from convjax.ranges import PARALLEL
from convjax.training import optimizer as optimizers
from convjax.training import parallel, schedule
from convjax.training.loss import cross_entropy
from convjax.training.optimizer import hyper_of
from convjax.training.state import TrainState, init_state
from convjax.training.step import Batch, make_eval_step, make_step, normalise

SPEC = jax.ShapeDtypeStruct((16, 6, 6, 2), jnp.float32)
PREPARE = normalise(np.array([0.4, 0.5]), np.array([0.2, 0.3]))
ARGS = {"momentum": 0.9}
NET = serial(
    conv(4, 3, bias=False), batch_norm(), ops.relu, dropout(0.5), ops.global_avg_pool, dense(5)
)
PLAIN = serial(conv(4, 3), ops.relu, ops.flatten, dense(5))
SGD = optimizers.make("sgd", schedule.make("cosine", steps=10, warmup=2), args=ARGS)
HYPER = hyper_of(0.1, 0.01, 0.1, ARGS)


def batch(number, size=16, masked=None):
    draw = np.random.default_rng(number)
    images = draw.integers(0, 256, (size, 6, 6, 2), np.uint8)
    return Batch(images, draw.integers(0, 5, size).astype(np.int32), masked)


def train(mapper, net=NET, steps=4, masked=None, hyper=HYPER):
    step = make_step(net, SGD, cross_entropy, prepare=PREPARE, axis=mapper.axis)
    step = mapper.compile(step, donate=True)
    state = mapper.replicate(init_state(net, SGD, jax.random.key(3), SPEC, hyper))
    losses = []
    for number in range(steps):
        state, metrics = step(state, mapper.shard(batch(number, masked=masked)), hyper)
        losses.append([float(each) for each in metrics])
    return state, losses


def assert_close(state, other, **tolerance):
    for (path, a), b in zip(tree.leaves(state[1:4]).items(), jax.tree.leaves(other[1:4])):
        np.testing.assert_allclose(a, b, err_msg=path, **tolerance)


@pytest.fixture(scope="module")
def alone():
    return train(parallel.make("jit"))


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("name", ["sharded", "pmap", "shard_map"])
def test_every_mapper_takes_the_step_of_jit(alone, name, devices):
    state, losses = train(parallel.make(name, jax.devices()[:devices]))
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    assert_close(state, alone[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PARALLEL)
def test_a_mask_that_is_uneven_over_devices_gives_the_gradient_of_what_it_shows(name):
    masked = np.arange(16) < 5  # Two devices of eight see two images, one sees one, five none.
    state, losses = train(parallel.make(name), PLAIN, 2, masked)
    step = make_step(PLAIN, SGD, cross_entropy, prepare=PREPARE)
    expected = init_state(PLAIN, SGD, jax.random.key(3), SPEC, HYPER)
    for number in range(2):
        images, labels, *_ = batch(number)
        expected, metrics = step(expected, Batch(images[:5], labels[:5]), HYPER)
        np.testing.assert_allclose(losses[number], metrics, rtol=1e-5)
        assert losses[number][2] == 5
    assert_close(state, expected, rtol=1e-4, atol=1e-6)


def test_a_step_is_that_of_torch():
    """Normalisation, smoothed loss, gradient, decay of kernels, momentum and Nesterov together."""
    args = {"momentum": 0.9, "nesterov": True}
    optimizer = optimizers.make("sgd", schedule.make("constant", steps=3), args=args)
    hyper = hyper_of(0.1, 0.01, 0.1, args)
    state = init_state(PLAIN, optimizer, jax.random.key(3), SPEC, hyper)
    theirs = {
        name: torch.tensor(np.asarray(leaf), dtype=torch.float64, requires_grad=True)
        for name, leaf in tree.leaves(state.params).items()
    }
    kernels = [leaf for name, leaf in theirs.items() if "kernel" in name]
    biases = [leaf for name, leaf in theirs.items() if "bias" in name]
    groups = [{"params": kernels, "weight_decay": 0.01}, {"params": biases}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    step = jax.jit(make_step(PLAIN, optimizer, cross_entropy, prepare=PREPARE))
    for number in range(3):
        images, labels, *_ = batch(number)
        pixels = (images / 255 - np.array([0.4, 0.5])) / np.array([0.2, 0.3])
        x = torch.tensor(pixels).permute(0, 3, 1, 2)
        kernel = theirs["conv1/kernel"].permute(3, 2, 0, 1)
        y = torch.nn.functional.conv2d(x, kernel, theirs["conv1/bias"], padding="same").relu()
        y = y.permute(0, 2, 3, 1).flatten(1) @ theirs["dense1/kernel"] + theirs["dense1/bias"]
        labels = torch.tensor(labels).long()
        loss = torch.nn.functional.cross_entropy(y, labels, label_smoothing=0.1)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        state, metrics = step(state, batch(number), hyper)
        np.testing.assert_allclose(metrics.loss / 16, loss.item(), rtol=1e-5)
        assert int(metrics.correct) == int((y.argmax(1) == labels).sum())
    for name, leaf in tree.leaves(state.params).items():
        np.testing.assert_allclose(leaf, theirs[name].detach(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_members_under_one_vmapped_step_train_as_they_would_alone():
    rates, seeds = (0.01, 0.1, 0.5), (0, 1, 2)
    step = make_step(NET, SGD, cross_entropy, prepare=PREPARE)

    def begin(seed, hyper):
        return init_state(NET, SGD, jax.random.key(seed), SPEC, hyper)

    hypers = [hyper_of(rate, 0.01, 0.1, ARGS) for rate in rates]
    lone = [begin(seed, hyper) for seed, hyper in zip(seeds, hypers)]
    hyper = jax.tree.map(lambda *each: jnp.stack(each), *hypers)
    state: TrainState = jax.tree.map(lambda *each: jnp.stack(each), *lone)
    together = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
    one = jax.jit(step)
    for number in range(3):
        state, metrics = together(state, batch(number), hyper)
        for member in range(3):
            lone[member], expected = one(lone[member], batch(number), hypers[member])
            np.testing.assert_allclose(metrics.loss[member], expected.loss, rtol=1e-5)
    for member in range(3):
        found = jax.tree.map(operator.itemgetter(member), state)
        assert_close(found, lone[member], rtol=1e-4, atol=1e-5)


def test_other_numbers_compile_nothing():
    traces = []

    def counted(logits, labels, mask, smoothing):
        traces.append(1)
        return cross_entropy(logits, labels, mask, smoothing)

    step = jax.jit(make_step(NET, SGD, counted, prepare=PREPARE))
    results = []
    for rate, decay, smoothing, momentum in ((0.1, 0, 0, 0.9), (0.2, 0.1, 0.1, 0.5)):
        hyper = hyper_of(rate, decay, smoothing, {"momentum": momentum})
        state = init_state(NET, SGD, jax.random.key(0), SPEC, hyper)
        results.append(step(step(state, batch(0), hyper)[0], batch(1), hyper)[0].params)
    assert len(traces) == 1
    assert not np.array_equal(results[0]["conv1"]["kernel"], results[1]["conv1"]["kernel"])


def test_the_randomness_of_a_step_is_a_function_of_key_and_number():
    step = jax.jit(make_step(NET, SGD, cross_entropy, prepare=PREPARE))
    state = init_state(NET, SGD, jax.random.key(0), SPEC, HYPER)
    again = state._replace(step=jnp.int32(7))
    once, twice = step(again, batch(0), HYPER)[1], step(again, batch(0), HYPER)[1]
    assert once.loss == twice.loss
    assert once.loss != step(state, batch(0), HYPER)[1].loss
    other = again._replace(key=jax.random.key(1))
    assert once.loss != step(other, batch(0), HYPER)[1].loss


def test_evaluation_has_no_noise_and_uses_the_running_statistics():
    state = init_state(NET, SGD, jax.random.key(0), SPEC, HYPER)
    model = (state.params, state.state)
    step = jax.jit(make_eval_step(NET, cross_entropy, prepare=PREPARE))
    whole = step(model, batch(0))
    images, labels, *_ = batch(0)
    halves = [step(model, Batch(images[part], labels[part])) for part in (slice(8), slice(8, 16))]
    np.testing.assert_allclose(whole.loss, halves[0].loss + halves[1].loss, rtol=1e-6)
    assert whole.correct == halves[0].correct + halves[1].correct


def test_normalised_images_have_the_values_of_numpy():
    images = batch(0).images
    expected = (images / 255.0 - [0.4, 0.5]) / [0.2, 0.3]
    np.testing.assert_allclose(PREPARE(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-6)
    floats = jnp.asarray(images, jnp.float32) / 255
    np.testing.assert_allclose(PREPARE(floats), expected, rtol=1e-5, atol=1e-6)
    still = normalise(np.array([0.5]), np.array([0.0]))(jnp.full((1, 2, 2, 1), 0.5))
    assert not still.any()


def test_a_state_placed_for_training_leaves_the_callers_arrays_alone():
    mapper = parallel.make("jit")
    state = init_state(NET, SGD, jax.random.key(0), SPEC, HYPER)
    kept = jax.tree.map(np.array, (state.params, state.state, state.opt))
    step = make_step(NET, SGD, cross_entropy, prepare=PREPARE)
    mapper.compile(step, donate=True)(mapper.replicate(state), batch(0), HYPER)
    found = (state.params, state.state, state.opt)
    assert tree.digest(found) == tree.digest(kept)


def test_a_misspelt_mapper_is_told_the_nearest_name():
    with pytest.raises(ConfigError, match="'pmapp': did you mean 'pmap'"):
        parallel.make("pmapp")
