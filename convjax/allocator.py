"""Memory of the CPU: freed buffers stay in the process, instead of being mapped anew each step.

JAX gives every large buffer back to glibc, which unmaps it; the next step maps it again, and the
kernel clears it page by page. Kept, it costs about a tenth more memory.
"""

from __future__ import annotations

import ctypes
import os
import sys

# From glibc's malloc.h: never map a buffer by itself, never give back, one heap for all threads.
_OPTIONS = {
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 2**28),
    "M_ARENA_MAX": (-8, 1),
}
SWITCH = "CONVJAX_MALLOC"


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; returns whether it does.

    To be called before JAX starts its threads. Does nothing without glibc, or where the environment
    has `CONVJAX_MALLOC=default`.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "default":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) == 1 for option in _OPTIONS.values())


def give_back_freed_memory() -> None:
    """Gives the system what glibc has kept of freed memory; does nothing without glibc.

    To be called after compiling, which takes several hundred MB that no step needs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
