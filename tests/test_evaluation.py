"""Evaluation against the count made one by one, in NumPy and double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import ops
from convjax.combine import serial
from convjax.layer import Context
from convjax.layers import batch_norm, conv, dense, dropout
from convjax.training import parallel
from convjax.training.evaluate import evaluate
from convjax.training.feed import Images, Split, evaluation
from convjax.training.loss import cross_entropy
from convjax.training.step import make_eval_step, normalise

NET = serial(conv(3, 3), batch_norm(), ops.relu, dropout(0.5), ops.global_avg_pool, dense(4))
PREPARE = normalise(np.array([0.5]), np.array([0.25]))
draw = np.random.default_rng(0)
IMAGES = draw.integers(0, 256, (70, 5, 5, 1), np.uint8)
LABELS = draw.integers(0, 4, 70).astype(np.int32)


def batches(size, batch_size, mapper):
    split = Split(Images(IMAGES[:size], LABELS[:size]), ("a", "b", "c", "d"))
    return evaluation(split, batch_size, mapper)


@pytest.fixture(scope="module")
def model():
    params, state = NET.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 5, 5, 1), jnp.float32))
    # Statistics as after some training, so that a wrong use of them would show.
    params["dense1"]["kernel"] = params["dense1"]["kernel"] * 20
    return params, jax.tree.map(lambda leaf: leaf + 0.3, state)


@pytest.fixture(scope="module")
def one_by_one(model):
    """Loss and whether it is correct, of each image alone."""
    one = jax.jit(lambda x: NET.apply(*model, PREPARE(x), Context())[0])
    found = []
    for image, label in zip(IMAGES, LABELS):
        logits = np.asarray(one(image[None]), np.float64)[0]
        loss = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
        found.append((loss, int(logits.argmax() == label)))
    losses, hits = zip(*found)
    assert 5 < sum(hits) < 65
    return np.array(losses), np.array(hits)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_equals_the_one_by_one_count(model, one_by_one, batch_size):
    mapper = parallel.make("jit")
    step = mapper.compile(make_eval_step(NET, cross_entropy, prepare=PREPARE))
    for size in range(1, 71):
        found = evaluate(step, model, batches(size, batch_size, mapper))
        assert (found.correct, found.count) == (one_by_one[1][:size].sum(), size)
        np.testing.assert_allclose(found.loss, one_by_one[0][:size].sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["sharded", "pmap", "shard_map"])
@pytest.mark.parametrize("size", [1, 8, 61])
def test_evaluation_on_many_devices_equals_the_one_by_one_count(model, one_by_one, name, size):
    mapper = parallel.make(name)
    step = mapper.compile(make_eval_step(NET, cross_entropy, prepare=PREPARE, axis=mapper.axis))
    placed = mapper.replicate(model)
    found = evaluate(step, placed, batches(size, 24, mapper))
    assert (found.correct, found.count) == (one_by_one[1][:size].sum(), size)
    np.testing.assert_allclose(found.loss, one_by_one[0][:size].sum(), rtol=1e-5)


def test_no_images_count_as_none(model):
    mapper = parallel.make("jit")
    step = mapper.compile(make_eval_step(NET, cross_entropy, prepare=PREPARE))
    assert evaluate(step, model, batches(0, 7, mapper)) == (0.0, 0, 0, 0)
