"""How much memory and disk is left, asked before work that would take more."""

from __future__ import annotations

import ctypes
import shutil
import sys
from pathlib import Path

from segagent_rt.errors import BackendUnavailable, TooLittleRoom

BUILD_FACTOR = 4
"""A builder holds the weights several times over: parsed, typed, tried out, serialised."""

BUILD_FACTOR_4BIT = 5
"""Of weights of 4 bits, which it unpacks meanwhile."""

BUILD_BASE = 512 << 20
"""What it needs beside them, bytes."""

LARGE = 256 << 20
"""Bytes from which on memory is looked for before it is taken."""


def free_memory() -> int | None:
    """Bytes that this process may still take without swapping; None where it cannot be known."""
    if sys.platform == "win32":
        return _windows()
    left = [n for n in (_available(Path("/proc/meminfo")), _container(Path("/sys/fs/cgroup"))) if n]
    return min(left, default=None)


def build_memory(weights: int, precision: str) -> int:
    """Bytes that a builder takes for a graph.

    Args:
        weights: bytes of the graph and its weights on disk.
        precision: of the graph's variant, in the manifest's words.
    """
    factor = BUILD_FACTOR_4BIT if "4 bit" in precision else BUILD_FACTOR
    return factor * weights + BUILD_BASE


def check_build(weights: int, what: str, precision: str = "") -> None:
    """Refuse to build an engine of so many bytes of weights that the machine would run out.

    Raises:
        BackendUnavailable: there is not enough memory.
    """
    needed, free = build_memory(weights, precision), free_memory()
    if free is not None and needed > free:
        raise BackendUnavailable(
            f"building the {what} takes about {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free",
            hint="close other programs, add swap space, or export a smaller variant",
        )


def check_memory(size: int, what: str) -> None:
    """Refuse to take so many bytes if there are not that many; small sizes are not looked up.

    Raises:
        BackendUnavailable: there is not enough memory.
    """
    free = free_memory() if size > LARGE else None
    if free is not None and size > free:
        raise BackendUnavailable(
            f"{what} take {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            hint="close other programs, or export the model for smaller pictures",
        )


def check_disk_space(needed: float, folder: Path, what: str, hint: str) -> None:
    """Refuse to write so many bytes below a folder, which need not exist yet, if they do not fit.

    Args:
        needed: bytes.
        folder: is, or will be, on the disk in question.
        what: begins the message, such as `the bundle takes`.
        hint: what to do instead.

    Raises:
        TooLittleRoom: the disk has not enough space.
    """
    place = folder.absolute()
    existing = next(each for each in (place, *place.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise TooLittleRoom(
            f"{what} {needed / 1e9:.1f} GB of the disk that holds {folder}, "
            f"{free / 1e9:.1f} GB are free",
            hint=hint,
        )


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text("ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _container(group: Path) -> int | None:
    """What a container's limit leaves; file caches do not count, they give way."""
    try:
        limit = int((group / "memory.max").read_text("ascii"))
        counts = dict(
            line.split() for line in (group / "memory.stat").read_text("ascii").splitlines()
        )
    except (OSError, ValueError):
        return None
    return max(limit - int(counts.get("anon", 0)), 0)


def _windows() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32), ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in
              ("total", "free", "all_pages", "free_pages", "all", "left", "extended")),
        )  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 (unknown to type checkers elsewhere)
    return int(status.free) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
