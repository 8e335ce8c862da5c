"""CIFAR from its binary files, and data sets downloaded from a server that the test runs itself."""

import hashlib
import http.server
import io
import socket
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from convjax.data import DataNotFoundError, cifar, load, prepare, write_idx
from convjax.data.downloads import DownloadError, File, fetch
from convjax.data.sources import open_examples

RNG = np.random.default_rng(0)
NAMES = [f"class{n}" for n in range(10)]


def records(count, labels, seed):
    """Images and labels, and the bytes in which a binary file has them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    fine = rng.integers(0, 10, count, np.uint8)
    content = b""
    for image, label in zip(images, fine):
        content += bytes([19] * (labels - 1) + [label])
        for channel in range(3):
            content += image[:, :, channel].tobytes()
    return images, fine, content


def archive_of(name, **changes):
    """A small CIFAR archive, and the images and labels of its two splits."""
    variant = cifar.FAMILY[name]
    contents, splits = {variant.names: "\n".join([*NAMES, ""]).encode()}, []
    for files in variant.files:
        parts = [records(3, variant.label_bytes, zlib.crc32(file.encode())) for file in files]
        contents |= {file: part[2] for file, part in zip(files, parts)}
        splits.append([np.concatenate(arrays) for arrays in list(zip(*parts))[:2]])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file, content in (contents | changes).items():
            member = tarfile.TarInfo(f"{variant.folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue(), splits


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("place", [".", "{name}", "{name}/unpacked", "unpacked"])
def test_binary_files_are_read_packed_and_unpacked(tmp_path, name, place):
    content, splits = archive_of(name)
    variant = cifar.FAMILY[name]
    folder = tmp_path / place.format(name=name).removesuffix("unpacked")
    folder.mkdir(exist_ok=True)
    if place.endswith("unpacked"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(folder, filter="data")
    else:
        (folder / variant.archive).write_bytes(content)
    for split, (images, labels) in zip(("train", "test"), splits):
        dataset = load(name, split, tmp_path)
        np.testing.assert_array_equal(dataset.images, images)
        np.testing.assert_array_equal(dataset.labels, labels)
        assert dataset.labels.dtype == np.int32
        assert dataset.classes == tuple(NAMES)
        assert len(open_examples(name, split, tmp_path)) == len(labels)
    assert len(load(name, "train[:2]", tmp_path).labels) == 2


def test_an_archive_among_the_downloads_of_tfds_is_found(tmp_path):
    from tensorflow_datasets.core.download import checksums, resource

    content, splits = archive_of("cifar10")
    url = "https://www.example.org/cifar-10-binary.tar.gz"
    (tmp_path / "a").write_bytes(content)
    info = checksums.compute_url_info(tmp_path / "a")
    path = tmp_path / "downloads" / resource.get_dl_fname(url, info.checksum)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    resource.write_info_file(url, path, "cifar10", "cifar-10-binary.tar.gz", info)
    np.testing.assert_array_equal(load("cifar10", "test", tmp_path).images, splits[1][0])


def test_a_damaged_archive_is_an_error_that_names_it(tmp_path):
    content, _ = archive_of("cifar10")
    path = tmp_path / "cifar-10-binary.tar.gz"
    for damaged in content[: len(content) // 2], content[:2000] + b"xxxx" + content[2004:], b"":
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path} is damaged \(.*copy or download it again"):
            load("cifar10", "test", tmp_path)
    path.write_bytes(archive_of("cifar10", **{"test_batch.bin": b"x" * 3072})[0])
    with pytest.raises(
        ValueError, match=r"test_batch.bin in .* has 3072 bytes, no multiple of 3073"
    ):
        load("cifar10", "test", tmp_path)
    path.write_bytes(archive_of("cifar100")[0])
    with pytest.raises(ValueError, match=r"has no cifar-10-batches-bin/test_batch.bin: it is not"):
        load("cifar10", "test", tmp_path)


def test_an_archive_writes_nothing_wherever_its_names_point(tmp_path):
    content, splits = archive_of("cifar10", **{"../../../evil.txt": b"x", "/evil.txt": b"x"})
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/cifar-10-binary.tar.gz").write_bytes(content)
    np.testing.assert_array_equal(load("cifar10", "train", tmp_path).images, splits[0][0])
    assert [path.name for path in tmp_path.rglob("*")] == ["cifar10", "cifar-10-binary.tar.gz"]


def test_pickles_are_not_read_and_the_error_says_what_to_get(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataNotFoundError) as caught:
        load("cifar10", "train", tmp_path)
    message = str(caught.value)
    assert "cifar-10-batches-py, which holds pickles and is not read" in message
    assert f"`python -m convjax.data.prepare cifar10 {tmp_path}`" in message
    assert "\n" not in message


# -- Downloads -------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """A server of files, by name, of which it may send no more than `cut` bytes.

    asked: the paths that were asked for.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cut])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def served(server, name, content):
    server.files[name] = content
    return File(f"{server.url}/{name}", len(content), hashlib.sha256(content).hexdigest())


def test_what_is_prepared_is_what_is_loaded(server, tmp_path, monkeypatch):
    content, splits = archive_of("cifar10")
    file = served(server, "cifar-10-binary.tar.gz", content)
    monkeypatch.setitem(prepare._CIFAR, "cifar10", file)
    for _ in range(2):  # What is there and right is not downloaded again.
        assert prepare.prepare("cifar10", tmp_path) == tmp_path / "cifar10"
    assert server.asked == ["/cifar-10-binary.tar.gz"]
    np.testing.assert_array_equal(load("cifar10", "test", tmp_path).images, splits[1][0])


def idx_files(stems, count=4):
    """IDX files by name, with the images and labels in them."""
    files = {}
    for stem in stems:
        images = RNG.integers(0, 256, (count, 3, 2), np.uint8)
        labels = RNG.integers(1, 10, count, np.uint8)
        for kind, array in ("images-idx3", images), ("labels-idx1", labels):
            files[f"{stem}-{kind}-ubyte.gz"] = array
    return files


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_the_mnist_family_is_prepared_from_its_four_files(server, tmp_path, monkeypatch, name):
    arrays = idx_files(["train", "t10k"])
    files = []
    for file in prepare._MNIST[name]:
        write_idx(tmp_path / file.name, arrays[file.name])
        files.append(served(server, file.name, (tmp_path / file.name).read_bytes()))
    monkeypatch.setitem(prepare._MNIST, name, tuple(files))
    monkeypatch.setattr(sys, "argv", ["prepare", name, str(tmp_path / "data")])
    prepare.main()
    for split, stem in ("train", "train"), ("test", "t10k"):
        dataset = load(name, split, tmp_path / "data")
        expected = arrays[f"{stem}-images-idx3-ubyte.gz"]
        np.testing.assert_array_equal(dataset.images[..., 0], expected)


def test_a_set_of_emnist_is_taken_out_of_the_archive_of_all(server, tmp_path, monkeypatch):
    arrays = idx_files(["emnist-letters-train", "emnist-letters-test"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            write_idx(tmp_path / name, array)
            archive.write(tmp_path / name, f"gzip/{name}")
    monkeypatch.setattr(prepare, "_EMNIST", served(server, "gzip.zip", packed.getvalue()))
    for _ in range(2):
        prepare.prepare("emnist/letters", tmp_path / "data")
    assert server.asked == ["/gzip.zip"]
    images = load("emnist/letters", "test", tmp_path / "data").images
    expected = arrays["emnist-letters-test-images-idx3-ubyte.gz"].swapaxes(1, 2)
    np.testing.assert_array_equal(images[..., 0], expected)


def assert_nothing_is_left(folder):
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda file: file._replace(sha256="0" * 64),
            "is not the file that was meant: its SHA-256",
        ),
        (lambda file: file._replace(size=file.size + 1), "gave 5000 bytes, expected 5001"),
        (lambda file: file._replace(size=file.size - 1), "gave more than 4999 bytes"),
        (lambda file: file._replace(url=file.url + "x"), "HTTP Error 404: Not Found; get it on"),
    ],
)
def test_another_file_than_the_one_meant_is_an_error_and_not_kept(
    server, tmp_path, change, message
):
    file = change(served(server, "data.gz", bytes(5000)))
    with pytest.raises(DownloadError, match=message):
        fetch(file, tmp_path)
    assert_nothing_is_left(tmp_path)


def test_a_download_that_breaks_off_leaves_nothing_and_begins_anew(server, tmp_path):
    content = RNG.bytes(600_000)
    file = served(server, "data.gz", content)
    server.cut = 300_000
    with pytest.raises(DownloadError, match=r"data.gz gave 300000 bytes, expected 600000"):
        fetch(file, tmp_path)
    assert_nothing_is_left(tmp_path)
    server.cut = None
    assert fetch(file, tmp_path).read_bytes() == content


def test_a_server_that_is_not_there_is_an_error_with_the_address(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=rf"http://127.0.0.1:{port}/a.gz cannot be downloaded"):
        fetch(File(f"http://127.0.0.1:{port}/a.gz", 1, "0"), tmp_path)
    assert_nothing_is_left(tmp_path)


def test_a_file_that_lies_there_and_is_another_is_an_error_and_stays(server, tmp_path):
    file = served(server, "data.gz", b"right")
    (tmp_path / "data.gz").write_bytes(b"mine")
    with pytest.raises(
        DownloadError, match=r"data.gz is not the file of .*; remove it to download"
    ):
        fetch(file, tmp_path)
    assert (tmp_path / "data.gz").read_bytes() == b"mine"
    assert server.asked == []


def test_sums_and_sizes_are_those_of_tfds():
    import tensorflow_datasets

    sums = Path(tensorflow_datasets.__file__).parent / "url_checksums"
    files = {name: (file,) for name, file in prepare._CIFAR.items()} | prepare._MNIST
    files["emnist"] = (prepare._EMNIST,)
    for name, known in files.items():
        lines = (sums / f"{name}.txt").read_text().splitlines()
        expected = {tuple(line.split("\t")[:3]) for line in lines}
        assert {(file.url, str(file.size), file.sha256) for file in known} == expected


def test_loading_never_touches_the_network(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    for name in prepare.names():
        with pytest.raises(DataNotFoundError, match=f"python -m convjax.data.prepare {name} "):
            load(name, "train", tmp_path)


# -- Sets that TFDS prepares -----------------------------------------------------------------------


def test_a_set_that_takes_tensorflow_is_one_line_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_PREPARING", ("numpy", "tensorflow_that_is_nowhere"))
    with pytest.raises(DataNotFoundError) as caught:
        prepare.prepare("svhn_cropped", tmp_path)
    message = str(caught.value)
    command = f"tfds build svhn_cropped --file_format=array_record --data_dir={tmp_path}"
    assert f"tensorflow_that_is_nowhere is not installed: run `{command}` where it is" in message
    assert "\n" not in message


def test_tfds_is_run_where_there_is_tensorflow(tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        return type("result", (), {"returncode": len(commands) - 1})

    monkeypatch.setattr(prepare, "_PREPARING", ("numpy",))
    monkeypatch.setattr("subprocess.run", run)
    assert prepare.prepare("svhn_cropped", tmp_path) == tmp_path / "svhn_cropped"
    assert commands[0][:4] == [
        sys.executable,
        "-m",
        "tensorflow_datasets.scripts.cli.main",
        "build",
    ]
    assert commands[0][4:] == [
        "svhn_cropped",
        "--file_format=array_record",
        f"--data_dir={tmp_path}",
    ]
    with pytest.raises(DownloadError, match=r"TFDS could not prepare svhn_cropped: `.*` gave 1"):
        prepare.prepare("svhn_cropped", tmp_path)


def test_an_unknown_name_is_an_error_of_the_command_with_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "fashion_mnits", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        prepare.main()
    assert (
        "unknown data set 'fashion_mnits': did you mean 'fashion_mnist'?" in capsys.readouterr().err
    )
