"""Memory that the server no longer needs goes back to the system.

Two things would keep it: the allocator, which keeps what is freed for the next request, and Python,
which frees objects that refer to each other only when it searches for them.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""`mallopt`'s numbers in glibc's malloc.h."""

HEAPS = 2
"""However many threads there are: what one thread freed, another one takes."""

LARGE = 32 << 20
"""Bytes from which an array has pages of its own, as much as glibc allows: a small number costs
each click new pages for its mask. Twice as much may lie free at the end of a heap."""

SEARCH_AFTER = 2000
"""New objects between searches for garbage: Python's own number from 3.12 on."""

PAUSE = 5.0
"""Seconds between returns. Pages that are used again cost time, so they are not returned after
every request: drawing a large mask on new pages takes much longer."""


def share_heaps() -> None:
    """Let all threads share a few heaps of glibc, which keep what is freed until
    `return_freed_memory`. Elsewhere than on Linux nothing is done.

    Left alone, each of dozens of threads fills a heap of its own.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            glibc = ctypes.CDLL(None)
            glibc.mallopt(M_ARENA_MAX, HEAPS)
            glibc.mallopt(M_MMAP_THRESHOLD, LARGE)
            glibc.mallopt(M_TRIM_THRESHOLD, 2 * LARGE)


def search_garbage() -> None:
    """Search for garbage as often as Python does by itself, but not among what is loaded by now.

    The command line makes searches rare, which suits a short command. In a server, what a request
    left behind would wait for minutes, with the image that it worked on.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(SEARCH_AFTER)


def return_freed_memory() -> None:
    """Give pages that hold nothing back to the system; does nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def return_memory_regularly(served: Callable[[], int], pause: float = PAUSE) -> None:
    """Return freed memory again and again, as long as there are requests.

    Args:
        served: how many there were so far.
        pause: seconds in between.
    """
    before = served()
    while True:
        await asyncio.sleep(pause)
        if (now := served()) != before:
            before = now
            await asyncio.to_thread(return_freed_memory)
