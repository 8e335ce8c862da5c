"""Out of memory, off the devices or off the disk: the same batches, and so the same training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from convjax import data, ops, tree
from convjax.augment import alternating_flip, augment, crop
from convjax.combine import serial
from convjax.data import views
from convjax.layers import conv, dense
from convjax.training import feed as feeds
from convjax.training import optimizer as optimizers
from convjax.training import parallel, schedule
from convjax.training.feed import Images, OnDisk, Order, Split
from convjax.training.loss import cross_entropy
from convjax.training.optimizer import hyper_of
from convjax.training.state import init_state
from convjax.training.step import make_step, normalise

draw = np.random.default_rng(0)
PIXELS = draw.integers(0, 256, (40, 6, 6, 3), np.uint8)
LABELS = draw.integers(0, 4, 40).astype(np.int32)
CLASSES = ("a", "b", "c", "d")
SPLIT = Split(Images(PIXELS, LABELS), CLASSES)
ORDER = Order(seed=3, size=40, batch_size=8)
NET = serial(conv(4, 3), ops.relu, ops.flatten, dense(4))
SGD = optimizers.make("sgd", schedule.make("cosine", steps=12), args={"momentum": 0.9})
HYPER = hyper_of(0.1, args={"momentum": 0.9})
SPEC = jax.ShapeDtypeStruct((8, 6, 6, 3), jnp.float32)


def train(feed, mapper, counts, change=None):
    """A state after so many steps in each call."""
    prepare = normalise(np.full(3, 0.5), np.full(3, 0.25))
    step = make_step(
        *(NET, SGD, cross_entropy), prepare=prepare, change=change, epoch=5, axis=mapper.axis
    )
    program = mapper.compile(feed.program(step), donate=True)
    state = mapper.replicate(init_state(NET, SGD, jax.random.key(1), SPEC, HYPER))
    hyper, total, done = mapper.replicate(HYPER), np.zeros(4), 0
    for count in counts:
        batch, *rest = feed.take(done, count)
        state, metrics = program(state, batch, hyper, *rest)
        total += [float(each) for each in metrics]
        done += count
    return state, total


def assert_equal_training(found, expected):
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    for (path, a), b in zip(
        tree.leaves(found[0].params).items(), jax.tree.leaves(expected[0].params)
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def one_by_one():
    mapper = parallel.make("jit")
    change = augment(crop(1), alternating_flip())
    return train(feeds.training(SPLIT, ORDER, mapper), mapper, [1] * 12, change)


@pytest.mark.parametrize("name", ["jit", "sharded", "pmap", "shard_map"])
def test_steps_of_one_call_are_those_of_many(one_by_one, name):
    mapper = parallel.make(name)
    feed = feeds.training(SPLIT, ORDER, mapper, at_once=5)
    change = augment(crop(1), alternating_flip())
    assert_equal_training(train(feed, mapper, [5, 2, 4, 1], change), one_by_one)


def test_the_images_of_a_batch_are_those_of_the_order():
    mapper = parallel.make("sharded")
    feed = feeds.training(SPLIT, ORDER, mapper)
    for number in (0, 4, 5, 11):
        (batch,) = feed.take(number, 1)
        epoch, place = divmod(number, 5)
        expected = data.batch_indices(3, epoch, place, 40, 8)
        np.testing.assert_array_equal(batch.numbers, expected)
        np.testing.assert_array_equal(batch.images, PIXELS[expected])
        np.testing.assert_array_equal(batch.labels, LABELS[expected])
        assert batch.images.sharding.shard_shape(batch.images.shape)[0] == 1


def test_what_is_taken_is_what_was_announced():
    mapper = parallel.make("sharded")
    for feed, count in (
        (feeds.training(SPLIT, ORDER, mapper), 1),
        (feeds.training(SPLIT, ORDER, mapper, at_once=4), 3),
    ):
        taken = feed.take(0, count)
        for spec, leaf in zip(jax.tree.leaves(feed.specs), jax.tree.leaves(taken), strict=True):
            assert (spec.shape, spec.dtype) == (leaf.shape, leaf.dtype)


def test_images_on_an_accelerator_live_there():
    class Accelerator(NamedTuple):
        platform: str = "gpu"

    mapper = parallel.make("jit")._replace(devices=[Accelerator()])
    _, count, placed = feeds.training(SPLIT, ORDER, mapper).take(0, 1)
    assert all(isinstance(each, jax.Array) for each in placed)
    assert int(count) == 1


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(PIXELS, LABELS)):
            place = folder / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03}.png")
    return folder


def opened(folder, split="train"):
    examples = data.open_examples("image_folder", split, folder)
    return Split(OnDisk(examples, views.whole(6, 6)), tuple(examples.classes))


def test_images_off_the_disk_give_the_steps_of_those_in_memory(on_disk):
    mapper = parallel.make("sharded")
    dataset = data.load("image_folder", "train", on_disk)
    expected = train(feeds.training(feeds.in_memory(dataset), ORDER, mapper), mapper, [1] * 7)
    feed = feeds.training(opened(on_disk), ORDER, mapper)
    try:
        assert_equal_training(train(feed, mapper, [1] * 7), expected)
        (again,) = feed.take(2, 1)  # as after a resume
        np.testing.assert_array_equal(again.images, dataset.images[again.numbers])
    finally:
        feed.close()


def test_an_evaluation_off_the_disk_sees_every_image_once(on_disk):
    mapper = parallel.make("sharded")
    dataset, split = data.load("image_folder", "test", on_disk), opened(on_disk, "test")
    assert (split.size, split.shape, split.classes) == (40, (6, 6, 3), CLASSES)
    seen = [
        (image, label)
        for batch in feeds.evaluation(split, 16, mapper)
        for image, label, counts in zip(*map(np.asarray, batch[:3]))
        if counts
    ]
    images, labels = zip(*seen)
    np.testing.assert_array_equal(images, dataset.images)
    np.testing.assert_array_equal(labels, dataset.labels)


def test_statistics_off_the_disk_are_those_in_memory(on_disk):
    for found, expected in zip(opened(on_disk).statistics(), data.channel_statistics(PIXELS)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
