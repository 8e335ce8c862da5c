"""SIGTERM and Ctrl-C as a wish to stop, granted where nothing is lost by it.

    with handled() as interrupts:
        prepare()                                   # breaks off at once, with Interrupted
        with interrupts.held():
            while steps:
                interrupts.check()                  # here, if there is one
                with interrupts.released():
                    batch = next(batches)           # or here, at once
                state = step(state, batch)          # never here

A second signal ends the process at once, whatever it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end.

    number: of the signal. what: what was done about it, as text.
    status: what the process is to exit with, as a shell has it: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int, what: str = ""):
        name = signal.Signals(number).name
        super().__init__(f"ended by {name}: {what}" if what else f"ended by {name}")
        self.number, self.status = number, 128 + number


class Interrupts:
    """What is known of signals; without `handled` there never is one."""

    def __init__(self) -> None:
        self.wanted: int | None = None
        self._holds = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it a signal waits until it is asked for."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Within it, though within `held`, a signal raises Interrupted at once."""
        holds, self._holds = self._holds, 0
        try:
            self.check()
            yield
        finally:
            self._holds = holds

    def check(self) -> None:
        """Raises Interrupted if there was a signal."""
        if self.wanted is not None:
            raise Interrupted(self.wanted)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.wanted = number
        if not self._holds:
            raise Interrupted(number)


_active: Interrupts | None = None


@contextlib.contextmanager
def handled() -> Iterator[Interrupts]:
    """Handles signals; within another `handled` it is that one, and outside the main thread none.

    A signal that the process ignores, as one in the background of a shell does Ctrl-C, stays so.
    """
    global _active  # noqa: PLW0603 - signals are the whole process's
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or Interrupts()
        return
    _active = interrupts = Interrupts()
    chosen = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    with _watched(chosen):
        before = {each: signal.signal(each, interrupts._on_signal) for each in chosen}
        try:
            yield interrupts
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
            _active = None


@contextlib.contextmanager
def _watched(signals: list[signal.Signals]) -> Iterator[None]:
    """Ends the process at the second signal.

    By a thread, which is told by the interpreter's own handler: the main thread may be in the
    middle of a compilation, and its handlers wait until that is over.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        seen = 0
        while number := reader.recv(1):
            seen += number[0] in signals
            if seen == 2:
                os._exit(128 + number[0])

    thread = threading.Thread(target=watch, daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()
