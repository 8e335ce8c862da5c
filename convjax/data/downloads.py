"""Files from the network: those that TFDS has downloaded before, and new ones, checked.

noted("mnist", root)                             # {"train-images-idx3-ubyte.gz": Path(...)}
fetch(File(url, size, sha256), folder)           # Path(...), or an error and no file
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from convjax.data.dataset import DataError
from convjax.data.files import read


class DownloadError(OSError):
    """A file that could not be had: the message says from where, why, and what to do."""


class File(NamedTuple):
    """A file on the network, with what it is known by: bytes and SHA-256 in hexadecimal."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.url.rpartition("/")[2]


def fetch(file: File, folder: Path) -> Path:
    """The file in that folder: as it lies there already, if it is right, or downloaded.

    It appears under its name only once it is whole and its checksum is right; a download that is
    broken off leaves nothing behind and begins anew. Raises DownloadError where it fails.
    """
    path = folder / file.name
    if path.is_file():
        with open(path, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found == file.sha256:
            return path
        raise DownloadError(
            f"{path} is not the file of {file.url}: its SHA-256 is {found}, expected "
            f"{file.sha256}; remove it to download it again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=folder)
    try:
        with open(descriptor, "wb") as out:
            _download(file, out)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are nobody else's to read.
        os.replace(temporary, path)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DownloadError(
            f"{file.url} cannot be downloaded: {error}; get it on another machine and put it into "
            f"{folder}"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def noted(name: str, root: Path) -> dict[str, Path]:
    """The downloads of TFDS for a data set below `root`, by their original names.

    TFDS notes them beside each file. Raises DataError for a note that is none.
    """
    files = {}
    for note in _notes(root / "downloads"):
        try:
            about = json.loads(read(note, at_most=_NOTE))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{note}: no JSON ({error}); remove it and its file") from error
        match about:
            case {"dataset_names": [*names], "original_fname": str(file)} if name in names:
                path = note.with_suffix("")
                if path.is_file():
                    files[file] = path
    return files


_CHUNK = 1 << 18
_NOTE = 1 << 20  # bytes
_PATIENCE = 60.0  # seconds without a byte


def _download(file: File, out: object) -> None:
    from tqdm import tqdm

    digest, size = hashlib.sha256(), 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "convjax"})
    with (
        urllib.request.urlopen(request, timeout=_PATIENCE) as answer,
        tqdm(
            total=file.size,
            unit="B",
            unit_scale=True,
            desc=file.name,
            disable=None,
            file=sys.stderr,
        ) as bar,
    ):
        # No more is taken than there should be, whoever answers.
        while chunk := answer.read(min(_CHUNK, file.size + 1 - size)):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)  # type: ignore[attr-defined]
            bar.update(len(chunk))
    if size != file.size:
        more = "more than " if size > file.size else ""
        raise DownloadError(
            f"{file.url} gave {more}{min(size, file.size)} bytes, expected {file.size}: "
            "the download broke off or the file is another one; try again later"
        )
    if digest.hexdigest() != file.sha256:
        raise DownloadError(
            f"{file.url} is not the file that was meant: its SHA-256 is {digest.hexdigest()}, "
            f"expected {file.sha256}; nothing was kept"
        )


def _notes(downloads: Path) -> Iterator[Path]:
    # Not deeper: the folder may hold the millions of files of other data sets.
    yield from sorted(downloads.glob("*.INFO"))
    yield from sorted(downloads.glob("*/*.INFO"))
