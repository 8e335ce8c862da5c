"""Bytes of files that nobody has looked at yet: no more than there should be, and without waiting.

content = read("train/cat/0001.jpg", at_most=1 << 20)
"""

from __future__ import annotations

import os
import stat

from convjax.data.dataset import DataError, FileError


def read(path: str | os.PathLike[str], at_most: int) -> bytes:
    """All bytes of a regular file, through links.

    Raises DataError for what is no regular file, such as a pipe or a device, which may never end,
    and for more bytes than `at_most`, before they are read; FileError where the system refuses.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise DataError(f"{os.fspath(path)} is no regular file: take it out")
            if about.st_size > at_most:
                raise DataError(
                    f"{os.fspath(path)} has {about.st_size} bytes, expected at most {at_most}: "
                    "copy it again or take it out"
                )
            return file.read(about.st_size)
    except OSError as error:
        raise refused(error, path) from error


def ends(path: str | os.PathLike[str], count: int) -> tuple[int, bytes, bytes]:
    """How many bytes a file has, its first ones and its last ones, `count` of each.

    Raises what `read` raises; of what is no regular file, there are none.
    """
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return 0, b"", b""
            head = file.read(count)
            file.seek(max(about.st_size - count, 0))
            return about.st_size, head, file.read(count)
    except OSError as error:
        raise refused(error, path) from error


def refused(error: OSError, path: str | os.PathLike[str]) -> FileError:
    """What to raise where the system does not give a file or a folder."""
    return FileError(
        f"{os.fspath(path)} cannot be read: {error.strerror or error}; is it still there, and may "
        "you read it?"
    )


def _without_waiting(path: str, flags: int) -> int:
    # To open a pipe would wait for someone to write into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
