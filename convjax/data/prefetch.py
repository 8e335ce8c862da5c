"""Have the next batches on the device before they are asked for.

with prefetch(batches, place=mapper.shard) as ready:
    for batch in ready: ...
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def prefetch(batches: Iterable[Any], place: Callable[[Any], Any], ahead: int = 2) -> Prefetch:
    """`place(batch)` of every batch, in order, called by a thread that is `ahead` of the reader.

    place: puts a batch on the devices, such as `jax.device_put` with a sharding. It names its
        devices: a thread knows nothing of the contexts (`with mesh:`) that it was started in.
    ahead: placed batches that may wait; with the one in use and the one on its way, `ahead + 2`
        take memory.

    What `batches` or `place` raises is raised where the batch is asked for, after those before it.

    >>> with prefetch(range(3), place=lambda number: number * 10) as ready:
    ...     list(ready)
    [0, 10, 20]
    """
    return Prefetch(batches, place, ahead)


class Prefetch(Iterator[Any]):
    """What `prefetch` returns: to be closed, as a context, by `close`, or by reading to its end."""

    def __init__(self, batches: Iterable[Any], place: Callable[[Any], Any], ahead: int):
        if ahead < 1:
            raise ValueError(f"ahead {ahead}: give 1 or more batches")
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
        self._stop = threading.Event()
        arguments = (batches, place, self._ready, self._stop)
        self._thread = threading.Thread(target=_work, args=arguments, daemon=True, name="prefetch")
        self._finalizer = weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __next__(self) -> Any:
        if self._stop.is_set():
            raise StopIteration
        kind, value = self._ready.get()
        if kind == _BATCH:
            return value
        self.close()
        if kind == _ERROR:
            raise value
        raise StopIteration

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread, after the batch that it is at, and closes `batches` if they can be."""
        self._finalizer()
        self._thread.join()


_BATCH, _ERROR, _END = "batch", "error", "end"
_MOMENT = 0.05  # seconds after which a waiting thread looks whether it is still wanted


def _work(
    batches: Iterable[Any],
    place: Callable[[Any], Any],
    ready: queue.Queue[tuple[str, Any]],
    stop: threading.Event,
) -> None:
    try:
        for batch in batches:
            _offer(ready, (_BATCH, place(batch)), stop)
            if stop.is_set():
                break
        last = _END, None
    except BaseException as error:  # It belongs to whoever asks for the batch.
        last = _ERROR, error
    finally:
        if (close := getattr(batches, "close", None)) is not None:
            close()
    _offer(ready, last, stop)


def _offer(
    ready: queue.Queue[tuple[str, Any]], item: tuple[str, Any], stop: threading.Event
) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            return ready.put(item, timeout=_MOMENT)
