"""Files and folders that are whole and on the disk: no reader meets half of one.

replace(folder / "run.json", b"{}")         # the old content, or all of the new one
sync_tree(folder / "5")                     # every file and folder below, before it is renamed
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Replaces a file as a whole, and waits until it is on the disk.

    Raises:
        OSError: if it cannot be written; what was there before is there still.
    """
    unfinished = unfinished_of(path)
    with open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync(path.parent)


def unfinished_of(path: Path) -> Path:
    """Where a file or folder is made, before it gets its name."""
    return path.with_name(f".{path.name}.unfinished")


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until all that a folder holds is on the disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))


def remove_tree(folder: Path) -> None:
    """Removes a folder such that its name is gone at once, and not half of what it holds."""
    dying = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(dying, ignore_errors=True)
    os.rename(folder, dying)
    shutil.rmtree(dying)


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed had not finished to make, or to remove."""
    for pattern in (".*.unfinished*", ".*.removed"):
        for left in folder.glob(pattern):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
