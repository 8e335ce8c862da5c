"""What a checkpoint is known by: a digest of each of its files, and what they hold.

    write(folder, step=5, leaves=leaves, extra={"seconds": 12.5}, config="...")
    manifest = read(folder)                     # or Damaged, which says in what way
    check_files(folder, manifest)

Orbax takes what it finds: of single bits that were flipped in its array files, 9 of 10 came back as
wrong numbers without a word.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401 - names bfloat16 and its like for NumPy
import numpy as np

from convjax import durable
from convjax.runlog import versions

NAME = "manifest.json"
_FORMAT = 1


class Damaged(Exception):
    """A checkpoint that is not what was saved; the text says in what way."""


class Manifest(NamedTuple):
    """What was saved.

    step: after how many.
    leaves: path to (dtype, shape) of each array.
    files: path within the checkpoint to (bytes, SHA-256).
    extra: a page of JSON.
    config: the digest of the config that it was trained by, or None.
    made: versions, and how many devices and processes there were.
    """

    step: int
    leaves: dict[str, tuple[str, tuple[int, ...]]]
    files: dict[str, tuple[int, str]]
    extra: dict[str, Any]
    config: str | None
    made: dict[str, Any]


def write(
    folder: Path, *, step: int, leaves: Mapping[str, Any], extra: dict[str, Any], config: str | None
) -> None:
    """Writes the manifest of a folder whose other files are there, and brings all to the disk.

    leaves: arrays, or anything with dtype and shape, by path.
    """
    files = {
        name: ((folder / name).stat().st_size, _digest(folder / name))
        for name in sorted(_names(folder))
    }
    content = {
        "format": _FORMAT,
        "step": step,
        "leaves": {path: (leaf.dtype.name, leaf.shape) for path, leaf in leaves.items()},
        "files": files,
        "extra": extra,
        "config": config,
        "made": _made(),
    }
    durable.sync_tree(folder)
    page = {"sha256": _digest_of(content), "content": content}
    durable.replace(folder / NAME, json.dumps(page, indent=1).encode())


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        Damaged: if there is none, or it is not as it was written.
        OSError: if it is there and cannot be read.
    """
    try:
        page = json.loads((folder / NAME).read_bytes())
        content = page["content"]
        if _digest_of(content) != page["sha256"]:
            raise Damaged(f"{NAME} is not as it was written")
        if content["format"] != _FORMAT:
            raise Damaged(f"{NAME} has format {content['format']}, and {_FORMAT} is known here")
        leaves = {
            path: (np.dtype(dtype).name, tuple(map(operator.index, shape)))
            for path, (dtype, shape) in content["leaves"].items()
        }
        files = {name: (size, digest) for name, (size, digest) in content["files"].items()}
        extra, step = dict(content["extra"]), operator.index(content["step"])
        return Manifest(step, leaves, files, extra, content["config"], content["made"])
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"it has no {NAME}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{NAME} is not as it was written ({error})") from None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Reads every file of a checkpoint and compares it with the manifest.

    Raises:
        Damaged: naming the first file that is missing, was not written, or is not as it was.
        OSError: if one is there and cannot be read.
    """
    # Before any is opened: a name may be that of a device, or lead out of the folder.
    there = _names(folder) - {NAME}
    for name in sorted(there ^ manifest.files.keys()):
        raise Damaged(f"{name} {'was not saved with it' if name in there else 'is missing'}")
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        found = path.stat().st_size
        if found != size:
            raise Damaged(f"{name} has {found} bytes, and had {size}")
        if _digest(path) != digest:
            raise Damaged(f"{name} is not as it was written: its SHA-256 is another")


def _names(folder: Path) -> set[str]:
    """The files below a folder, by their path in it; no links, devices or pipes."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _made() -> dict[str, Any]:
    return {
        "versions": versions(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }
