"""A folder `split/class/*.jpg` is a data set; what is wrong with it is named."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convjax.data import DataNotFoundError, image_folder, load
from convjax.data.decode import ImageError
from convjax.data.sources import open_examples
from convjax.data.views import whole

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg.tgz"


def picture(number, size=(6, 4)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def put(root, files):
    """Images by path; a number makes the picture, other things are bytes of the file."""
    for name, what in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, bytes):
            path.write_bytes(what)
        else:
            what = picture(what) if isinstance(what, int) else what
            what.save(path, "PNG" if path.suffix.lower() == ".png" else "BMP")


@pytest.fixture
def root(tmp_path):
    files = {
        "train/cat/b.png": 1,
        "train/cat/a.PNG": 0,
        "train/cat/a10.bmp": 3,
        "train/cat/a9.bmp": 2,
        "train/Dog/x.png": 4,
        "test/cat/t.png": 5,
        "test/Dog/t.png": 6,
    }
    put(tmp_path, files)
    return tmp_path


def test_images_come_by_class_and_name_and_classes_by_name(root):
    images, labels, classes = load("image_folder", "train", root)
    assert classes == ("Dog", "cat")  # Capitals first, as in every list of bytes.
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 1, 1, 1, 1]
    # Dog/x.png, then cat/a.PNG, a10.bmp, a9.bmp, b.png
    expected = np.stack([np.asarray(picture(n)) for n in (4, 0, 3, 2, 1)])
    np.testing.assert_array_equal(images, expected)
    test = load("image_folder", "test", root)
    assert test.classes == classes
    np.testing.assert_array_equal(test.images[0], np.asarray(picture(6)))


@pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "JPEG", "png", "webp", "BMP"])
def test_every_ending_is_found_in_any_spelling(tmp_path, ending):
    (tmp_path / "train/a").mkdir(parents=True)
    form = {"jpg": "JPEG", "webp": "WEBP"}.get(ending.lower(), ending.upper())
    picture(0).save(tmp_path / f"train/a/x.{ending}", form)
    images = load("image_folder", "train", tmp_path).images
    expected = np.asarray(Image.open(tmp_path / f"train/a/x.{ending}").convert("RGB"))
    np.testing.assert_array_equal(images[0], expected)


def test_images_are_resized_or_grey_as_asked_for(root):
    first = picture(4)
    resized = load("image_folder:8x12", "train", root).images
    assert resized.shape == (5, 8, 12, 3)
    np.testing.assert_array_equal(resized[0], np.asarray(first.resize((12, 8), 2)))
    grey = load("image_folder:grey", "train", root).images
    np.testing.assert_array_equal(grey[0, ..., 0], np.asarray(first.convert("L")))
    assert load("image_folder:5x7x1", "train", root).images.shape == (5, 5, 7, 1)
    square = load("image_folder:4", "train", root).images
    np.testing.assert_array_equal(square[0], np.asarray(first)[:, 1:5])


@pytest.mark.parametrize("options", ["0", "8x", "x8", "8x8x8x8", "grey:8", "-8", "8.5", "cat-"])
def test_options_that_are_none_are_an_error_with_those_there_are(root, options):
    with pytest.raises(ValueError, match=r"write image_folder, image_folder:grey, image_folder:64"):
        load(f"image_folder:{options}", "train", root)


def test_four_channels_are_an_error(root):
    with pytest.raises(ValueError, match="channels 4: give 3 for colours or 1 for grey"):
        load("image_folder:8x8x4", "train", root)


def test_images_of_several_sizes_are_an_error_with_two_of_them_and_the_way_out(root):
    put(root, {"train/cat/c.png": picture(9, (7, 4))})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load("image_folder", "train", root)
    message = str(caught.value)
    assert f"{root}/train/Dog/x.png is 6x4 pixels, {root}/train/cat/c.png 7x4" in message
    assert "have them resized, as by image_folder:64" in message
    assert load("image_folder:4", "train", root).images.shape == (6, 4, 4, 3)


def test_a_bad_file_is_an_error_with_its_path(root):
    put(root, {"train/cat/broken.jpg": b"\xff\xd8\xff not a JPEG", "train/cat/void.png": b""})
    with pytest.raises(ImageError, match=rf"^{root}/train/cat/broken.jpg (is no JPEG|cannot be)"):
        load("image_folder", "train", root)
    (root / "train/cat/broken.jpg").unlink()
    with pytest.raises(ImageError, match=rf"^{root}/train/cat/void.png is empty"):
        load("image_folder", "train", root)


def test_hidden_and_other_files_are_passed_over(root):
    put(
        root,
        {
            "README.md": b"text",
            "train/labels.csv": b"text",
            "train/.cache/x.png": 7,
            "train/cat/.hidden.png": 7,
            "train/cat/._a.PNG": b"what a Mac leaves",
            "train/cat/boxes.txt": b"0 0 1 1",
            "train/cat/.git/x.png": 7,
        },
    )
    assert len(load("image_folder", "train", root).labels) == 5


def test_folders_within_a_class_belong_to_it(root):
    put(root, {"train/Dog/images/y.png": 7, "train/Dog/images/deep/z.png": 8})
    images, labels, _ = load("image_folder", "train", root)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    for place, number in enumerate((8, 7, 4)):  # images/deep/z, images/y, x
        np.testing.assert_array_equal(images[place], np.asarray(picture(number)))


def test_names_need_not_be_text(root):
    name = os.fsdecode(b"\xff\xfe caf\xe9.png")
    put(root, {f"train/Dog/{name}": 7, "train/Dog/Ünïcode \N{CAT}.png": 8})
    images = load("image_folder", "train", root).images
    assert len(images) == 7
    assert {i.tobytes() for i in images} >= {np.asarray(picture(n)).tobytes() for n in (7, 8)}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("train/loose.png", r"train/loose.png is of no class: put it into the folder of its class"),
        ("train/cat/c.gif", r"train/cat/c.gif: images are read from .jpg, .jpeg, .png, .webp, .bm"),
        ("train/cat/c.TIFF", r"train/cat/c.TIFF: .*; convert it or take it out"),
        ("train/bird/note.txt", r"train has a class 'bird' that .*/test has not \(1 differ\)"),
        ("test/bird/a.png", r"test has a class 'bird' that .*/train has not \(1 differ\)"),
    ],
)
def test_what_would_be_missed_is_an_error(root, file, message):
    put(root, {file: 0 if file.endswith("png") else b"content"})
    with pytest.raises(ValueError, match=message):
        load("image_folder", "train", root)


def test_a_class_without_images_is_an_error(root):
    for split in "train", "test":
        (root / split / "empty").mkdir()
    with pytest.raises(ValueError, match=r"train/empty has no images \(.jpg, .jpeg, .*remove the"):
        load("image_folder", "train", root)


def test_a_name_that_is_nearly_the_same_is_pointed_at(root):
    (root / "test/cat").rename(root / "test/cats")
    with pytest.raises(ValueError, match=r"did you mean 'cats'\?"):
        load("image_folder", "train", root)


def test_a_class_that_only_one_split_has_is_an_error_with_both_ways_out(root):
    (root / "test/zebra").mkdir()
    message = rf"test has a class 'zebra' .*; add {root}/train/zebra, or remove it$"
    with pytest.raises(ValueError, match=message):
        load("image_folder", "train", root)


def test_test_stands_for_the_split_with_classes_whatever_it_is_called(root):
    (root / "test").rename(root / "val")
    assert len(load("image_folder", "test", root).labels) == 2
    put(root, {"test/0001.png": 0})  # as ImageNet has them: no labels
    assert len(load("image_folder", "test", root).labels) == 2
    assert len(load("image_folder", "val", root).labels) == 2


def test_a_folder_or_split_that_is_not_there_is_an_error_with_what_is(root, tmp_path):
    with pytest.raises(ValueError, match="image_folder needs a data_dir"):
        load("image_folder", "train")
    with pytest.raises(ValueError, match=r"unknown split 'trian': did you mean 'train'\?"):
        load("image_folder", "trian", root)
    with pytest.raises(
        DataNotFoundError,
        match=r"has no folder test or val or validation \(it has Dog, cat\); put images into "
        rf"{root}/train/test/CLASS, or give the data_dir that has test/CLASS/",
    ):
        load("image_folder", "test", root / "train")
    (tmp_path / "bare/train").mkdir(parents=True)
    with pytest.raises(ValueError, match="bare/train has no folders of classes"):
        load("image_folder", "train", tmp_path / "bare")


def test_a_part_of_a_split_has_images_of_every_class_and_parts_add_up(tmp_path):
    put(tmp_path, {f"train/{c}/{n}.png": 100 * c + n for c in range(4) for n in range(25)})
    whole_set = load("image_folder", "train", tmp_path)
    most, rest = (load("image_folder", f"train[{p}]", tmp_path) for p in (":80%", "80%:"))
    assert (len(most.labels), len(rest.labels)) == (80, 20)
    # Files lie class by class: the last fifth of them is a class that the rest would not know.
    assert set(most.labels) == set(rest.labels) == {0, 1, 2, 3}
    both = [image.tobytes() for part in (most, rest) for image in part.images]
    assert sorted(both) == sorted(image.tobytes() for image in whole_set.images)
    assert most.classes == rest.classes == whole_set.classes


def test_scanning_reads_no_image_and_holds_little(root):
    put(root, {f"train/cat/{n}.jpg": b"no image" for n in range(100)})
    folder = image_folder.scan(root, "train")
    assert len(folder) == 105
    assert folder.names.dtype.kind == "S"
    assert folder.path(0) == f"{root}/train/Dog/x.png"
    assert (
        open_examples("image_folder", "train", root)[0].image == Path(folder.path(0)).read_bytes()
    )


def test_more_images_than_memory_holds_are_an_error_before_they_are_read(root, monkeypatch):
    from convjax.data import checks

    monkeypatch.setattr(checks, "memory", lambda: 300)
    with pytest.raises(ValueError, match=r"train: 5x4x6x3 images take 0.0 GiB, .*as a stream, or"):
        load("image_folder", "train", root)


def test_options_are_no_part_of_what_is_streamed(root):
    with pytest.raises(ValueError, match="image_folder:64: a stream is told by its view"):
        open_examples("image_folder:64", "train", root)


@pytest.mark.skipif(not CIFAR.is_file(), reason="CIFAR-10 lies beside the repo, in ../shared/data")
def test_cifar_10_as_a_folder_has_its_classes_in_the_order_of_its_labels(tmp_path):
    wanted: dict[str, int] = {}
    with tarfile.open(CIFAR, "r|gz") as archive:
        for member in archive:
            split, _, name = member.name.removeprefix("cifarjpg/").partition("/")
            place = f"{split}/{name.partition('/')[0]}"
            if member.isreg() and split == "test" and wanted.get(place, 0) < 3:
                wanted[place] = wanted.get(place, 0) + 1
                archive.extract(member, tmp_path, filter="data")
            if len(wanted) == 10 and min(wanted.values()) == 3:
                break
    images, labels, classes = load("image_folder", "test", tmp_path / "cifarjpg")
    assert images.shape == (30, 32, 32, 3)
    assert labels.tolist() == [label for label in range(10) for _ in range(3)]
    # The page of CIFAR-10 lists its classes in this order.
    assert " ".join(classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    folder = image_folder.scan(tmp_path / "cifarjpg", "test")
    for index in 0, 17:
        expected = np.asarray(Image.open(folder.path(index)).convert("RGB"))
        np.testing.assert_array_equal(images[index], expected)
    np.testing.assert_array_equal(image_folder.read(folder, whole())[0].images, images)
