"""Batches decoded by others: which, in which order, begun anywhere, and ended without a trace."""

import gc
import io
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from convjax.data import epoch_order, load
from convjax.data.batches import random_numbers
from convjax.data.dataset import FileError, ImageError
from convjax.data.prefetch import prefetch
from convjax.data.sources import open_examples
from convjax.data.stream import (
    Part,
    StreamError,
    Workers,
    eval_batches,
    sample,
    train_batches,
)
from convjax.data.views import centre_crop, random_resized_crop, whole

HERE = Workers(0, 2)
SIZE = 22
VIEW = random_resized_crop(8, scale=(0.3, 1.0))


def pixels_of(number):
    """An image that knows its number, of a size of its own."""
    height, width = 12 + number % 3, 16 - number % 2
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    pixels[:, :, 0] = number
    return pixels


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """22 images in two classes; the n-th in the order of names has the number n."""
    root = tmp_path_factory.mktemp("images")
    for number in range(SIZE):
        path = root / f"train/{'ab'[number // 12]}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(number)).save(path)
    return root


@pytest.fixture(scope="module")
def images(root):
    return open_examples("image_folder", "train", root)


def taken(batches, count=None):
    """Batches of a stream, which is then closed."""
    with batches:
        return [batch for batch, _ in zip(batches, range(10**6 if count is None else count))]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.fixture(scope="module")
def reference(images):
    """The first nine batches of five, of three epochs of four."""
    return taken(train_batches(images, VIEW, seed=7, batch_size=5, stop=9, workers=Workers(0, 1)))


def test_a_batch_is_the_images_of_its_step_cropped_by_their_own_random_numbers(reference):
    for number, batch in enumerate(reference):
        epoch, step = divmod(number, 4)
        order = epoch_order(7, epoch, SIZE)
        for row in range(5):
            place = 5 * step + row
            key, counter = np.array([7, epoch], np.uint64), np.array([16 * place, 0, 0, 1], "u8")
            raw = np.random.Philox(key=key, counter=counter).random_raw(64)
            uniform = np.array([int(each) // 2**11 / 2**53 for each in raw])
            index = int(order[place])
            image = Image.fromarray(pixels_of(index))
            box, flip = VIEW.crop(*image.size, uniform)
            image = image.resize((8, 8), Image.Resampling.BILINEAR, box)
            expected = np.asarray(image)[:, ::-1] if flip else np.asarray(image)
            np.testing.assert_array_equal(batch.images[row], expected)
            assert batch.labels[row] == index // 12
    assert reference[0].images.dtype == np.uint8
    assert reference[0].labels.dtype == np.int32
    assert reference[0].mask is None


def test_random_numbers_are_spread_evenly_and_differ_by_seed_epoch_and_place():
    numbers = random_numbers(0, 0, 0, 500)
    assert numbers.shape == (500, 64)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 / math.sqrt(12 * numbers.size)
    np.testing.assert_array_equal(random_numbers(0, 0, 100, 3), numbers[100:103])
    others = [random_numbers(*which, 500) for which in ((1, 0, 0), (0, 1, 0), (0, 0, 500))]
    assert len({each for array in (numbers, *others) for each in array.ravel().tolist()}) > 127_900


@pytest.mark.parametrize("start", [0, 1, 3, 4, 6, 8])
def test_a_stream_that_begins_anywhere_goes_on_as_the_whole_one(images, reference, start):
    view = random_resized_crop(8, scale=(0.3, 1.0))
    found = train_batches(images, view, seed=7, batch_size=5, start=start, stop=9, workers=HERE)
    assert_same(taken(found), reference[start:])


@pytest.mark.parametrize("workers", [Workers(1, 1), Workers(2, 2)])
def test_processes_give_the_same_batches_and_end(images, reference, workers):
    stream = train_batches(images, VIEW, seed=7, batch_size=5, start=2, workers=workers)
    assert_same(taken(stream, 7), reference[2:])
    assert not multiprocessing.active_children()
    assert list(stream) == []


def test_parts_of_several_hosts_make_up_the_batch(images):
    def batches(part, **options):
        options = {"batch_size": 6, "workers": Workers(0, 1), "part": part}
        train = taken(train_batches(images, VIEW, seed=1, stop=4, **options))
        return [*train, *taken(eval_batches(images, VIEW, **options))]

    whole_batches = batches(Part())
    parts = [batches(Part(number, 3)) for number in range(3)]
    for number, batch in enumerate(whole_batches):
        mine = [part[number] for part in parts]
        assert all(len(each.labels) == 2 for each in mine)
        for field in "images", "labels", "mask":
            if (expected := getattr(batch, field)) is not None:
                found = np.concatenate([getattr(each, field) for each in mine])
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("batch_size", [1, 5, 22, 40])
def test_evaluation_sees_every_image_once_and_masks_the_rest(images, batch_size):
    batches = taken(eval_batches(images, centre_crop(12), batch_size=batch_size, workers=HERE))
    assert len(batches) == math.ceil(SIZE / batch_size)
    assert {len(batch.images) for batch in batches} == {batch_size}
    masks = [np.asarray(batch.mask) for batch in batches]
    shown = [image for batch, mask in zip(batches, masks) for image in batch.images[mask]]
    assert [int(image[0, 0, 0]) for image in shown] == list(range(SIZE))
    expected = np.asarray(Image.fromarray(pixels_of(0)).crop((2, 0, 14, 12)))
    np.testing.assert_array_equal(shown[0], expected)
    assert not any(batch.images[~mask].any() for batch, mask in zip(batches, masks))


def test_a_closed_stream_keeps_nothing_of_grain_for_the_end_of_python(images):
    stream = train_batches(images, VIEW, seed=0, batch_size=2, workers=HERE)
    next(stream)
    grains = weakref.ref(stream._iterator)
    stream.close()
    gc.collect()
    assert grains() is None
    assert list(stream) == []


def test_an_epoch_shows_no_image_twice_and_the_next_one_has_another_order(images):
    stream = train_batches(images, whole(8, 8), seed=0, batch_size=11, stop=4, workers=HERE)
    numbers = [batch.images[:, 0, 0, 0].tolist() for batch in taken(stream)]
    first, second = numbers[0] + numbers[1], numbers[2] + numbers[3]
    assert sorted(first) == sorted(second) == list(range(SIZE))
    assert first != second


def test_a_sample_is_spread_over_all_images(images):
    found = sample(images, whole(8, 8), count=4)
    assert found[:, 0, 0, 0].tolist() == [0, 5, 11, 16]
    assert len(sample(images, whole(8, 8))) == SIZE


def test_a_sample_is_seen_with_random_numbers_as_training_is(images):
    found = sample(images, VIEW)
    raw = np.random.Philox(key=0, counter=[0, 0, 0, 1]).random_raw(64 * SIZE).reshape(SIZE, 64)
    for number, uniform in enumerate((raw >> np.uint64(11)) / 2.0**53):
        image = Image.fromarray(pixels_of(number))
        box, flip = VIEW.crop(*image.size, uniform)
        expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR, box))
        np.testing.assert_array_equal(found[number], expected[:, ::-1] if flip else expected)


def test_fake_images_of_channels_that_no_view_has_are_an_error():
    examples = open_examples("fake:4x4x2/2/8", "train")
    with pytest.raises(ImageError, match="train image 0 has 2 channels: give 1 or 3 to a stream"):
        taken(eval_batches(examples, whole(4, 4), batch_size=4, workers=HERE))


def test_a_set_in_memory_streams_as_it_is():
    dataset = load("fashion_mini", "test[:50]")
    examples = open_examples("fashion_mini", "test[:50]")
    (batch,) = taken(eval_batches(examples, whole(28, 28, channels=1), batch_size=50, workers=HERE))
    np.testing.assert_array_equal(batch.images, dataset.images)
    np.testing.assert_array_equal(batch.labels, dataset.labels)
    assert examples.classes == dataset.classes


def test_array_records_stream_undecoded_images_of_any_size(tmp_path):
    import tensorflow_datasets as tfds
    from test_data_tfds import write

    def encoded(number):
        file = io.BytesIO()
        Image.fromarray(pixels_of(number)).save(file, "JPEG")
        return file.getvalue()

    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
    }
    written = [{"image": io.BytesIO(encoded(n)), "label": n % 3} for n in range(10)]
    write(tmp_path, features=features, splits={"train": written})
    examples = open_examples("insects", "train[:80%]", tmp_path)
    assert len(examples) == 8
    assert examples.classes == ("x", "y", "z")
    contents = {encoded(n): n for n in range(10)}
    numbers = [contents[bytes(examples[index].image)] for index in range(8)]
    expected = [np.asarray(Image.open(io.BytesIO(encoded(n))).resize((8, 8), 2)) for n in numbers]
    for workers in HERE, Workers(1, 2):  # Another process opens the records anew.
        (batch,) = taken(eval_batches(examples, whole(8, 8), batch_size=8, workers=workers))
        np.testing.assert_array_equal(batch.images, expected)
        assert batch.labels.tolist() == [n % 3 for n in numbers]
    assert open_examples("tfds:insects", "train", tmp_path)[0].place == "image 0 of insects (train)"


@pytest.mark.parametrize("workers", [Workers(0, 1), Workers(1, 1)])
def test_a_file_that_cannot_be_read_is_named_by_whoever_reads_it(tmp_path, workers):
    for number in range(8):
        path = tmp_path / f"train/a/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(number)).save(path)
    path = tmp_path / "train/a/5.png"
    path.write_bytes(path.read_bytes()[:200])
    examples = open_examples("image_folder", "train", tmp_path)
    stream = eval_batches(examples, whole(4, 4), batch_size=4, workers=workers)
    np.testing.assert_array_equal(next(stream).labels, 0)
    with pytest.raises(ImageError, match=rf"{path} cannot be decoded: .*; copy it again or take"):
        next(stream)
    assert not multiprocessing.active_children()
    assert list(stream) == []
    path.unlink()
    with pytest.raises(FileError, match=r"5\.png cannot be read: No such file or directory; is"):
        taken(eval_batches(examples, whole(4, 4), batch_size=4, workers=Workers(0, 1)))


def test_a_process_that_is_killed_is_an_error_and_one_that_is_signalled_goes_on(images):
    stream = train_batches(images, VIEW, seed=0, batch_size=2, workers=Workers(1, 1))
    next(stream)
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    for each in signal.SIGINT, signal.SIGTERM:
        os.kill(child.pid, each)
    for _ in range(20):
        next(stream)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(StreamError, match=r"batch \d+ was not read: .*exit code -9"):
        list(stream)
    assert not multiprocessing.active_children()


def test_processes_end_with_the_one_that_is_killed(root, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text("""
import multiprocessing, sys, time
from convjax.data import workers
from convjax.data.sources import open_examples
from convjax.data.stream import Workers, train_batches
from convjax.data.views import whole

if __name__ == "__main__":
    workers._MEMORY = sys.argv[2]
    images = open_examples("image_folder", "train", sys.argv[1])
    batches = train_batches(images, whole(4, 4), seed=0, batch_size=2, workers=Workers(1, 1))
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
""")
    (tmp_path / "memory").mkdir()
    command = [sys.executable, str(script), str(root), str(tmp_path / "memory")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) > 0
    assert len(list((tmp_path / "memory").iterdir())) == 1
    parent.kill()
    # All of its processes write to the same pipe: it ends when the last one has.
    assert parent.communicate(timeout=20) == ("", None)
    assert not list((tmp_path / "memory").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 23}, "batch size 23 for 22 images"),
        ({"batch_size": 4, "part": Part(0, 3)}, "give a batch size that is a multiple"),
        ({"batch_size": 4, "part": Part(2, 2)}, "part 2 of 2"),
        ({"batch_size": 4, "seed": -1}, "seed -1 is outside 0 to"),
        ({"batch_size": 4, "start": -1}, "batches from -1"),
        ({"batch_size": 4, "start": 3, "stop": 2}, "batches from 3 to 2"),
        ({"batch_size": 4, "workers": Workers(-1)}, "give 0 or more processes"),
        ({"batch_size": 4, "workers": Workers(0, 0)}, "and threads from 1"),
        ({"batch_size": 4, "view": whole()}, "a view without a size"),
    ],
)
def test_numbers_that_do_not_fit_together_are_an_error_at_once(images, options, message):
    options = {"view": VIEW, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        train_batches(images, **options)


def test_too_little_shared_memory_is_an_error_before_a_process_dies_of_it(images, monkeypatch):
    usage = type("usage", (), {"free": 64 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    view = random_resized_crop(2000)
    # Twelve batches of 15 x 2000 x 2000 x 3 bytes.
    with pytest.raises(ValueError, match=r"2 processes need 2060 MiB .* has 64: .*--shm-size"):
        train_batches(images, view, seed=0, batch_size=15, workers=Workers(2, 1))


# -- Ahead of the reader ---------------------------------------------------------------------------


def test_what_is_prefetched_is_placed_in_order_and_ahead_of_the_reader():
    placed = []

    def place(number):
        placed.append(number)
        return 10 * number

    with prefetch(range(8), place, ahead=2) as ready:
        assert next(ready) == 0
        deadline = time.monotonic() + 5
        while len(placed) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert placed == [0, 1, 2, 3]  # two wait, and one waits for room
        assert list(ready) == [10, 20, 30, 40, 50, 60, 70]
    assert list(ready) == []


def test_an_error_is_raised_after_the_batches_before_it():
    def numbers():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    ready = prefetch(numbers(), lambda number: number)
    assert [next(ready), next(ready)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ready)
    assert list(ready) == []
    with pytest.raises(ZeroDivisionError):
        next(prefetch([0], lambda number: 1 / number))
    with pytest.raises(ValueError, match="ahead 0: give 1 or more"):
        prefetch([], lambda number: number, ahead=0)


def test_closing_early_ends_the_thread_and_closes_the_stream(images):
    stream = train_batches(images, VIEW, seed=0, batch_size=2, workers=HERE)
    with prefetch(stream, lambda batch: batch) as ready:
        next(ready)
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
    assert list(stream) == []


def test_batches_reach_the_devices_as_they_are(images, reference):
    mesh = jax.make_mesh((5,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("batch"))
    stream = train_batches(images, VIEW, seed=7, batch_size=5, stop=9, workers=Workers(1, 1))
    with prefetch(stream, lambda batch: jax.device_put(batch, sharding)) as ready:
        found = list(ready)
    assert all(batch.images.sharding == sharding for batch in found)
    assert_same(jax.device_get(found), reference)
