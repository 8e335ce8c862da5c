"""Images that cannot be read: found before training, counted, and left out up to a share.

    images, faults = readable(open_examples("image_folder", "train", "~/web"), share=0.001)
    print(told(faults, "~/web"))     # "17 of 20000 images of ~/web cannot be read and are ..."

Where images may be left out, all are decoded once: what is left out is known before the first
step, and batch n stays a function of the seed and of n. Where none may, a look at the two ends of
each file finds those that are empty, cut short or something else, at a fraction of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from convjax.data import files
from convjax.data.dataset import Faults, ImageError
from convjax.data.examples import Chosen, Examples
from convjax.data.image_folder import Folder
from convjax.data.maker import seen
from convjax.data.views import NUMBERS, whole
from convjax.data.workers import cores


def readable(examples: Examples, share: float) -> tuple[Examples, Faults]:
    """The images that can be read, and what is wrong with the others.

    share: of all images, how many may be left out. At 0 only the ends of files of a folder are
        looked at, and a few images are decoded.

    Raises ImageError for more than these, with the first ones, and FileError where the system does
    not give a file: that may pass, and another number of images would be another run.
    """
    size = len(examples)
    if not share:
        if isinstance(examples, Folder):
            check(_of_doubtful_ends(examples), share)
        return examples, Faults(size)
    faults = tried(lambda index: _decoded(examples, index), size, cores())
    check(faults, share)
    if not faults.errors:
        return examples, faults
    left = np.delete(np.arange(size), list(faults.errors))
    return examples.some(left) if isinstance(examples, Folder) else Chosen(examples, left), faults


def tried(
    function: Callable[[int], object], size: int, threads: int, *, first_ends: bool = False
) -> Faults:
    """What is wrong with the images on which `function(number)` raises ImageError.

    first_ends: whether the error of the first such image is raised.
    """
    from tqdm import tqdm

    errors: dict[int, str] = {}

    def some(start: int) -> int:
        stop = min(start + _AT_ONCE, size)
        for index in range(start, stop):
            try:
                function(index)
            except ImageError as error:
                if first_ends:
                    raise
                errors[index] = str(error)
        return stop - start

    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=size, desc="reading images", unit="", leave=False, disable=None) as bar,
    ):
        tasks = [pool.submit(some, start) for start in range(0, size, _AT_ONCE)]
        try:
            for task in tasks:  # In order: of several bad files, the first is always named.
                bar.update(task.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return Faults(size, dict(sorted(errors.items())))


def check(faults: Faults, share: float) -> None:
    """Raises ImageError for more faults than this share of the images."""
    count, allowed = len(faults.errors), math.floor(share * faults.size + 1e-6)
    if count > allowed:
        raise ImageError(
            f"{count} of {faults.size} images cannot be read, and unreadable={share:g} allows "
            f"{allowed or 'none'}: {_first(faults)}"
        )


def told(faults: Faults, source: str) -> str:
    """One line about what was left out."""
    return (
        f"{len(faults.errors)} of {faults.size} images of {source} cannot be read and are left "
        f"out: {_first(faults)}"
    )


_AT_ONCE = 64
_LOOKED_AT = 50_000  # files whose ends are read, spread evenly where there are more
_DECODED = 64  # images that are decoded all the same, for what no file's ends tell
_NAMED = 3  # faults that a message tells


def _first(faults: Faults) -> str:
    lines = list(faults.errors.values())
    more = f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return "; ".join(lines[:_NAMED]) + more


def _of_doubtful_ends(folder: Folder) -> Faults:
    """What is wrong with the files that do not begin and end as an image does."""
    size = len(folder)
    looked_at, decoded = _spread(_LOOKED_AT, size), {*_spread(_DECODED, size).tolist()}

    def look(row: int) -> None:
        index = int(looked_at[row])
        if index in decoded or not _looks_whole(*files.ends(folder.path(index), _END)):
            _decoded(folder, index)

    faults = tried(look, len(looked_at), cores())
    return Faults(len(looked_at), {int(looked_at[row]): e for row, e in faults.errors.items()})


def _spread(count: int, size: int) -> np.ndarray:
    """So many numbers of `range(size)`, or all if there are fewer, spread evenly."""
    count = min(count, size)
    return np.arange(count) * size // max(count, 1)


_END = 16  # bytes


def _looks_whole(size: int, head: bytes, tail: bytes) -> bool:
    """Whether a file begins and ends as an image does; one that does not may be right all the same.

    The ends are those of ISO/IEC 10918-1 (JPEG), of PNG's IEND chunk, of the sizes that RIFF
    (WebP) and BMP note.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return tail.endswith(b"IEND\xaeB`\x82")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 == size
    return head.startswith(b"BM") and int.from_bytes(head[2:6], "little") == size


def _decoded(examples: Examples, index: int) -> None:
    """Decodes an image; of JPEG files all bytes are read, but not all pixels made."""
    seen(examples, whole(8, 8)._replace(draft=True), index, np.zeros(NUMBERS))
