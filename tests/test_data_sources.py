"""A name and a split go in, three arrays come out, wherever the files lie."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convjax.data import DataNotFoundError, load, names, read_idx, sources, write_idx
from convjax.data.make_fashion_mini import first_of_each_class, main, make
from convjax.data.splits import parse_split, part

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
BUNDLE = Path(sources.__file__).parent / "fashion_mini"
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 3), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], np.uint8)


def put(folder, images=IMAGES, labels=LABELS, stem="train", spelling="-idx", end=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / f"{stem}-images{spelling}3-ubyte{end}", images)
    write_idx(folder / f"{stem}-labels{spelling}1-ubyte{end}", labels)


def equal_to_what_was_put(dataset):
    np.testing.assert_array_equal(dataset.images, IMAGES[..., np.newaxis])
    np.testing.assert_array_equal(dataset.labels, LABELS)
    return dataset.images.dtype == np.uint8 and dataset.labels.dtype == np.int32


@pytest.fixture(autouse=True)
def nothing_but_what_the_test_puts(tmp_path, monkeypatch):
    (tmp_path / "tfds").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "debian")


@pytest.mark.parametrize(("split", "size"), [("train", 10_000), ("test", 2_000)])
def test_the_bundled_set_is_balanced_and_grey_28_by_28(split, size):
    images, labels, classes = load("fashion_mini", split)
    assert images.shape == (size, 28, 28, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert np.bincount(labels).tolist() == [size // 10] * 10
    assert classes[0] == "T-shirt/top"
    assert classes[9] == "Ankle boot"
    assert len(np.unique(images.reshape(size, -1), axis=0)) == size


def test_no_image_of_the_bundled_test_split_was_trained_on():
    train, test = load("fashion_mini", "train"), load("fashion_mini", "test")
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}


@needs_debian
def test_the_bundled_set_is_made_again_from_the_original_files(tmp_path):
    make(DEBIAN, tmp_path)
    made = sorted(path.name for path in tmp_path.glob("*.gz"))
    assert made == sorted(path.name for path in BUNDLE.glob("*.gz"))
    assert len(made) == 4
    for name in made:  # The compressed bytes depend on the version of zlib.
        again, bundled = (gzip.decompress((f / name).read_bytes()) for f in (tmp_path, BUNDLE))
        assert again == bundled


@needs_debian
def test_the_bundled_set_is_the_first_thousand_of_each_class_counted_one_by_one():
    count, kept = dict.fromkeys(range(10), 0), []
    for position, label in enumerate(load("fashion_mnist", "train", DEBIAN).labels.tolist()):
        count[label] += 1
        if count[label] <= 1000:
            kept.append(position)
    originals = read_idx(DEBIAN / "train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(load("fashion_mini", "train").images[..., 0], originals[kept])


def test_the_bundle_carries_its_licence_and_its_origin():
    licence = (BUNDLE / "LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in licence
    assert "Permission is hereby granted, free of charge" in licence
    assert "make_fashion_mini" in (BUNDLE / "README.md").read_text()
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) < 5.5e6


def test_too_few_images_of_a_class_are_an_error_with_the_counts(tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match=r"at least 2 of each class, found \{0: 2, 7: 1\}"):
        first_of_each_class(np.array([0, 7, 0]), 2)
    put(tmp_path / "source")
    monkeypatch.setattr(sys, "argv", ["make_fashion_mini", str(tmp_path / "source")])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "expected at least 1000 of each class" in capsys.readouterr().err


def test_the_bundled_set_is_never_taken_for_what_lies_in_a_data_dir(tmp_path):
    with pytest.raises(ValueError, match="fashion_mini is part of the package and not read from"):
        load("fashion_mini", "train", tmp_path)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("spelling", ["-idx", ".idx"])
@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
def test_idx_files_are_found_in_a_folder_under_all_their_names(tmp_path, folder, spelling, end):
    put(tmp_path / folder, spelling=spelling, end=end)
    dataset = load("mnist", "train", tmp_path)
    assert equal_to_what_was_put(dataset)
    assert dataset.classes == tuple("0123456789")


def test_test_files_are_found_under_the_name_t10k(tmp_path):
    put(tmp_path, stem="t10k")
    assert equal_to_what_was_put(load("kmnist", "test", tmp_path))
    with pytest.raises(DataNotFoundError, match=r"train-images-idx3-ubyte.gz"):
        load("kmnist", "train", tmp_path)


def test_a_set_of_its_own_folder_comes_before_files_that_do_not_say_what_they_are(tmp_path):
    put(tmp_path, images=IMAGES[:5], labels=LABELS[:5])
    put(tmp_path / "kmnist")
    assert equal_to_what_was_put(load("kmnist", "train", tmp_path))
    assert len(load("mnist", "train", tmp_path).labels) == 5


def test_a_folder_may_begin_with_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "somewhere")
    assert equal_to_what_was_put(load("mnist", "train", "~/somewhere"))
    monkeypatch.delenv("TFDS_DATA_DIR")
    put(tmp_path / "tensorflow_datasets" / "kmnist")
    assert equal_to_what_was_put(load("kmnist", "train"))


@pytest.mark.parametrize("place", ["tfds/fashion_mnist", "debian/fashion-mnist"])
def test_without_a_data_dir_the_usual_places_are_looked_at(tmp_path, place):
    put(tmp_path / place)
    assert equal_to_what_was_put(load("fashion_mnist", "train"))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DataNotFoundError):  # A data_dir is the only place, where there is one.
        load("fashion_mnist", "train", other)


@needs_debian
def test_fashion_mnist_is_read_where_debian_puts_it(monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN", DEBIAN.parent)
    train, test = load("fashion_mnist", "train"), load("fashion_mnist", "test")
    assert train.images.shape == (60_000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # The first labels as the authors' own page shows them: an ankle boot, two T-shirts, a dress.
    assert [train.classes[i] for i in train.labels[:4]] == [
        "Ankle boot",
        "T-shirt/top",
        "T-shirt/top",
        "Dress",
    ]


def test_the_downloads_of_tfds_are_found_under_the_names_that_it_gives_them(tmp_path):
    from tensorflow_datasets.core.download import checksums, resource

    for name, images in ("fashion_mnist", IMAGES), ("mnist", IMAGES[::-1]):
        put(tmp_path / name, images=images)
        for file in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
            content = (tmp_path / name / file).read_bytes()
            url = f"http://{name.replace('_', '-')}.example.org/{file}"
            info = checksums.compute_url_info(tmp_path / name / file)
            path = tmp_path / "root/downloads" / resource.get_dl_fname(url, info.checksum)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            resource.write_info_file(url, path, name, file, info)
    assert equal_to_what_was_put(load("fashion_mnist", "train", tmp_path / "root"))
    other = load("mnist", "train", tmp_path / "root")
    np.testing.assert_array_equal(other.images[..., 0], IMAGES[::-1])
    with pytest.raises(DataNotFoundError):
        load("kmnist", "train", tmp_path / "root")


def test_a_damaged_note_of_tfds_is_an_error_that_names_it(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/file.gz.INFO").write_text("{")
    with pytest.raises(ValueError, match=r"file.gz.INFO: no JSON \(Expecting"):
        load("mnist", "train", tmp_path)


@pytest.mark.parametrize("folder", ["", "emnist", "gzip", "downloads/extracted/ZIP.abc/gzip"])
def test_emnist_is_turned_upright_and_counted_from_zero(tmp_path, folder):
    # An L as the files hold it: its columns where other sets have rows (Cohen et al., 2017).
    upright = np.array([[9, 0, 0], [9, 0, 0], [9, 0, 0], [9, 9, 9]], np.uint8)
    stored = np.stack([upright.T] * 2)
    put(tmp_path / folder, stored, np.array([12, 26], np.uint8), stem="emnist-letters-train")
    dataset = load("emnist/letters", "train", tmp_path)
    np.testing.assert_array_equal(dataset.images[0, ..., 0], upright)
    assert [dataset.classes[label] for label in dataset.labels] == ["l", "z"]


def test_the_classes_of_emnist_are_as_many_as_the_paper_says():
    counts = {
        "balanced": 47,
        "byclass": 62,
        "bymerge": 47,
        "digits": 10,
        "letters": 26,
        "mnist": 10,
    }
    from convjax.data.mnist import FAMILY

    found = {name.removeprefix("emnist/"): m for name, m in FAMILY.items() if "emnist/" in name}
    assert {name: len(set(member.classes)) for name, member in found.items()} == counts
    # Letters whose two forms are merged (Cohen et al., 2017, section II).
    merged = set("abcdefghijklmnopqrstuvwxyz") - set(found["balanced"].classes)
    assert merged == set("cijklmopsuvwxyz")


def test_emnist_alone_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"'emnist': .*\(emnist is emnist/balanced, "):
        load("emnist", "train", tmp_path)
    with pytest.raises(ValueError, match=r"did you mean 'emnist/letters'\?"):
        load("emnist/leters", "train", tmp_path)


def test_missing_files_are_one_error_with_all_places_and_the_next_step(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        load("fashion_mnist", "test")
    message = str(caught.value)
    assert "install Debian's package dataset-fashion-mnist" in message
    assert "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz" in message
    for place in ("tfds/fashion_mnist", "debian/fashion-mnist"):
        assert str(tmp_path / place) in message
    assert "\n" not in message


def test_a_data_dir_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere is no folder"):
        load("mnist", "train", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fashion_mnits", "fashion_mnist"),
        ("fashionmini", "fashion_mini"),
        ("cifer10", "cifar10"),
        ("tfds:cifer10", "cifar10"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_right_one(name, meant):
    with pytest.raises(ValueError, match=rf"unknown data set .*: did you mean '{meant}'\?"):
        load(name, "train")


@pytest.mark.parametrize("name", ["", "a b", "../mnist", "/mnist", "*", "mnist/", "tfds:", "a:b:c"])
def test_a_name_that_is_none_is_an_error_too(name):
    with pytest.raises(ValueError, match="unknown data set"):
        load(name, "train")


@pytest.mark.parametrize("name", ["fashion_mini", "mnist"])
def test_an_unknown_split_is_an_error_with_the_nearest_right_one(tmp_path, name):
    put(tmp_path / "tfds/mnist")
    with pytest.raises(ValueError, match=r"unknown split 'tset': did you mean 'test'\?"):
        load(name, "tset")
    with pytest.raises(
        ValueError, match=r"unknown split 'train\[x\]': write train, train\[:1000\]"
    ):
        load(name, "train[x]")


def test_a_part_of_a_split_is_those_images(tmp_path):
    put(tmp_path)
    whole = load("mnist", "train", tmp_path)
    images, labels, _ = load("mnist", "train[25%:-25%]", tmp_path)
    np.testing.assert_array_equal(images, whole.images[3:9])
    np.testing.assert_array_equal(labels, whole.labels[3:9])
    with pytest.raises(ValueError, match=r"\[:13\] is no part of 12 images"):
        load("mnist", "train[:13]", tmp_path)


ENDS = ["", "0", "3", "20", "-3", "-20", "33%", "67%", "100%", "-15%", "-100%", "25%", "5%"]


@pytest.mark.parametrize("start", ENDS)
@pytest.mark.parametrize("stop", ENDS)
def test_parts_of_splits_are_those_of_tfds(start, stop):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import splits

    info = splits.SplitInfo(name="train", shard_lengths=[20], num_bytes=0, filename_template=None)
    spec = f"train[{start}:{stop}]"
    if start and stop and start.endswith("%") != stop.endswith("%"):
        # TFDS takes [20:33%] for [20%:33%]. Nobody who writes it can be sure of that.
        with pytest.raises(ValueError, match="both ends as numbers or both as percentages"):
            parse_split(spec, ["train"])
        return
    if not start and not stop:
        assert part(*parse_split(spec, ["train"])[1:], 20) == slice(0, 20)  # TFDS refuses it.
        return
    try:
        (absolute,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute({"train": info})
        expected = range(20)[absolute.from_ : absolute.to]
    except ValueError:
        expected = range(0)
    assert parse_split(spec, ["train"]) == ("train", start, stop)
    if len(expected) == 0:  # Nothing to learn from: an error here, whatever it is there.
        with pytest.raises(ValueError, match="is no part of 20 images"):
            part(start, stop, 20)
    else:
        assert range(20)[part(start, stop, 20)] == expected


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:11], LABELS, "11 images but 12 labels"),
        (IMAGES, LABELS + 5, "label 10 of image 4 is outside 0 to 9"),
        (IMAGES.astype(np.int16), LABELS, "holds int16 of 3 dimensions, expected uint8 of 3"),
        (LABELS, LABELS, "holds uint8 of 1 dimensions, expected uint8 of 3"),
        (IMAGES, IMAGES, "labels-idx1-ubyte.gz: holds uint8 of 3 dimensions, expected uint8 of 1"),
    ],
)
def test_files_that_do_not_fit_together_are_an_error(tmp_path, images, labels, message):
    put(tmp_path, images, labels)
    with pytest.raises(ValueError, match=message):
        load("mnist", "train[:3]", tmp_path)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    code = """
import numpy as np
from convjax.data import Dataset

def flowers(split, data_dir):
    size = {"train": 6, "test": 3}[split]
    return Dataset(np.zeros((size, 4, 4, 3), np.uint8), np.zeros(size, np.int32), (str(data_dir),))

def nothing(split, data_dir):
    pass

def floats(split, data_dir):
    return flowers(split, data_dir)._replace(images=np.zeros((3, 4, 4, 3)))
"""
    (tmp_path / "my_garden.py").write_text(code)
    (tmp_path / "my_shed.py").write_text("import a_module_that_is_nowhere")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_a_data_set_may_be_a_function_of_ones_own(tmp_path):
    dataset = load("my_garden:flowers", "test", tmp_path)
    assert dataset.images.shape == (3, 4, 4, 3)
    assert dataset.classes == (str(tmp_path),)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_garden:flower", "my_garden has no function 'flower'; did you mean 'flowers'?"),
        ("my_garten:flowers", "there is no module 'my_garten'"),
        ("my_garden:nothing", "my_garden:nothing: returned a NoneType, no Dataset"),
        ("my_garden:floats", r"images are float64\[3,4,4,3\], expected uint8"),
    ],
)
def test_a_function_that_is_not_there_or_no_data_set_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        load(name, "test")


@pytest.mark.usefixtures("own_module")
def test_an_error_inside_of_ones_own_module_is_not_hidden():
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        load("my_shed:flowers", "train")


def test_names_are_all_known_to_load(tmp_path):
    assert names()[:2] == ["fashion_mini", "fashion_mnist"]
    for name in names()[1:]:
        with pytest.raises(DataNotFoundError, match=f"no files of {name}: "):
            load(name, "train", tmp_path)


def test_importing_and_loading_the_bundle_takes_numpy_only():
    code = """
import sys, json, convjax.data
convjax.data.load("fashion_mini", "train")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert {"numpy", "convjax"} <= loaded
    assert not loaded & {"jax", "tensorflow", "tensorflow_datasets", "array_record", "absl", "PIL"}
