"""One process at a time owns a run's folder, and the others say who.

with owned("runs/mine"): ...            # or Owned, an error that names process and host

The kernel frees the lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from convjax.config import UserError

NAME = ".owner.lock"


class Owned(UserError):
    """A folder that another process works on."""


@contextlib.contextmanager
def owned(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps every other process out of a folder, which is there, for as long as the context lasts.

    Raises:
        Owned: if there is such a process, naming it.
        UserError: if the folder cannot be written to.
    """
    path = Path(folder) / NAME
    try:
        lock = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise Owned(
            f"{folder} belongs to {_owner(path)}: wait until that has ended, or give another "
            "--workdir"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be locked ({error.strerror}): give another --workdir"
        ) from error
    with lock:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        # A full disk has no room for it: then others are not told who owns the folder.
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(note))
        yield


_PATIENCE = 1.0  # seconds for which an owner may not have written down yet that it is one


def _owner(path: Path) -> str:
    """Who owns a folder, as text."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(ValueError, KeyError, OSError):
            note = json.loads(path.read_text())
            # The note of one that has ended: its successor has not written yet.
            if note["host"] != socket.gethostname() or _lives(note["process"]):
                return "process {process} on {host}, since {since}".format(**note)
        time.sleep(0.02)
    return "another process"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
