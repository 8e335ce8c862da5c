"""What a recipe adds to the step: augmentation, mixing, parts, averages, sharpness; everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convjax import config, ops, tree
from convjax.augment import augment, crop, flip, mixup
from convjax.combine import serial
from convjax.layer import Context
from convjax.layers import batch_norm, conv, dense
from convjax.training import optimizer as optimizers
from convjax.training import parallel, recipe, schedule
from convjax.training.average import moving_average, reestimated
from convjax.training.loss import cross_entropy
from convjax.training.optimizer import hyper_of
from convjax.training.state import init_state
from convjax.training.step import Batch, make_eval_step, make_step, normalise
from convjax.training.views import views_of

SPEC = jax.ShapeDtypeStruct((16, 6, 6, 2), jnp.float32)
PREPARE = normalise(np.array([0.4, 0.5]), np.array([0.2, 0.3]))
PLAIN = serial(conv(4, 3), ops.relu, ops.flatten, dense(5))
NORMED = serial(conv(4, 3, bias=False), batch_norm(momentum=0.8), ops.relu, ops.flatten, dense(5))
ARGS = {"momentum": 0.9}
SGD = optimizers.make("sgd", schedule.make("constant", steps=10), args=ARGS)
HYPER = hyper_of(0.1, 0.01, 0.1, ARGS)


def batch(number, size=16):
    draw = np.random.default_rng(number)
    images = draw.integers(0, 256, (size, 6, 6, 2), np.uint8)
    return Batch(images, draw.integers(0, 5, size).astype(np.int32))


def steps(net, number=3, mapper=None, averaged=False, size=16, **recipe):
    mapper = mapper or parallel.make("jit")
    step = make_step(net, SGD, cross_entropy, prepare=PREPARE, axis=mapper.axis, **recipe)
    step = mapper.compile(step)
    state = mapper.replicate(
        init_state(net, SGD, jax.random.key(3), SPEC, HYPER, averaged=averaged)
    )
    seen = [state]
    for each in range(number):
        state, metrics = step(state, mapper.shard(batch(each, size)), HYPER)
        seen.append(state)
    return seen, metrics


def assert_same(params, expected, **tolerance):
    for (path, a), b in zip(tree.leaves(params).items(), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, err_msg=path, **tolerance)


@pytest.mark.parametrize(("size", "parts"), [(16, 2), (128, 4)])
def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(size, parts):
    seen, metrics = steps(PLAIN, size=size, parts=parts)
    whole, expected = steps(PLAIN, size=size)
    assert_same(seen[-1].params, whole[-1].params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics, expected, rtol=1e-5)
    assert int(metrics.count) == size


def test_batch_statistics_go_from_part_to_part():
    seen, _ = steps(NORMED, 1, parts=4)
    # running = 0.8 running + 0.2 batch, four times, of what the first convolution makes.
    kernel = seen[0].params["conv1"]["kernel"]
    mean = np.zeros(4)
    for part in (batch(0).images[n::4] for n in range(4)):
        y = ops.conv(PREPARE(jnp.asarray(part)), kernel)
        mean = 0.8 * mean + 0.2 * np.asarray(y).mean((0, 1, 2))
    np.testing.assert_allclose(seen[1].state["norm1"]["mean"], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sharded", "pmap", "shard_map"])
def test_every_mapper_takes_the_same_parts(name):
    mapper = parallel.make(name, jax.devices()[:4])
    seen, metrics = steps(NORMED, mapper=mapper, parts=4)
    alone, expected = steps(NORMED, parts=4)
    assert_same(seen[-1].params, alone[-1].params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics, expected, rtol=1e-5)


def test_a_gradient_that_is_held_is_zero_and_not_computed():
    hold = recipe.held(config.Optimizer(rules=("conv1/*: freeze",)))
    step = make_step(PLAIN, SGD, cross_entropy, prepare=PREPARE, hold=hold)
    state = init_state(PLAIN, SGD, jax.random.key(3), SPEC, hyper_of(0.1, args=ARGS))
    new, _ = jax.jit(step)(state, batch(0), hyper_of(0.1, args=ARGS))
    assert_same(new.params["conv1"], state.params["conv1"], rtol=0)
    assert (new.params["dense1"]["kernel"] != state.params["dense1"]["kernel"]).any()
    text = str(jax.make_jaxpr(step)(state, batch(0), HYPER))
    assert "convjax_conv_weight" not in text


def test_a_batch_that_does_not_divide_into_the_parts_is_refused():
    with pytest.raises(ValueError, match="a batch of 16 on a device does not divide into 3 parts"):
        steps(PLAIN, 1, parts=3)


@pytest.mark.parametrize("name", ["sharded", "pmap", "shard_map"])
def test_every_mapper_changes_the_same_images_alike(name):
    change = augment(crop(2), flip())
    seen, metrics = steps(PLAIN, mapper=parallel.make(name), change=change)
    alone, expected = steps(PLAIN, change=change)
    assert_same(seen[-1].params, alone[-1].params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics, expected, rtol=1e-5)
    unchanged, _ = steps(PLAIN)
    changed, same = (np.asarray(each[-1].params["conv1"]["kernel"]) for each in (seen, unchanged))
    assert np.abs(changed - same).max() > 1e-3


def test_another_step_changes_the_same_images_otherwise():
    shown = []

    def change(keys, images):
        changed = augment(crop(2))(keys, images)
        jax.debug.callback(lambda x: shown.append(np.asarray(x)), changed)
        return changed

    step = jax.jit(make_step(PLAIN, SGD, cross_entropy, prepare=PREPARE, change=change))
    state = init_state(PLAIN, SGD, jax.random.key(3), SPEC, HYPER)
    for _ in range(2):
        state, _ = step(state, batch(0), HYPER)
    jax.effects_barrier()
    assert (shown[0] != shown[1]).any()


def test_mixed_labels_are_trained_on():
    def mix(key, images, labels):
        return mixup(1.0)(key, images, jax.nn.one_hot(labels, 5))

    _, metrics = steps(PLAIN, 1, mix=mix)
    assert np.isfinite(metrics.loss)
    assert int(metrics.count) == 16
    same = lambda key, images, labels: (images, jax.nn.one_hot(labels, 5))  # noqa: E731
    hard, soft = steps(PLAIN)[0][-1], steps(PLAIN, mix=same)[0][-1]
    assert_same(soft.params, hard.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_the_average_follows_parameters_and_statistics_as_the_formula_has_it(every):
    seen, _ = steps(NORMED, 5, averaged=True, average=moving_average(0.5, every))
    leaves = [jax.tree.leaves((state.params, state.state)) for state in seen]
    expected = [np.asarray(leaf, np.float64) for leaf in leaves[0]]
    for number in range(1, 6):
        if number % every == 0:
            done = number / every
            kept = min(0.5, (1 + done) / (10 + done))
            expected = [kept * a + (1 - kept) * b for a, b in zip(expected, leaves[number])]
    for found, each in zip(jax.tree.leaves(seen[-1].average), expected, strict=True):
        np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-7)


def test_statistics_that_are_estimated_anew_are_those_of_torch():
    net = serial(conv(4, 3, bias=False), batch_norm(), ops.relu, conv(3, 3), batch_norm())
    params, state = net.init(jax.random.key(0), SPEC)
    batches = [PREPARE(jnp.asarray(batch(number).images)) for number in range(3)]
    found = reestimated(net, params, state, batches, jax.random.key(1))

    def torch_conv(layer, padding="same") -> Any:
        kernel = torch.tensor(np.asarray(layer["kernel"])).permute(3, 2, 0, 1)
        out: Any = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=padding)
        out.weight.data = kernel
        out.bias.data = torch.tensor(np.asarray(layer.get("bias", jnp.zeros(len(kernel)))))
        return out

    theirs: Any = torch.nn.Sequential(
        *(torch_conv(params["conv1"]), torch.nn.BatchNorm2d(4), torch.nn.ReLU()),
        *(torch_conv(params["conv2"]), torch.nn.BatchNorm2d(3)),
    )
    images = [torch.tensor(np.asarray(each)).permute(0, 3, 1, 2) for each in batches]
    torch.optim.swa_utils.update_bn(images, theirs)
    for name, norm in ("norm1", theirs[1]), ("norm2", theirs[4]):
        np.testing.assert_allclose(found[name]["mean"], norm.running_mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[name]["var"], norm.running_var, rtol=1e-4)


def test_without_batches_no_statistics_can_be_estimated():
    params, state = NORMED.init(jax.random.key(0), SPEC)
    with pytest.raises(ValueError, match="there are no batches to estimate statistics from"):
        reestimated(NORMED, params, state, [], jax.random.key(1))


def test_the_loss_in_half_precision_is_near_that_in_single_precision():
    half = normalise(np.array([0.4, 0.5]), np.array([0.2, 0.3]), jnp.bfloat16)
    step = jax.jit(make_step(NORMED, SGD, cross_entropy, prepare=half))
    state = init_state(NORMED, SGD, jax.random.key(3), SPEC, HYPER)
    new, metrics = step(state, batch(0), HYPER)
    _, expected = steps(NORMED, 1)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves((new.params, new.state))} == {
        np.dtype(np.float32)
    }
    assert float(metrics.loss) != float(expected.loss)


def test_half_precision_with_a_scaled_loss_takes_the_step_of_single_precision():
    half = normalise(np.array([0.4, 0.5]), np.array([0.2, 0.3]), jnp.float16)
    step = jax.jit(make_step(NORMED, SGD, cross_entropy, prepare=half))
    state = init_state(NORMED, SGD, jax.random.key(3), SPEC, HYPER, scaled=True)
    new, metrics = step(state, batch(0), HYPER)
    seen, expected = steps(NORMED, 1)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=5e-3)
    assert_same(new.params, seen[-1].params, rtol=0.05, atol=2e-3)
    assert new.scale is not None
    assert state.scale is not None
    assert new.scale.scale == state.scale.scale


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_scale():
    step = jax.jit(make_step(NORMED, SGD, cross_entropy, average=moving_average(0.9)))
    state = init_state(NORMED, SGD, jax.random.key(3), SPEC, HYPER, averaged=True, scaled=True)
    bad = batch(0)._replace(images=np.full((16, 6, 6, 2), np.inf, np.float32))
    new, _ = step(state, bad, HYPER)
    for name in ("params", "state", "opt", "average"):
        assert_same(getattr(new, name), getattr(state, name), rtol=0)
    assert new.scale is not None
    assert state.scale is not None
    assert float(new.scale.scale) == float(state.scale.scale) / 2
    assert int(new.step) == 1  # The batch is used up: another one comes next.


def test_an_evaluation_by_views_is_the_mean_of_the_logits():
    state = init_state(NORMED, SGD, jax.random.key(3), SPEC, HYPER)
    model = state.params, state.state
    found = jax.jit(make_eval_step(NORMED, prepare=PREPARE, views=views_of("flip")))(
        model, batch(0)
    )
    images, labels, *_ = batch(0)
    logits = [
        NORMED.apply(*model, PREPARE(jnp.asarray(each)), Context())[0]
        for each in (images, images[:, :, ::-1])
    ]
    mean = torch.tensor((np.asarray(logits[0], np.float64) + np.asarray(logits[1])) / 2)
    loss = torch.nn.functional.cross_entropy(mean, torch.tensor(labels).long(), reduction="sum")
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    assert int(found.correct) == int((mean.argmax(1).numpy() == labels).sum())
