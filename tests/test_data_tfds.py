"""Data sets that the real TFDS prepares on disk as array records, read back without TensorFlow."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from convjax.data import DataNotFoundError, load

CLASSES = ["ant", "bee", "cicada"]
LABELED = {
    "image": tfds.features.Image(shape=(6, 5, 3)),
    "label": tfds.features.ClassLabel(names=CLASSES),
    "id": tfds.features.Text(),
}


class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS data set with the features and examples that a test asks for."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name, features, splits, supervised_keys=None, config=None, **kwargs):
        self.name = name  # pyright: ignore[reportAttributeAccessIssue]
        self.features, self.keys, self.splits = features, supervised_keys, splits
        if config:
            self.BUILDER_CONFIGS = [config]
        super().__init__(config=config, file_format="array_record", **kwargs)

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=self.keys)

    def _split_generators(self, dl_manager):
        return {name: enumerate(examples) for name, examples in self.splits.items()}

    def _generate_examples(self):
        raise NotImplementedError("the splits are the generators")


def picture(number, shape=(6, 5, 3)):
    """An image that knows its number: the first two bytes; the rest is noise."""
    pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
    pixels.flat[:2] = divmod(number, 256)
    return pixels


def png(pixels):
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])


def examples(numbers):
    return [{"image": png(picture(n)), "label": n % 3, "id": f"#{n}"} for n in numbers]


def write(root, name="insects", features=None, splits=None, keys=("image", "label"), **kwargs):
    splits = splits or {"train": examples(range(10)), "test": examples(range(10, 14))}
    builder = Written(name, features or LABELED, splits, keys, data_dir=str(root), **kwargs)
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write(root)
    return root


def reference(root, split):
    """The examples as TFDS itself reads them."""
    builder: Any = tfds.builder_from_directory(root / "insects/1.0.0")
    return builder.as_data_source(split)


def numbers_of(dataset):
    return (dataset.images.reshape(len(dataset.images), -1)[:, :2] @ np.array([256, 1])).tolist()


@pytest.mark.parametrize("name", ["insects", "tfds:insects", "insects:1.0.0", "insects:1.*.*"])
@pytest.mark.parametrize(("split", "expected"), [("train", range(10)), ("test", range(10, 14))])
def test_what_tfds_wrote_is_read(root, name, split, expected):
    dataset = load(name, split, root)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert dataset.classes == tuple(CLASSES)
    numbers = numbers_of(dataset)
    assert sorted(numbers) == list(expected)  # TFDS shuffles what it writes.
    for number, image, label in zip(numbers, dataset.images, dataset.labels, strict=True):
        np.testing.assert_array_equal(image, picture(number))
        assert label == number % 3


def test_the_images_come_in_the_order_of_tfds_own_reader(root):
    source = reference(root, "train")
    dataset = load("insects", "train", root)
    np.testing.assert_array_equal(dataset.images, [example["image"] for example in source])
    np.testing.assert_array_equal(dataset.labels, [example["label"] for example in source])


def test_parts_of_splits_are_those_of_tfds_and_add_up(root):
    whole = load("insects", "train", root)
    first, rest = load("insects", "train[:33%]", root), load("insects", "train[33%:]", root)
    assert len(first.labels) == 3
    np.testing.assert_array_equal(np.concatenate([first.images, rest.images]), whole.images)
    percent = reference(root, "train[-45%:]")
    np.testing.assert_array_equal(
        load("insects", "train[-45%:]", root).labels, [example["label"] for example in percent]
    )


def test_the_folder_of_tfds_is_looked_in_by_default(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(load("insects", "test").labels) == 4


def test_a_set_of_many_shards_is_read_whole(tmp_path):
    grey = {
        "image": tfds.features.Image(shape=(2, 1, 1)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    numbers = range(1500)
    written = [{"image": png(picture(n, (2, 1, 1))), "label": n % 3} for n in numbers]
    builder = Written("many", grey, {"train": written}, ("image", "label"), data_dir=str(tmp_path))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    assert len(list((tmp_path / "many/1.0.0").glob("*array_record*"))) == 3
    dataset = load("many", "train", tmp_path)
    assert dataset.images.shape == (1500, 2, 1, 1)
    assert dataset.classes == ("0", "1", "2")
    assert sorted(numbers_of(dataset)) == list(numbers)
    np.testing.assert_array_equal(dataset.labels, np.array(numbers_of(dataset)) % 3)


def test_a_config_is_read_by_its_name(tmp_path):
    for config, numbers in ("small", range(3)), ("large", range(6)):
        config = tfds.core.BuilderConfig(name=config, version="1.2.0")
        write(tmp_path, splits={"train": examples(numbers)}, config=config, version="1.2.0")
    assert len(load("insects/large", "train", tmp_path).labels) == 6
    assert len(load("insects/small:1.2.0", "train", tmp_path).labels) == 3
    with pytest.raises(DataNotFoundError, match=r"did you mean 'insects/large:1.2.0'\?"):
        load("insects/larg", "train", tmp_path)


def test_image_and_label_are_found_without_supervised_keys(tmp_path):
    write(tmp_path, keys=None)
    assert sorted(numbers_of(load("insects", "train", tmp_path))) == list(range(10))


def test_two_candidates_for_the_label_are_an_error_that_lists_them(tmp_path):
    features = {**LABELED, "kind": tfds.features.ClassLabel(num_classes=2)}
    written = [{**example, "kind": 0} for example in examples(range(2))]
    write(tmp_path, features=features, splits={"train": written}, keys=None)
    with pytest.raises(
        ValueError, match=r"insects .*\['image'\] and class labels \['kind', 'label'"
    ):
        load("insects", "train", tmp_path)


def test_a_target_that_is_no_class_is_an_error(tmp_path):
    write(tmp_path, keys=("image", "id"))
    with pytest.raises(ValueError, match=r"insects: its label id is Text.*, expected a ClassLabel"):
        load("insects", "train", tmp_path)


def test_an_input_that_is_no_image_is_an_error(tmp_path):
    write(tmp_path, keys=("id", "label"))
    with pytest.raises(ValueError, match=r"insects: its input id is .*, expected uint8 images"):
        load("insects", "train", tmp_path)


def test_images_of_several_sizes_are_an_error_with_both(tmp_path):
    features = {**LABELED, "image": tfds.features.Image()}
    shapes = [(4, 4, 3), (4, 4, 3), (4, 6, 3)]
    written = [
        {"image": png(picture(n, shape)), "label": 0, "id": ""} for n, shape in enumerate(shapes)
    ]
    write(tmp_path, features=features, splits={"train": written})
    with pytest.raises(
        ValueError, match=r"image \d is \[4, [46], 3\], the first is \[4, [46], 3\]"
    ):
        load("insects", "train", tmp_path)


def test_examples_without_a_label_are_an_error(tmp_path):
    written = [{**example, "label": -1} for example in examples(range(3))]
    write(tmp_path, splits={"test": written})
    with pytest.raises(
        ValueError, match=r"image 0 of insects \(test\): label -1 is outside 0 to 2"
    ):
        load("insects", "test", tmp_path)


def test_the_mnist_family_is_read_from_array_records_where_there_are_no_idx_files(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(2, 3, 1)),
        "label": tfds.features.ClassLabel(num_classes=37),
    }
    stored = np.array([[9, 9, 9], [0, 0, 7]], np.uint8)[..., np.newaxis]
    config = tfds.core.BuilderConfig(name="letters", version="1.0.0")
    splits = {"train": [{"image": png(stored), "label": 26}]}
    write(tmp_path, "emnist", features, splits, config=config)
    raw = load("tfds:emnist/letters", "train", tmp_path)
    np.testing.assert_array_equal(raw.images[0], stored)
    assert raw.labels.tolist() == [26]
    assert len(raw.classes) == 37
    for name in "emnist/letters", "emnist/letters:1.0.0":
        upright = load(name, "train", tmp_path)
        np.testing.assert_array_equal(upright.images[0, ..., 0], [[9, 0], [9, 0], [9, 7]])
        assert upright.classes[upright.labels[0]] == "z"


def test_a_known_set_that_is_not_prepared_is_an_error_with_the_command(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        load("cifar10", "train", tmp_path)
    command = f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}"
    assert command in str(caught.value)


def test_a_version_that_is_not_prepared_is_an_error_with_the_one_that_is(root):
    with pytest.raises(DataNotFoundError, match=r"did you mean 'insects:1.0.0'\?"):
        load("insects:2.0.0", "train", root)


def test_a_set_of_ones_own_is_among_the_nearest_names(root):
    with pytest.raises(
        ValueError, match=r"unknown data set 'insect': did you mean 'insects:1.0.0'\?"
    ):
        load("insect", "train", root)


@pytest.mark.parametrize("split", ["trian", "trian[:3]"])
def test_an_unknown_split_is_an_error_with_the_nearest_right_one(root, split):
    with pytest.raises(ValueError, match=r"unknown split 'trian.*: did you mean 'train'\?"):
        load("insects", split, root)


def test_a_set_prepared_as_tfrecord_is_an_error_with_the_next_step(tmp_path):
    write(tmp_path)
    folder = tmp_path / "insects/1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    for shard in folder.glob("*array_record*"):
        shard.rename(folder / shard.name.replace("array_record", "tfrecord"))
    with pytest.raises(DataNotFoundError) as caught:
        load("insects", "train", tmp_path)
    assert "as tfrecord, which only TensorFlow reads" in str(caught.value)
    assert "tfds build insects --file_format=array_record" in str(caught.value)


WITHOUT = """
import sys

class Without:
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in self.hidden
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder, sys.argv[2:]) for finder in sys.meta_path]
from convjax.data import load
"""


def run_without(packages, code, root):
    """What a Python in which these packages are not installed prints."""
    command = [sys.executable, "-c", WITHOUT + code, str(root), *packages]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_loading_works_without_tensorflow(root):
    code = 'print(load("insects", "train", sys.argv[1]).images.shape, "tensorflow" in sys.modules)'
    assert run_without(["tensorflow"], code, root) == "(10, 6, 5, 3) False\n"


def test_a_missing_tfds_is_an_error_with_the_command_that_installs_it(root):
    code = """
from convjax.config import UserError

for name in "insects", "svhn_cropped":
    try:
        load(name, "train", sys.argv[1])
    except (ModuleNotFoundError, ValueError) as error:
        print(error)
        print(isinstance(error, UserError))
"""
    said = run_without(["tensorflow_datasets", "array_record"], code, root).splitlines()
    assert "pip install tensorflow-datasets array-record" in said[0]
    assert said[1] == "True"
    assert "unknown data set 'svhn_cropped'" in said[2]
    assert "TFDS, which knows more, is not installed" in said[2]
