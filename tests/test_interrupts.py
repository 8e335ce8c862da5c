"""Signals: they wait where something would be lost by them, and a second one does not wait."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from convjax import interrupts
from convjax.interrupts import Interrupted, Interrupts, handled

ROOT = Path(__file__).parent.parent
LONG = """
import hashlib, sys, time
from convjax.interrupts import handled
with handled() as interrupts, interrupts.held():
    print("ready", flush=True)
    {phase}
print("not reached")
"""


def send(number):
    """Sends this process a signal and gives it time to arrive."""
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@pytest.fixture(autouse=True)
def listening():
    """Where the tests run in the background of a shell, Ctrl-C is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_breaks_off_what_does_not_hold_it(number, status):
    with pytest.raises(Interrupted) as error, handled():
        send(number)
    assert error.value.status == status


def test_a_signal_waits_until_it_is_asked_for():
    with handled() as found, found.held():
        send(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            found.check()


def test_a_signal_breaks_in_where_it_is_released():
    with handled() as found, found.held():
        with pytest.raises(Interrupted), found.released():
            send(signal.SIGINT)
        # And one that came before does so at once.
        with pytest.raises(Interrupted), found.released():
            raise AssertionError("it was let in")


def test_handlers_are_those_of_before_at_the_end():
    before = [signal.getsignal(each) for each in interrupts.SIGNALS]
    with handled() as found:
        assert [signal.getsignal(each) for each in interrupts.SIGNALS] != before
        with handled() as again:
            assert again is found
        assert [signal.getsignal(each) for each in interrupts.SIGNALS] != before
    assert [signal.getsignal(each) for each in interrupts.SIGNALS] == before
    assert not any(thread.name == "signals" for thread in threading.enumerate())


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with handled() as found:
        send(signal.SIGINT)
        found.check()


def test_another_thread_handles_nothing():
    seen = []

    def other():
        with handled() as found:
            seen.append((found, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    [(found, handler)] = seen
    assert isinstance(found, Interrupts)
    assert handler is before


@pytest.mark.parametrize(
    "phase",
    [
        "time.sleep(60)",
        # One call without a bytecode in between: no handler of Python's could run.
        "hashlib.pbkdf2_hmac('sha512', b'', b'', 10**9)",
    ],
)
def test_a_second_signal_ends_the_process_at_once(phase):
    command = [sys.executable, "-c", LONG.format(phase=phase)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143
        assert time.monotonic() - begun < 5
        assert process.stdout.read() == ""
