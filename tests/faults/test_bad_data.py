"""Data that are wrong are refused before the first step, in one line that says how to mend them."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convjax import conv, dense, flatten, relu, run, serial
from convjax.config import Data, Experiment, Model, Optimizer, UserError
from convjax.data import Dataset, image_folder, load, load_readable, open_examples, open_readable
from convjax.data.batches import batch_indices
from convjax.data.checks import checked
from convjax.data.dataset import ImageError
from convjax.data.shared import shared_files, shared_images
from convjax.data.stream import eval_batches, train_batches
from convjax.data.views import random_resized_crop, whole
from convjax.flags import guard
from convjax.runlog import RunLog

GOOD = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = np.arange(12, dtype=np.int32) % 3
CLASSES = ("ant", "bee", "cicada")
CHOSEN: dict[str, Dataset] = {}


def pictures(split, data_dir):
    """The data set of a user, which a test has made wrong."""
    return CHOSEN.get(split, CHOSEN["train"])


def tiny(classes):
    """A network that is compiled in a moment."""
    return serial(conv(2, 3, stride=2), relu, flatten, dense(classes))


def config(**data):
    return Experiment(
        epochs=1,
        batch_size=4,
        eval_batch_size=4,
        model=Model("test_bad_data:tiny"),
        data=Data(**{"name": "test_bad_data:pictures", **data}),
        optimizer=Optimizer("sgd", 0.01),
    )


def refusal(
    workdir: Path, images: Any = GOOD, labels: Any = LABELS, classes: Any = CLASSES, **data: Any
) -> str:
    """What a run of these data is refused with, before it has made its folder."""
    CHOSEN["train"] = Dataset(images, labels, classes)
    CHOSEN["test"] = Dataset(255 - GOOD, LABELS, CLASSES)
    with pytest.raises(UserError) as caught:
        run.train(config(**data), workdir / "run")
    assert not (workdir / "run").exists()
    text = str(caught.value)
    assert "\n" not in text
    return text


def advice(text):
    """The line of NumPy in a message."""
    return text.rpartition("give ")[2]


# -- Arrays of a user's own ------------------------------------------------------------------------

NCHW = GOOD.transpose(0, 3, 1, 2)
BINARY = GOOD // 128
MISTAKEN = {
    "numbers in 0 to 1": (GOOD / np.float32(255), GOOD),
    "numbers in -1 to 1": (GOOD / np.float32(127.5) - 1, GOOD),
    "numbers in 0 to 255": (GOOD.astype(np.int64), GOOD),
    "numbers in 0 to 255; give images.round": (GOOD.astype(np.float64), GOOD),
    "[N,channels,height,width]; give": (NCHW, GOOD),
    "[N,channels,height,width] of numbers in 0 to 1": (NCHW / np.float32(255), GOOD),
    "[N,channels,height,width]; ": (NCHW[:, :1], GOOD[..., :1]),
    "grey [N,height,width]": (GOOD[..., 0], GOOD[..., :1]),
    "grey [N,height,width] of numbers": (GOOD[..., 0] / np.float64(255), GOOD[..., :1]),
    "rows of pixels; give images.reshape(-1, 8, 8, 3)": (GOOD.reshape(12, -1), GOOD),
    "rows of pixels; give images.reshape(-1, 8, 8, 1)": (
        GOOD[..., 0].reshape(12, -1),
        GOOD[..., :1],
    ),
    "[height,width,channels,N]": (np.moveaxis(GOOD, 0, -1), GOOD),
    "truth values": (BINARY.astype(bool), BINARY * 255),
    "0 and 1, where white is 255": (BINARY, BINARY * 255),
    "numbers of 16 bits": (GOOD.astype(np.uint16) * 257, GOOD),
    "the fourth channel is 255 everywhere": (np.insert(GOOD, 3, 255, axis=-1), GOOD),
    "are a list, expected an array of NumPy": (list(GOOD), GOOD),
}


@pytest.mark.parametrize("looks", MISTAKEN)
def test_images_that_are_not_uint8_nhwc_are_refused_with_the_line_that_mends_them(tmp_path, looks):
    images, meant = MISTAKEN[looks]
    text = refusal(tmp_path, images)
    assert text.startswith("config.data: test_bad_data:pictures (train): images are")
    assert looks in text
    mended = eval(advice(text), {"images": images, "np": np})
    np.testing.assert_array_equal(mended, meant)
    assert mended.dtype == np.uint8
    checked(Dataset(mended, LABELS, CLASSES), "mended")  # and is no error


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((12, 8, 8, 3), np.nan, np.float32), "2304 are NaN or infinite"),
        ((GOOD - 120.0) / 60, r"from -2 to 2.25; give pixels of 0 to 255, as they are before"),
        (GOOD[:0], r"uint8\[0,8,8,3\], expected .*: there is not one pixel; is the split empty"),
        (GOOD[:, :, :0], "there is not one pixel"),
        (GOOD.astype("U3"), "they are no numbers"),
        (np.zeros(12, np.uint8), "like no images, with 1 axes"),
        (np.zeros((12, 2, 2, 2, 2), np.uint8), "like no images, with 5 axes"),
        (np.zeros((12, 7), np.uint8), "like no images, with 2 axes"),
    ],
)
def test_images_that_no_line_mends_are_refused_with_what_was_found(tmp_path, images, message):
    assert re.search(message, refusal(tmp_path, images))


def test_object_arrays_are_refused_and_never_stacked_by_themselves(tmp_path):
    same = np.empty(12, object)
    same[:] = list(GOOD)
    text = refusal(tmp_path, same)
    assert "they are objects; give np.stack(images)" in text
    mended = eval(advice(text), {"images": same, "np": np})
    np.testing.assert_array_equal(mended, GOOD)
    ragged = np.empty(12, object)
    ragged[:] = [image[: 4 + n % 2] for n, image in enumerate(GOOD)]
    assert "they are of several sizes; resize them" in refusal(tmp_path, ragged)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint8, np.int8])
def test_labels_of_another_type_are_refused_with_the_line_that_mends_them(tmp_path, dtype):
    labels = LABELS.astype(dtype)
    text = refusal(tmp_path, labels=labels)
    assert f"labels are {np.dtype(dtype)}[12], expected int32[N]: give " in text
    mended = eval(advice(text), {"labels": labels, "np": np})
    np.testing.assert_array_equal(mended, LABELS)
    assert mended.dtype == np.int32


@pytest.mark.parametrize("labels", [np.eye(3)[LABELS], LABELS[:, np.newaxis].astype(np.int64)])
def test_labels_of_two_axes_are_refused_with_the_line_that_mends_them(tmp_path, labels):
    mended = eval(advice(refusal(tmp_path, labels=labels)), {"labels": labels, "np": np})
    np.testing.assert_array_equal(mended, LABELS)
    assert mended.dtype == np.int32


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + np.int32(1), r"label 3 of image 2 is outside 0 to 2 \(3 classes; 4 .*labels - 1"),
        (LABELS - np.int32(1), r"label -1 of image 0 is outside .*: leave images without a label"),
        (
            LABELS * np.int32(50),
            r"label 50 of image 1 .*8 labels are outside\): every .*range\(3\)",
        ),
        (LABELS + np.float32(0.5), "0.5 is the number of no class"),
        (np.full(12, np.nan), "nan is the number of no class"),
        (np.array(CLASSES)[LABELS], r"<U6\[12\], .*np.unique\(labels, return_inverse=True\)"),
        (LABELS.astype(object), "give numbers, as np.unique"),
        (LABELS.tolist(), r"labels are a list, .* give np.asarray\(labels\)"),
        (LABELS[:11], "12 images but 11 labels"),
        (np.zeros((12, 3)), "give the number of one class for each image"),
        (np.int32(3), "labels are a int32, expected an array"),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_what_was_found(tmp_path, labels, message):
    assert re.search(message, refusal(tmp_path, labels=labels))


def test_truth_values_as_labels_are_refused_with_the_line_that_mends_them(tmp_path):
    labels = LABELS == 1
    mended = eval(advice(refusal(tmp_path, labels=labels)), {"labels": labels, "np": np})
    assert mended.dtype == np.int32
    assert mended.tolist() == [0, 1, 0] * 4


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("abc", "classes are a str, expected the name of each"),
        (range(3), "the name of class 0 is 0, expected text"),
        (("ant", "bee", "ant"), "two classes are named 'ant'"),
        (("ant", " ", "bee"), "the name of class 1 is ' ': rename it"),
        (("ant", "\x1b[2Jbee", "cicada"), r"the name of class 1 is '\\x1b\[2Jbee': rename"),
        (("ant", "bee\nerror: all is lost", "cicada"), r"'bee\\nerror: all is lost'"),
        (("ant", "bee", "tac\u202eada"), r"'tac\\u202eada'"),
        (("ant", "bee", "caf\udce9"), r"'caf\\udce9'"),
        (5, "classes are a int"),
    ],
)
def test_names_of_classes_that_are_no_plain_text_are_refused(tmp_path, classes, message):
    text = refusal(tmp_path, classes=classes)
    assert re.search(message, text)
    assert text.isprintable()


def test_a_class_without_an_image_to_train_on_is_refused_and_of_a_part_told(tmp_path, capsys):
    few = np.where(LABELS == 1, np.int32(0), LABELS)
    text = refusal(tmp_path, labels=few)
    assert "'train', in which 1 of 3 classes have no image: 'bee'; number labels from 0" in text
    assert "or give config.data.train='train[:100%]' if that is what you mean" in text
    CHOSEN["train[:100%]"] = CHOSEN["train"]
    run.train(config(train="train[:100%]"), dry_run=True, out=io.StringIO())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: config.data.train is 'train[:100%]', in which 1 of 3 classes")


def test_an_empty_test_split_and_a_batch_larger_than_the_data_are_refused(tmp_path):
    CHOSEN["none"] = Dataset(GOOD[:0], LABELS[:0], CLASSES)
    assert "there is not one pixel; is the split empty?" in refusal(tmp_path, test="none")
    larger = config()
    larger.batch_size = 13
    with pytest.raises(UserError, match=r"config.batch_size: .*13 for 12 images: .* from 1 to 12"):
        run.train(larger, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan"), 2])
def test_a_share_of_unreadable_images_outside_of_0_to_1_is_refused(tmp_path, share):
    assert "config.data.unreadable is" in refusal(tmp_path, unreadable=share)


def test_a_share_of_unreadable_images_where_there_are_no_files_is_refused(tmp_path):
    text = refusal(tmp_path, unreadable=0.5)
    assert "config.data.unreadable is 0.5: it is about files of images" in text


# -- Files of images -------------------------------------------------------------------------------


def photo(number, size=(40, 30)):
    """A photograph of sorts, unlike any other."""
    image = Image.effect_noise(size, 60).convert("RGB")
    ImageDraw.Draw(image).text((1, 1), str(number), "white")
    return image


def encoded(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def damaged():
    """Files that are no images, by what is wrong with them: content and the reason told."""
    jpeg, png = encoded(photo(0)), encoded(photo(0), "PNG")
    webp = encoded(photo(0), "WEBP")
    glass = photo(0).convert("RGBA")
    glass.putalpha(100)
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    film = encoded(photo(0), "WEBP", save_all=True, append_images=[photo(1)])
    return {
        "empty": (b"", "is empty"),
        "a cut JPEG": (jpeg[: len(jpeg) // 2], "cannot be decoded"),
        "a JPEG without its last bytes": (jpeg[:-20], "cannot be decoded"),
        "a cut PNG": (png[: len(png) // 2], "cannot be decoded"),
        "a cut WebP": (webp[: len(webp) // 2], "cannot be decoded"),
        "a text": (b"not found, sorry", "is no JPEG, PNG, WEBP or BMP file"),
        "a page of the web": (b"<!DOCTYPE html><html></html>" * 20, "is no JPEG"),
        "a GIF": (encoded(photo(0), "GIF"), "is no JPEG"),
        "16 bits": (encoded(deep, "PNG"), "more than 8 bits a channel"),
        "glass": (encoded(glass, "PNG"), "has transparent pixels"),
        "a film": (film, "is an animation"),
        "zeros": (bytes(5000), "is no JPEG"),
    }


DAMAGED = damaged()
VIEWS = {"view": "random_resized_crop(8)", "eval_view": "whole(8, 8)"}


def folder_of(root, count=20, splits=("train", "test")):
    """Photographs of two classes, the half each, in both splits."""
    for split in splits:
        for number in range(count):
            path = root / split / ("cat", "dog")[number % 2] / f"{number:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(f"{split}{number}")))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def root(photos, tmp_path):
    """A copy of the photographs, to be damaged."""
    return shutil.copytree(photos, tmp_path / "photos")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_ends_a_run_before_its_first_step(root, tmp_path, what, streamed):
    content, reason = DAMAGED[what]
    path = root / "train/cat/004.jpg"
    path.write_bytes(content)
    data = VIEWS if streamed else {}
    name = "image_folder" if streamed else "image_folder:8"
    text = refusal(tmp_path, name=name, dir=str(root), **data)
    assert f"{path} {reason}" in text or f"{path} has {reason}" in text
    # And so does one that is tested on.
    path.write_bytes(encoded(photo(0)))
    (root / "test/dog/011.jpg").write_bytes(content)
    assert "test/dog/011.jpg" in refusal(tmp_path, name=name, dir=str(root), **data)


def test_a_launcher_ends_with_status_2_and_one_plain_line(root, tmp_path):
    path = root / "train/cat" / "\x1b[31m004\nerror: nothing is wrong.jpg"
    path.write_bytes(DAMAGED["a cut JPEG"][0])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"),
            *("--config.data.name=image_folder:8", f"--config.data.dir={root}"),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"error: config.data: {root}/train/cat/ [31m004 error: nothing is wrong")
    assert line.isprintable()
    assert not (tmp_path / "run").exists()


def test_files_that_are_images_all_the_same_are_read(root):
    """Of another format than their name says, CMYK, palettes, grey, and with more bytes behind."""
    photo = Image.open(root / "train/cat/000.jpg")
    right = {
        "a.jpg": encoded(photo, "PNG"),
        "b.png": encoded(photo),
        "c.jpg": encoded(photo.convert("CMYK")),
        "d.png": encoded(photo.convert("P"), "PNG"),
        "e.jpg": encoded(photo.convert("L")),
        "f.jpg": encoded(photo) + b"what a camera leaves",
        "g.jpg": encoded(photo, "BMP"),
    }
    for name, content in right.items():
        (root / "train/cat" / name).write_bytes(content)
    examples, faults = open_readable("image_folder", "train", root)
    assert (len(examples), faults.errors) == (27, {})
    # a to g come behind the ten whose names are numbers.
    images = load("image_folder", "train", root).images[10:17]
    expected = [
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in right.values()
    ]
    np.testing.assert_array_equal(images, expected)


def test_the_ends_of_files_tell_what_is_damaged_among_many(tmp_path):
    """Of so many files not all are decoded; those that begin or end otherwise are."""
    content = [encoded(photo(number), "PNG" if number % 3 else "JPEG") for number in range(6)]
    (tmp_path / "train/a").mkdir(parents=True)
    for number in range(400):
        (tmp_path / f"train/a/{number:03}.jpg").write_bytes(content[number % 6])
    assert open_readable("image_folder", "train", tmp_path)[1].errors == {}
    # Every seventh image or so is decoded in any case: none of these.
    for number in (1, 2, 3, 4):
        (tmp_path / f"train/a/{number:03}.jpg").write_bytes(content[number][:-40])
    with pytest.raises(ImageError, match=r"^4 of 400 images .*, and unreadable=0 allows none"):
        open_readable("image_folder", "train", tmp_path)


def test_what_cannot_be_read_is_left_out_up_to_a_share_and_told(root, tmp_path, capsys):
    for number, what in ((4, "empty"), (9, "a cut JPEG")):
        path = root / f"train/{('cat', 'dog')[number % 2]}/{number:03}.jpg"
        path.write_bytes(DAMAGED[what][0])
    rest = shutil.copytree(root, tmp_path / "rest")
    for name in ("cat/004.jpg", "dog/009.jpg"):
        (rest / "train" / name).unlink()
    # In memory: the images that a folder without these files has.
    found, faults = load_readable("image_folder:8", "train", root, unreadable=0.1)
    expected = load("image_folder:8", "train", rest)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (faults.size, list(faults.errors)) == (20, [2, 14])
    # As a stream: the batches that a folder without these files has, and each image tested once.
    view = random_resized_crop(8)
    streams = [
        open_readable("image_folder", "train", root, unreadable=0.1)[0],
        open_examples("image_folder", "train", rest),
    ]
    for made in (
        lambda images: train_batches(images, view, seed=3, batch_size=5, start=2, stop=9),
        lambda images: eval_batches(images, whole(8, 8), batch_size=5),
    ):
        with made(streams[0]) as ours, made(streams[1]) as theirs:
            for batch, other in zip(ours, theirs, strict=True):
                for one, two in zip(batch, other, strict=True):
                    np.testing.assert_array_equal(one, two)
    # More than the share: how many, and which.
    for name in ("image_folder:8", "image_folder"):
        data = VIEWS if name == "image_folder" else {}
        text = refusal(tmp_path, name=name, dir=str(root), unreadable=0.09, **data)
        assert "2 of 20 images cannot be read, and unreadable=0.09 allows 1: " in text
        assert "cat/004.jpg is empty" in text
        assert "dog/009.jpg cannot be decoded" in text
        capsys.readouterr()
        allowed = config(name=name, dir=str(root), unreadable=0.1, **data)
        told = io.StringIO()
        run.train(allowed, dry_run=True, out=told)
        assert "train: 18 images" in told.getvalue()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: 2 of 20 images of {name} (train) cannot be read and are")


def test_a_split_of_which_nothing_can_be_read_is_refused_whatever_the_share(root, tmp_path):
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    for name, data in (("image_folder:8", {}), ("image_folder", VIEWS)):
        text = refusal(tmp_path, name=name, dir=str(root), unreadable=0.99, **data)
        assert "20 of 20 images cannot be read" in text


def test_a_jpeg_that_is_cut_anywhere_is_found_at_any_size_it_is_decoded_at(repeats, observed):
    """To look for damage, JPEG files are decoded at a fraction of their size."""
    from convjax.data.decode import decode
    from convjax.data.views import NUMBERS

    uniform = np.zeros(NUMBERS)

    def readable(content, view):
        try:
            decode(content, "x", view, uniform)
        except ImageError:
            return False
        return True

    count = 0
    for progressive in (False, True):
        content = encoded(photo(0, (200, 160)), quality=90, progressive=progressive)
        cuts = np.linspace(100, len(content), repeats(30, 500)).astype(int)
        for cut in [*cuts.tolist(), *range(len(content) - 12, len(content))]:
            found = [
                readable(content[:cut], view)
                for view in (whole(8, 8)._replace(draft=True), whole())
            ]
            assert found[0] == found[1], (progressive, cut, len(content))
            count += 1
        assert readable(content, whole())
    observed("a JPEG cut short", count, "found at every size it is decoded at")


class Damager(io.StringIO):
    """Where a run tells of itself; it damages files as soon as the run has begun to train."""

    def __init__(self, damage):
        super().__init__()
        self.damage = damage

    def write(self, text):
        if "compiled the train step" in text:
            self.damage()
        return super().write(text)


def test_a_file_that_is_damaged_while_training_ends_the_run_in_one_line_and_it_goes_on_once_mended(
    root, tmp_path, capsys
):
    chosen = config(name="image_folder", dir=str(root), **VIEWS)
    chosen.epochs, chosen.checkpoint.every_steps = 3, 2
    good = {path: path.read_bytes() for path in (root / "train").rglob("*.jpg")}

    def damage():
        for path, content in good.items():
            path.write_bytes(content[: len(content) // 2])

    def main(argv):
        run.train(chosen, tmp_path / "run", out=Damager(damage))

    assert guard(main, []) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(r"error: .*/train/(cat|dog)/\d+.jpg cannot be decoded: .*; copy it", line)
    record = RunLog(tmp_path / "run").record()
    assert record["status"] == "failed"
    assert "cannot be decoded" in record["error"]
    for path, content in good.items():
        path.write_bytes(content)
    run.train(chosen, tmp_path / "run", out=io.StringIO())
    record = RunLog(tmp_path / "run").record()
    assert (record["status"], record["final"]["count"]) == ("finished", 20)


def test_a_batch_larger_than_a_stream_is_refused(root, tmp_path):
    larger = config(name="image_folder", dir=str(root), **VIEWS)
    larger.batch_size = 21
    with pytest.raises(UserError, match=r"config.batch_size: .*21 for 20 images"):
        run.train(larger, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_gone_while_training_is_named(root):
    images = open_examples("image_folder", "train", root)
    path = root / "train/dog/007.jpg"
    path.unlink()
    with (
        train_batches(images, whole(8, 8), seed=0, batch_size=20, stop=1) as batches,
        pytest.raises(UserError, match=rf"^{path} cannot be read: No such file.*; is it still"),
    ):
        next(batches)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_the_images_is_refused_and_never_waited_for(root, tmp_path):
    os.mkfifo(root / "train/cat/aaa.jpg")
    for name, data in (("image_folder:8", {}), ("image_folder", VIEWS)):
        text = refusal(tmp_path, name=name, dir=str(root), **data)
        assert "aaa.jpg is no regular file: take it out" in text


# -- Images that splits share ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 3, 3), (1, 1, 1), (7, 7, 1), (2, 2, 2)])
def test_shared_images_are_those_whose_bytes_are_equal(shape):
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (500, *shape), np.uint8)
    other = rng.integers(0, 256, (300, *shape), np.uint8)
    other[::7] = one[rng.integers(0, 500, len(other[::7]))]
    # The same sum of bytes, but another image.
    other[1] = one[0]
    other[1].flat[:2] = other[1].flat[1::-1]
    known = {image.tobytes() for image in one}
    expected = [index for index, image in enumerate(other) if image.tobytes() in known]
    found = shared_images(one, other)
    assert (found.count, found.of) == (len(expected), 300)
    assert found.first is not None
    assert found.first[1] == expected[0]
    np.testing.assert_array_equal(one[found.first[0]], other[expected[0]])


def test_images_whose_sums_are_equal_by_design_are_no_false_alarm():
    """Two top bits that are flipped cancel each other in a sum of products modulo 2**64."""
    one = np.zeros((50, 8, 8, 1), np.uint8)
    other = one.copy()
    other.reshape(50, -1)[:, [7, 15]] = 128
    assert shared_images(one, other).count == 0
    assert shared_images(one, one).count == 50


@pytest.mark.parametrize("shape", [(60_000, 28, 28, 1), (50_000, 32, 32, 3)])
def test_looking_for_shared_images_takes_well_under_a_second(shape):
    one = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    start = time.process_time()
    assert shared_images(one, one[-10:]).count == 10
    assert time.process_time() - start < 0.5


def test_splits_that_share_images_are_told_of_with_the_first_pair(tmp_path, capsys):
    CHOSEN["train"] = Dataset(GOOD, LABELS, CLASSES)
    CHOSEN["test"] = Dataset(np.concatenate([255 - GOOD[:4], GOOD[7:9]]), LABELS[:6], CLASSES)
    CHOSEN["valid"] = Dataset(255 - GOOD[3:9], LABELS[:6], CLASSES)
    run.train(config(valid="valid"), dry_run=True, out=io.StringIO())
    assert capsys.readouterr().err.splitlines() == [
        "warning: 2 of 6 images of config.data.test are in config.data.train, too, such as number "
        "4, which is number 7: a result on them is too good; take them out of one of the two",
        "warning: 1 of 6 images of config.data.test are in config.data.valid, too, such as number "
        "3, which is number 0: a result on them is too good; take them out of one of the two",
    ]
    CHOSEN.pop("valid")


def test_files_that_splits_share_are_told_of_by_their_paths(root, capsys):
    for name in ("cat/002.jpg", "dog/013.jpg"):
        shutil.copy(root / "train" / name, root / "test" / name.replace(".", "-copy."))
    # Of the same size, and another image.
    content = bytearray((root / "train/cat/004.jpg").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "test/cat/one-bit.jpg").write_bytes(content)
    found = shared_files(*(image_folder.scan(root, split) for split in ("train", "test")))
    assert (found.count, found.of) == (2, 23)
    run.train(config(name="image_folder", dir=str(root), **VIEWS), dry_run=True, out=io.StringIO())
    (line,) = capsys.readouterr().err.splitlines()
    copy, first = f"{root}/test/cat/002-copy.jpg", f"{root}/train/cat/002.jpg"
    assert (
        f"2 of 23 images of config.data.test are in config.data.train, too, such as {copy}" in line
    )
    assert f"which is {first}: a result" in line


def test_the_bundled_images_share_none(capsys):
    run.train(Experiment(), dry_run=True, out=io.StringIO())
    assert capsys.readouterr().err == ""


def test_order_of_images_does_not_depend_on_what_was_left_out_but_its_number():
    """What makes leaving out before the first step exact: the order is one of numbers."""
    np.testing.assert_array_equal(
        np.sort(np.concatenate([batch_indices(0, 0, step, 18, 6) for step in range(3)])),
        np.arange(18),
    )
