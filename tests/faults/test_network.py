"""A run on the bundled data opens no port and asks nothing of the network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_run_makes_no_socket_of_the_network(tmp_path, observed):
    """Every call of the kernel that has to do with sockets is traced, in all threads."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=%network", "-o", trace, sys.executable, "-m"]
    words = ["experiments.train", f"--workdir={tmp_path / 'run'}", "--config.epochs=0.02"]
    subprocess.run([*command, *words], cwd=ROOT, check=True, capture_output=True)
    # The pairs of sockets by which threads wake each other are the kernel's own.
    kinds = set(re.findall(r"\bsocket(?:pair)?\((\w+)", trace.read_text()))
    assert kinds
    assert kinds <= {"AF_UNIX", "AF_LOCAL"}
    assert not re.search(r"\b(bind|listen|connect)\(", trace.read_text())
    observed("a run under strace: no socket of the network, no port", 1)
