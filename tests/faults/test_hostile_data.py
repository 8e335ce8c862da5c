"""Data of strangers run no code, take no more than they should, and write nothing anywhere.

A canary is a file that hostile content makes, if anything ever runs it; each test that expects none
has seen that its content does make one where it is run.
"""

import ast
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from mutations import mutated, mutated_json
from PIL import Image
from png_files import png_of
from test_data_prepare import archive_of, served, server  # noqa: F401
from test_data_tfds import write

from convjax.config import UserError
from convjax.data import (
    DataNotFoundError,
    cifar,
    load,
    open_examples,
    open_readable,
    prepare,
    write_idx,
)
from convjax.data.checks import checked
from convjax.data.dataset import DataError, FileError, ImageError
from convjax.data.stream import eval_batches
from convjax.data.views import whole
from convjax.flags import guard

PACKAGE = Path(cifar.__file__).parents[1]


def tree(folder):
    """All that lies in a folder: kinds, sizes and contents by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_mtime_ns, content)
    return found


class Canary:
    """What makes its file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path):
    """Where a canary would appear; none does, and nothing in the folder changes."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def refused(name, split, root):
    """The error of ours that loading ends in; the folder is left as it was."""
    before = tree(root)
    with pytest.raises((ValueError, OSError)) as caught:
        load(name, split, root)
    assert tree(root) == before
    return caught.value


# -- Nothing is run --------------------------------------------------------------------------------

RUNS_CODE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}


def test_no_module_of_the_package_knows_a_pickle_or_runs_what_it_reads():
    """Names that are looked up are the only code that is run: of a config, which is Python."""
    looked_at = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            assert not RUNS_CODE & {*names}, f"{path} imports {names}"
            if not isinstance(node, ast.Call):
                continue
            looked_at += 1
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "np.fromregex"), f"{path}: {called}"
            if called in ("np.load", "numpy.load"):
                chosen = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert chosen.get("allow_pickle") == "False", f"{path}: np.load"
    assert looked_at > 1000


def test_pickles_and_object_arrays_under_any_name_run_nothing(tmp_path, canary):
    content = pickle.dumps(Canary(canary))
    pickle.loads(content)
    assert canary.exists()  # That is what it does where it is run.
    canary.unlink()
    array = io.BytesIO()
    np.save(array, np.array([Canary(canary)], object), allow_pickle=True)
    root = tmp_path / "data"
    places = {
        "cifar10": ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"],
        "cifar100": ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"],
        "mnist": ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"],
        "kmnist": ["kmnist/train-images-idx3-ubyte.gz", "kmnist/train-labels-idx1-ubyte.gz"],
        "image_folder": ["train/a/x.jpg", "train/a/y.png"],
    }
    for hostile in (content, array.getvalue(), gzip.compress(content)):
        for name, files in places.items():
            for file in files:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_bytes(hostile)
                if name == "cifar100":
                    (root / "cifar-100-binary/fine_label_names.txt").write_bytes(hostile)
            refused(name, "train", root)
            assert not canary.exists()
    message = str(refused("cifar10", "train", root))
    assert "cifar-10-batches-py, which holds pickles and is not read" in message


def test_a_description_that_names_code_of_its_own_runs_none_of_it(tmp_path, canary, monkeypatch):
    """TFDS imports the module of the class that a feature names."""
    from tensorflow_datasets.core.features import feature

    (tmp_path / "hostile_features.py").write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="Unrecognized FeatureConnector"):
        feature.FeatureConnector.from_json({"pythonClassName": "hostile_features.Image"})
    assert canary.exists()  # That is what TFDS does.
    canary.unlink()
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    path = root / "insects/1.0.0/features.json"
    description = json.loads(path.read_text())
    parts = description["featuresDict"]["features"]
    for change in (
        {**description, "pythonClassName": "hostile_features.Image"},
        {**description, "python_class_name": "hostile_features.Image"},
        {"type": "hostile_features.Image", "content": {}},
        {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": {"image": {"type": "hostile_features.Image", "content": "{}"}},
        },
        {
            **description,
            "featuresDict": {
                "features": {
                    **parts,
                    "image": {**parts["image"], "pythonClassName": "hostile_features.Image"},
                }
            },
        },
    ):
        sys.modules.pop("hostile_features", None)
        path.write_text(json.dumps(change))
        message = str(refused("insects", "train", root))
        assert re.search(r"features.json names code that is not of TFDS, 'hostile_fea", message)
        assert not canary.exists()
    for other in (
        "os.path",
        "tensorflow_datasets.core.features.x;y",
        "tensorflow_datasets.scripts.x",
    ):
        path.write_text(json.dumps({**description, "pythonClassName": other}))
        assert "which is not run" in str(refused("insects", "train", root))


WATCHED = """
import json, os, sys
import PIL.Image
from convjax.data import load, open_readable
import convjax.data.stream

seen = []

def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "pickle.", "os.exec", "os.system", "os.fork")):
        seen.append(event)
    if event == "open" and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(f"open {arguments[0]}")

loads = json.loads(sys.argv[1])
load(*loads[0])  # What TFDS loads at first asks the system what it is.
sys.addaudithook(watch)
open(os.devnull, "w").close()
for name, split, folder in loads:
    try:
        load(name, split, folder)
        if name == "image_folder":
            images, _ = open_readable(name, split, folder, unreadable=0.5)
            view = convjax.data.views.whole(8, 8)
            with convjax.data.stream.eval_batches(images, view, batch_size=2) as batches:
                list(batches)
    except (ValueError, OSError):
        pass
print(json.dumps(seen))
"""


def test_reading_data_opens_nothing_for_writing_no_socket_no_process_and_no_pickle(tmp_path):
    """By what Python itself tells of each: good data of every kind, and pickles in their places."""
    good, bad, written = tmp_path / "good", tmp_path / "bad", tmp_path / "written"
    written.mkdir()
    write(written)
    list(kinds(make(good)))
    (good / "cifar-10-binary.tar.gz").write_bytes(archive_of("cifar10")[0])
    picture(good / "train/a/x.png")
    for path in good.rglob("*"):
        if path.is_file():
            (bad / path.relative_to(good)).parent.mkdir(parents=True, exist_ok=True)
            (bad / path.relative_to(good)).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    loads = [("insects", "train", str(written)), ("fashion_mini", "test", None)]
    for root in (good, bad):
        loads += [(name, "train", str(root)) for name in ("mnist", "cifar10", "image_folder")]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(loads)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [f"open {os.devnull}"]  # It does see what there is to see.
    assert not (tmp_path / "canary").exists()


# -- Nothing is written, nothing is left -----------------------------------------------------------


def hostile_members(folder):
    """Members of an archive that point elsewhere, each under a name that is asked for or not."""
    for name in ("../canary", "/etc/../canary", f"{folder}/../../canary", "..", f"{folder}/.."):
        yield name, tarfile.REGTYPE, ""
    for kind, target in (
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "../canary"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.DIRTYPE, ""),
    ):
        yield f"{folder}/test_batch.bin", kind, target
        yield "../canary", kind, target


def test_an_archive_whose_members_point_elsewhere_writes_nothing(tmp_path, canary):
    root = tmp_path / "data"
    place = root / "cifar-10-binary.tar.gz"
    root.mkdir()
    good, splits = archive_of("cifar10")
    for number, (name, kind, target) in enumerate(hostile_members("cifar-10-batches-bin")):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            content = b"x" if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            with tarfile.open(fileobj=io.BytesIO(good)) as others:
                # In every second archive, nothing else goes by that name.
                for other in others:
                    if number % 2 or not other.name.endswith("test_batch.bin"):
                        archive.addfile(other, others.extractfile(other))
        place.write_bytes(packed.getvalue())
        before = tree(tmp_path)
        np.testing.assert_array_equal(load("cifar10", "train", root).images, splits[0][0])
        if number % 2:
            np.testing.assert_array_equal(load("cifar10", "test", root).images, splits[1][0])
        else:
            assert "has no cifar-10-batches-bin/test_batch.bin" in str(
                refused("cifar10", "test", root)
            )
        assert tree(tmp_path) == before
        assert not canary.exists()


def test_the_archive_of_emnist_gives_its_own_four_files_and_no_other(
    server,  # noqa: F811
    tmp_path,
    monkeypatch,
    canary,
):
    packed, numbers = io.BytesIO(), np.arange(1, 5, dtype=np.uint8)
    with zipfile.ZipFile(packed, "w") as archive:
        for split in ("train", "test"):
            for kind, array in (
                ("images-idx3", np.zeros((4, 3, 2), np.uint8)),
                ("labels-idx1", numbers),
            ):
                name = f"emnist-letters-{split}-{kind}-ubyte.gz"
                write_idx(tmp_path / name, array)
                archive.write(tmp_path / name, f"gzip/{name}")
        link = zipfile.ZipInfo("gzip/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../../canary")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("../../canary", "/canary", "gzip/../../../canary"):
                archive.writestr(name, "x")
    monkeypatch.setattr(prepare, "_EMNIST", served(server, "gzip.zip", packed.getvalue()))
    prepare.prepare("emnist/letters", tmp_path / "data/set")
    made = [path for path in (tmp_path / "data").rglob("*") if not path.is_dir()]
    assert len(made) == 5
    assert {path.parent for path in made} == {tmp_path / "data/set/emnist"}
    assert not any(path.is_symlink() for path in made)


def picture(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def test_links_are_followed_once_and_loops_end(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    picture(root / "train/cat/a.png", 1)
    picture(elsewhere / "b.png", 2)
    # Folders and files may lie elsewhere.
    (root / "train/dog").symlink_to(elsewhere)
    (root / "train/cat/b.png").symlink_to(elsewhere / "b.png")
    assert load("image_folder", "train", root).labels.tolist() == [0, 0, 1]
    loops = {
        "train/cat/self": "train/cat",
        "train/cat/up": "train",
        "train/cat/further/up": ".",
        "train/cat/twin": "train/dog",
        "train/cow": "train/cat",
    }
    for name, target in loops.items():
        link = root / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(root / target)
        message = str(refused("image_folder", "train", root))
        assert re.search(r"are the same folder, .*: remove the link$", message)
        link.unlink()
    (root / "train/cat/further").rmdir()
    # A chain longer than the system follows, and links to themselves and to nowhere.
    for name in ("self.png", "nowhere.png"):
        (root / f"train/cat/{name}").symlink_to(
            root / f"train/cat/{name}s"[: -("self" in name) or None]
        )
        error = refused("image_folder", "train", root)
        assert isinstance(error, FileError)
        assert f"{name} cannot be read: " in str(error)
        (root / f"train/cat/{name}").unlink()
    assert len(load("image_folder", "train", root).labels) == 3


NAMES = [
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[31mred",
    "cat\nerror: the disk was formatted",
    "cat\r",
    "\x00".replace("\x00", "\x9b") + "c1",
    "cat\u202egpj",
    "cat\u2028dog",
    os.fsdecode(b"caf\xe9"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_a_terminal_would_obey_is_refused_as_a_class_and_harmless_as_a_file(
    tmp_path, name, capsys
):
    def main(argv):
        load("image_folder", "train", tmp_path / argv[0])

    picture(tmp_path / "classes/train" / name / "a.png")
    picture(tmp_path / "files/train/cat" / f"{name}.png")
    (tmp_path / "files/train/cat" / f"{name}.png").write_bytes(b"no image")
    picture(tmp_path / f"files/train/cat/a{name}b/a.png")
    with pytest.raises(DataError, match=r"the name of class 0 is '.*': rename it") as caught:
        load("image_folder", "train", tmp_path / "classes")
    assert ascii(name) in str(caught.value)
    with pytest.raises(DataError, match="the name of class 0 is"):
        open_examples("image_folder", "train", tmp_path / "classes")
    for folder in ("classes", "files"):
        assert guard(main, [folder]) == 2
        (line,) = capsys.readouterr().err.removesuffix("\n").split("\n")
        assert line.startswith("error: ")
        assert line.isprintable()


def test_a_name_that_a_browser_would_obey_is_plain_text(tmp_path):
    name = "<script>alert(1)<%2fscript>&'\""
    picture(tmp_path / "train" / name / "a.png")
    assert load("image_folder", "train", tmp_path).classes == (name,)


@pytest.mark.parametrize("name", ["../train", "..", "a/../../b", "/etc", "train/../..", "\0"])
def test_a_split_or_a_data_set_whose_name_is_a_path_is_refused(tmp_path, name):
    picture(tmp_path / "data/train/cat/a.png")
    before = tree(tmp_path)
    for data_set, split in (("image_folder", name), (name, "train"), (f"tfds:{name}", "train")):
        refused(data_set, split, tmp_path / "data")
    assert tree(tmp_path) == before


# -- No more memory than there should be -----------------------------------------------------------


def zeros_packed(count):
    """So many MiB of zeros by gzip, in members of 64 MiB."""
    return gzip.compress(bytes(1 << 26), 9) * (count // 64)


def bombs(root):
    """Files that unpack, or claim to, to more than there should be: name and split to load."""
    root.mkdir()

    def put(name, content):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    # IDX: 8 GiB of zeros, claimed and there.
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", 1 << 13, 1 << 10, 1 << 10)
    put("mnist/train-images-idx3-ubyte.gz", gzip.compress(header) + zeros_packed(8192))
    put("mnist/train-labels-idx1-ubyte.gz", gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 0])))
    yield "mnist", "expected at most"
    # A tar of 8 GiB in a member that nobody asks for, in one that is asked for, and in holes.
    for number, name in enumerate(("junk", "cifar-10-batches-bin/test_batch.bin")):
        member = tarfile.TarInfo(name)
        member.size = 8 << 30
        packed = gzip.compress(member.tobuf(tarfile.GNU_FORMAT)) + zeros_packed(8192)
        put(f"tar{number}/cifar-10-binary.tar.gz", packed)
        yield f"cifar10@tar{number}", "is damaged"
    sparse = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    sparse.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"77777777777\0"  # the real size, 8 GiB less a byte, all of it a hole
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    put("holes/cifar-10-binary.tar.gz", gzip.compress(bytes(block) + bytes(10240)))
    yield "cifar10@holes", "is damaged"
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    put("long/cifar-10-binary.tar.gz", gzip.compress(long.tobuf()) + zeros_packed(1024))
    yield "cifar10@long", "is damaged"
    # Pictures.
    put("claims/train/a/x.png", png_of(1 << 16, 1 << 16))
    put("bomb/train/a/x.png", png_of(30000, 30000, depth=1, colour=0, rows=bytes(3751 * 30000)))
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    content = bytearray(jpeg.getvalue())
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    put("jpeg/train/a/x.jpg", bytes(content))
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    put("bmp/train/a/x.bmp", bmp)
    for name in ("claims", "bomb", "jpeg", "bmp"):
        yield f"image_folder@{name}", "claims"
    put("text/train/a/x.png", png_with_text())
    yield "image_folder@text", "cannot be decoded"
    (root / "large/train/a").mkdir(parents=True)
    with open(root / "large/train/a/x.jpg", "wb") as file:
        file.truncate(1 << 40)  # a file that is one hole
    yield "image_folder@large", "expected at most"
    # Notes of TFDS about its downloads.
    (root / "downloads").mkdir()
    put("downloads/x.INFO", b"[" * 100_000)
    yield "kmnist", "no JSON"
    (root / "notes/downloads").mkdir(parents=True)
    with open(root / "notes/downloads/x.INFO", "wb") as file:
        file.truncate(1 << 40)
    yield "kmnist@notes", "expected at most"


def png_with_text():
    """A PNG whose note is 1 GiB of zeros."""
    note = b"Comment\0\0" + zlib.compress(bytes(1 << 28), 9)
    chunk = struct.pack(">I", len(note)) + b"zTXt" + note
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + note))
    whole = png_of(2, 2, rows=bytes(14))
    return whole[:33] + chunk + whole[33:]


def test_bombs_are_refused_within_little_memory(tmp_path, observed):
    """In a process of its own, with 1 GiB of address space, of which it needs a part."""
    root = tmp_path / "data"
    expected = list(bombs(root))
    code = """
    import json, resource, sys, time, warnings
    from convjax.data import load
    import convjax.data.decode

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    for name in json.loads(sys.argv[1]):
        data_set, _, folder = name.partition("@")
        start = time.process_time()
        try:
            split = "test" if data_set == "cifar10" else "train"
            images = load(data_set, split, sys.argv[2] + folder)
            what = f"no error: {images.images.shape}"
        except (ValueError, OSError) as error:
            what = f"{type(error).__name__}: {error}"
        found.append((what, time.process_time() - start))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([found, (after - before) / 1024]))
    """
    names = json.dumps([name for name, _ in expected])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), names, f"{root}/"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found, grown = json.loads(run.stdout)
    for (name, message), (what, seconds) in zip(expected, found, strict=True):
        assert message in what, (name, what)
        assert "MemoryError" not in what, name
        assert seconds < 5, (name, seconds)
    assert grown < 600, f"{grown} MiB more at the most"
    observed("bombs: IDX, tar, PNG, JPEG, BMP, notes", len(found), "refused within 1 GiB")


def test_records_that_claim_more_than_there_is_are_refused(tmp_path, observed):
    write(tmp_path)
    path = tmp_path / "insects/1.0.0/dataset_info.json"
    good = json.loads(path.read_text())
    claims = [10**12, 2**62, 2**70, -5, 11, "many", None, [3]]
    for claim in claims:
        for key in ("shardLengths", "numBytes", "filepathTemplate", "name"):
            changed = json.loads(json.dumps(good))
            for split in changed["splits"]:
                split[key] = [str(claim)] if key == "shardLengths" else claim
            path.write_text(json.dumps(changed))
            try:
                images = load("insects", "train", tmp_path).images
            except (ValueError, OSError):
                continue
            assert images.shape == (10, 6, 5, 3)
    for template in ("../../../../etc/passwd", "/etc/passwd", "{DATASET}/../../x", "{x}"):
        changed = json.loads(json.dumps(good))
        for split in changed["splits"]:
            split["filepathTemplate"] = template
        path.write_text(json.dumps(changed))
        refused("insects", "train", tmp_path)
    observed("records that claim other numbers, names and places", 4 * len(claims) + 4)


def test_images_in_records_that_are_bombs_are_refused(tmp_path):
    root, other = tmp_path / "data", tmp_path / "picture.png"
    root.mkdir()
    Image.new("RGB", (5, 6)).save(other)
    write(root, splits={"train": [{"image": str(other), "label": 0, "id": "a"}]})
    (shard,) = (root / "insects/1.0.0").glob("*train*")
    content = shard.read_bytes()
    stored = other.read_bytes()
    assert content.count(stored[:33]) == 1  # as it is, and not compressed
    at = content.index(stored[:33])
    larger = content[:at] + png_of(60000, 60000)[:33] + content[at + 33 :]
    shard.write_bytes(larger)
    # Its checksum is wrong, too: either may be told.
    assert isinstance(refused("insects", "train", root), DataError)


# -- Whatever chance makes of them -----------------------------------------------------------------


def packed(content):
    return gzip.compress(content, 1, mtime=0)


def with_right_sums(content):
    """A PNG whose chunks have the checksums of what is in them now."""
    content, at = bytearray(content), 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(content)


def photo(form, **options):
    file = io.BytesIO()
    y, x = np.mgrid[:40, :60]
    pixels = np.stack([4 * x, 6 * y, 255 - 2 * x - 3 * y], -1).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def kinds(root):
    """By name: the data set, the file that is mutated, its good content, and what wraps it."""
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5), np.uint8)
    write_idx(root / "train-images-idx3-ubyte", images)
    write_idx(root / "train-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    for name in ("images-idx3", "labels-idx1"):
        path = root / f"train-{name}-ubyte"
        yield f"IDX {name}", "mnist", path, path.read_bytes(), bytes, "train"
    zipped = root / "zipped"
    zipped.mkdir()
    for name in ("images-idx3", "labels-idx1"):
        content = (root / f"train-{name}-ubyte").read_bytes()
        path = zipped / f"train-{name}-ubyte.gz"
        path.write_bytes(packed(content))
        yield f"IDX {name}, gzip", "mnist", path, packed(content), bytes, "train"
    archive, _ = archive_of("cifar10")
    path = root / "tar/cifar-10-binary.tar.gz"
    path.parent.mkdir()
    yield "CIFAR archive, gzip", "cifar10", path, packed(gzip.decompress(archive)), bytes, "test"
    yield "CIFAR archive, tar", "cifar10", path, gzip.decompress(archive), packed, "test"
    folder = root / "bin/cifar-10-batches-bin"
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            content = members.extractfile(member)
            assert content is not None
            (folder / Path(member.name).name).write_bytes(content.read())
    for name in ("test_batch.bin", "batches.meta.txt"):
        yield f"CIFAR {name}", "cifar10", folder / name, (folder / name).read_bytes(), bytes, "test"
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {"quality": 80}),
        ("JPEG", {"quality": 80, "progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ):
        name = "-".join([kind, *options])
        path = root / f"{name}/train/a/x.png"
        path.parent.mkdir(parents=True)
        yield name, "image_folder", path, photo(kind, **options), bytes, "train"
        if kind == "PNG":
            yield "PNG, right sums", "image_folder", path, photo(kind), with_right_sums, "train"
    notes = root / "notes/downloads"
    notes.mkdir(parents=True)
    content = json.dumps({"dataset_names": ["cifar10"], "original_fname": path.name}).encode()
    (notes / "x").write_bytes(b"")
    yield "a note of TFDS", "cifar10", notes / "x.INFO", content, bytes, "test"
    records = root / "records"
    records.mkdir()
    write(records)
    for path in sorted((records / "insects/1.0.0").iterdir()):
        if "test" not in path.name:
            yield f"TFDS {path.name[:14]}", "insects", path, path.read_bytes(), bytes, "train"


def make(folder):
    folder.mkdir()
    return folder


def root_of(path, data_set):
    """The folder to load from, for a file of that data set."""
    depth = {"insects": 2, "image_folder": 2}.get(data_set, 0)
    if path.parent.name in ("cifar-10-batches-bin", "downloads"):
        depth = 1
    return path.parents[depth]


class Late(Exception):
    """What took too long."""


@pytest.fixture
def in_time():
    """in_time(seconds): raises Late in the main thread after that long."""

    def late(number, frame):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def assert_valid(dataset):
    """A data set by all that its docstring says."""
    checked(dataset, "mutated")
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert 0 <= dataset.labels.min() <= dataset.labels.max() < len(dataset.classes)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd notes in pictures.
def test_mutated_files_give_an_error_of_ours_or_valid_arrays(tmp_path, repeats, observed, in_time):
    (tmp_path / "data").mkdir()
    each = repeats(12, 500)
    counts, valid = {}, 0
    for name, data_set, path, good, wrap, split in list(kinds(tmp_path / "data")):
        path.write_bytes(wrap(good))
        root, outside = root_of(path, data_set), None
        for seed in range(each):
            change = mutated_json if path.suffix == ".json" and seed % 2 else mutated
            path.write_bytes(wrap(change(good, seed)))
            if seed % 50 == 0:
                outside = tree(tmp_path)
            in_time(20)
            try:
                dataset, error = load(data_set, split, root), None
            except Exception as caught:
                dataset, error = None, caught
            in_time(0)
            if dataset is not None:
                assert_valid(dataset)
                valid += 1
            else:  # Ours, and not an accident of the same type.
                ours = isinstance(error, (UserError, DataNotFoundError))
                split_is_gone = re.match(r"unknown split|\[.*\] is no part of", str(error))
                assert ours or split_is_gone, (name, seed, error)
                assert isinstance(error, (ValueError, OSError)), (name, seed, error)
            if seed % 50 == 0:
                assert tree(tmp_path) == outside
            counts[name] = counts.get(name, 0) + 1
        path.write_bytes(wrap(good))
    # Of a byte that is changed, most formats know nothing: some are as good as before.
    assert 0 < valid < sum(counts.values())
    observed(
        "mutated data files",
        sum(counts.values()),
        f"{len(counts)} kinds; {valid} gave valid arrays",
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_streams_of_mutated_files_give_an_error_of_ours_or_valid_images(
    tmp_path, repeats, observed, in_time
):
    content = photo("JPEG"), photo("PNG")
    folder = tmp_path / "train/a"
    folder.mkdir(parents=True)
    size = repeats(40, 1000)
    for number in range(size):
        (folder / f"{number:04}.jpg").write_bytes(mutated(content[number % 2], 10_000 + number))
    in_time(60)
    images, faults = open_readable("image_folder", "train", tmp_path, unreadable=0.99)
    with eval_batches(images, whole(8, 8), batch_size=16) as batches:
        seen = sum(len(np.flatnonzero(batch.mask)) for batch in batches if batch.mask is not None)
    assert seen == len(images) == size - len(faults.errors)
    assert 0 < len(faults.errors) < size
    with pytest.raises(ImageError, match=f"^{len(faults.errors)} of {size} images"):
        open_readable(
            "image_folder", "train", tmp_path, unreadable=len(faults.errors) / size - 0.01
        )
    observed("mutated images in a stream", size, f"{len(faults.errors)} left out, the others read")
