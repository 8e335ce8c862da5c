"""Made-up images: of the shape and number asked for, always the same, and cheap."""

import tracemalloc

import numpy as np
import pytest

from convjax.data import load
from convjax.data.sources import open_examples


def test_shape_classes_and_number_are_those_of_the_name():
    images, labels, classes = load("fake:6x5x3/4/30", "train")
    assert images.shape == (30, 6, 5, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [n % 4 for n in range(30)]
    assert classes == ("0", "1", "2", "3")
    assert len(load("fake:6x5x3/4/30", "test").labels) == 3
    assert len(load("fake:6x5x3/4/30/7", "test").labels) == 7


def test_images_are_noise_and_differ():
    images = load("fake:16x16x1/10/2000", "train").images
    assert len({image.tobytes() for image in images}) == 2000
    counts = np.bincount(images.ravel(), minlength=256) / images.size
    assert abs(counts - 1 / 256).max() < 1e-3
    test = load("fake:16x16x1/10/2000", "test").images
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in test}


def test_images_one_by_one_are_those_in_memory_and_a_part_is_those_images():
    dataset = load("fake:6x5x3/4/30", "train")
    examples = open_examples("fake:6x5x3/4/30", "train[10:20]")
    assert len(examples) == 10
    for index in range(10):
        image, label, _ = examples[index]
        np.testing.assert_array_equal(image, dataset.images[10 + index])
        assert label == dataset.labels[10 + index]
    np.testing.assert_array_equal(
        load("fake:6x5x3/4/30", "train[10:20]").images, dataset.images[10:20]
    )


def test_all_of_imagenet_takes_no_memory_until_it_is_asked_for():
    tracemalloc.start()
    examples = open_examples("fake:224x224x3/1000/1281167/50000", "train")
    total = sum(int(examples[index].label) for index in range(0, len(examples), 10_007))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == sum(index % 1000 for index in range(0, 1_281_167, 10_007))
    assert peak < 2e6


def test_more_than_the_memory_holds_is_an_error_with_the_way_out(monkeypatch):
    from convjax.data import checks

    monkeypatch.setattr(checks, "memory", lambda: 100 << 30)
    with pytest.raises(
        ValueError, match=r"1281167x224x224x3 images take 179.6 GiB, .* 100.0: stream them, or take"
    ):
        load("fake:224x224x3/1000/1281167", "train")


def test_the_memory_of_this_machine_is_known():
    from convjax.data import checks

    assert 1 << 28 < checks.memory() < 1 << 50


@pytest.mark.parametrize(
    "name", ["fake", "fake:", "fake:8x8/10/5", "fake:8x8x3/10", "fake:8x8x3/10/0", "fake:0x8x3/1/1"]
)
def test_a_name_that_says_too_little_is_an_error_with_an_example(name):
    for opened in load, open_examples:
        with pytest.raises(ValueError, match="such as fake:224x224x3/1000/1281167"):
            opened(name, "train")
