"""The allocator: what is freed stays in the process, where it is asked to."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, resource
from convjax.allocator import keep_freed_memory

kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = libc.malloc(64 << 20)
    ctypes.memset(memory, 1, 64 << 20)
    libc.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(kept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
@pytest.mark.parametrize("switch", ["", "default"])
def test_freed_memory_is_not_mapped_anew(switch):
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(
        command, env={"CONVJAX_MALLOC": switch}, capture_output=True, text=True, check=True
    )
    kept, faults = run.stdout.split()
    assert kept == str(switch == "")
    # 64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB where the kernel gives huge ones.
    assert (int(faults) < 16) == (switch == "")


GIVING_BACK = """
import ctypes
from convjax.allocator import give_back_freed_memory, keep_freed_memory

keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


before = megabytes()
blocks = [libc.malloc(1 << 20) for _ in range(64)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[:-1]:
    libc.free(block)
held = megabytes()
give_back_freed_memory()
print(held - before, megabytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_freed_memory_goes_back_where_it_is_asked_for():
    command = [sys.executable, "-c", GIVING_BACK]
    run = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    held, left = map(float, run.stdout.split())
    assert held > 60  # of 64 MiB
    assert left < 8
