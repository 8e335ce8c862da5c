"""One process owns a folder; whoever comes second is told who it is."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from convjax.config import UserError
from convjax.ownership import NAME, Owned, owned

ROOT = Path(__file__).parent.parent
OWNER = """
import sys, time
from convjax.ownership import owned
with owned(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    command = [sys.executable, "-c", OWNER, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def test_the_second_is_told_who_the_first_is(owner, tmp_path):
    with pytest.raises(Owned) as error, owned(tmp_path):
        pass
    assert f"process {owner.pid} on {socket.gethostname()}, since 20" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_folder_is_free_again_once_its_owner_was_killed(owner, tmp_path):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with owned(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_a_folder_may_be_owned_again_and_again(tmp_path):
    for _ in range(3):
        (tmp_path / NAME).write_text("")
        with owned(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_the_note_of_an_owner_that_has_ended_misleads_nobody(owner, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    note = {"process": ended.pid, "host": socket.gethostname(), "since": "before"}
    (tmp_path / NAME).write_text(json.dumps(note))
    with pytest.raises(Owned, match="belongs to another process"), owned(tmp_path):
        pass


def test_what_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "note").write_text("a file")
    with pytest.raises(UserError, match=r"note.*cannot be locked"), owned(tmp_path / "note"):
        pass
