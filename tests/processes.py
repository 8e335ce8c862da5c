"""Processes that are started together, for tests of several of them on this host."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start_together(script, *arguments, count=2, devices=2):
    """Starts `script HOST:PORT COUNT ID ARGUMENT ...` as often as that; each has CPU devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return [
        subprocess.Popen(
            [sys.executable, script, address, str(count), str(number), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]


def outputs(processes, timeout=100):
    """What each has written, once all have ended; after the timeout they are killed."""
    end = time.monotonic() + timeout
    try:
        return [
            process.communicate(timeout=max(end - time.monotonic(), 1))[0] for process in processes
        ]
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()


def run_together(script, *arguments, **how):
    """Runs them to their end; all must succeed."""
    processes = start_together(script, *arguments, **how)
    written = outputs(processes)
    for process, text in zip(processes, written):
        assert process.returncode == 0, text
    return written
