"""Put a data set where `load` finds it: downloaded and checked, or prepared by TFDS.

    python -m convjax.data.prepare cifar10 FOLDER
    python -m experiments.train --config.data.name=cifar10 --config.data.dir=FOLDER

MNIST and its family and CIFAR need nothing else installed. Other sets of TFDS need TensorFlow for
this step, and for no other. This is the only place from which convjax uses the network.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from convjax.data import cifar, mnist, tfds
from convjax.data.dataset import DataNotFoundError
from convjax.data.downloads import DownloadError, File, fetch
from convjax.names import nearest


def prepare(name: str, data_dir: str | os.PathLike[str]) -> Path:
    """Download a data set and check it, or have TFDS prepare it; returns the folder it is in.

    name: a member of the MNIST family, `cifar10`, `cifar100`, or the name of a TFDS data set,
        which takes TensorFlow. What lies there already and is right is not downloaded again.

    Raises DownloadError where a file cannot be had or is another one, DataNotFoundError where
    TensorFlow is needed and not installed, ValueError for an unknown name.
    """
    root = Path(data_dir).expanduser()
    if name in cifar.FAMILY:
        return fetch(_CIFAR[name], root / name).parent
    if name.startswith("emnist/") and name in mnist.FAMILY:
        return _prepare_emnist(name, root)
    if name in mnist.FAMILY:
        folder = root / mnist.FAMILY[name].folders[0]
        for file in _MNIST[name]:
            fetch(file, folder)
        return folder
    return _prepare_with_tensorflow(name, root)


def names() -> list[str]:
    """The data sets that are prepared without TensorFlow."""
    return [*mnist.FAMILY, *cifar.FAMILY]


def main() -> None:
    """Prepare the data set that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m convjax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"{', '.join(names())}, or a data set of TFDS")
    parser.add_argument("folder", type=Path, help="the data_dir that is to have it")
    options = parser.parse_args()
    try:
        print(prepare(options.name, options.folder))
    except (ValueError, OSError) as error:
        parser.error(str(error))


# Sizes and SHA-256 as TFDS 4.9.10 has them (tensorflow_datasets/url_checksums).
_CIFAR = {
    "cifar10": File(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170052171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar100": File(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        168513733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
}
_LARGEST = 1 << 30  # bytes of a file of EMNIST
_EMNIST = File(
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    561753746,
    "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
)


def _idx_files(base: str, *known: tuple[int, str]) -> tuple[File, ...]:
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        File(f"{base}/{stem}-ubyte.gz", *each) for stem, each in zip(stems, known, strict=True)
    )


_MNIST = {
    "mnist": _idx_files(
        "https://storage.googleapis.com/cvdf-datasets/mnist",
        (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "fashion_mnist": _idx_files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    "kmnist": _idx_files(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
        (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
        (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
        (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
        (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
    ),
}


def _prepare_emnist(name: str, root: Path) -> Path:
    """The four files of one of the sets, out of the archive that has all six."""
    member = mnist.FAMILY[name]
    folder = root / member.folders[0]
    wanted = [f"{file}.gz" for split in mnist.SPLITS for file in member.files(split)]
    if all((folder / file).is_file() for file in wanted):
        return folder
    archive = fetch(_EMNIST, folder)
    with zipfile.ZipFile(archive) as packed:
        for file in wanted:
            part = folder / f".{file}.part"
            info = packed.getinfo(f"gzip/{file}")
            if info.file_size > _LARGEST:
                raise DownloadError(f"{archive}: {file} claims {info.file_size} bytes; remove it")
            with packed.open(info) as content, open(part, "wb") as out:
                shutil.copyfileobj(content, out)
            part.replace(folder / file)
    return folder


def _prepare_with_tensorflow(name: str, root: Path) -> Path:
    known = tfds.known()
    if known and tfds.base_of(name) not in known:
        raise ValueError(f"unknown data set {name!r}: {nearest(name, {*names(), *known})}")
    command = ["tfds", "build", name, "--file_format=array_record", f"--data_dir={root}"]
    missing = [each for each in _PREPARING if importlib.util.find_spec(each) is None]
    if missing:
        raise DataNotFoundError(
            f"{name} is prepared by TFDS with TensorFlow, and {' and '.join(missing)} is not "
            f"installed: run `{' '.join(command)}` where it is, and copy {root / name} here"
        )
    command = [sys.executable, "-m", "tensorflow_datasets.scripts.cli.main", *command[1:]]
    if status := subprocess.run(command, check=False).returncode:
        raise DownloadError(f"TFDS could not prepare {name}: `{' '.join(command)}` gave {status}")
    return root / tfds.base_of(name)


_PREPARING = ("tensorflow_datasets", "tensorflow", "array_record")


if __name__ == "__main__":
    main()
