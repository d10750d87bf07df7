"""Memory of images that are closed goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""`mallopt`'s numbers in glibc's malloc.h."""

LARGE = 128 << 10
"""Bytes from which an array has pages of its own: less than the logits of a mask."""

HEAPS = 2
"""For what is smaller, however many threads there are."""


def return_freed_memory() -> None:
    """Let every large array of this process have pages of its own, which are given back when it is
    freed, and let threads share heaps.

    Left alone, glibc raises the limit up to 32 MB, and keeps freed arrays in the heaps of dozens of
    threads (`tests/serve/test_process.py`). Elsewhere than on Linux with glibc nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            glibc = ctypes.CDLL(None)
            glibc.mallopt(M_MMAP_THRESHOLD, LARGE)
            glibc.mallopt(M_ARENA_MAX, HEAPS)
