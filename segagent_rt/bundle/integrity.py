"""Foreign files, read with care: only regular ones, within bounds, and only what was checked.

A *stamp* says which file a path led to and when it last changed. Whoever replaces a file or writes
into it gives it another stamp: the time of a change cannot be set, unlike that of a modification.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from segagent_rt.errors import BundleError, FileChanged, OutputError, SegagentError
from segagent_rt.io import atomic_write, dump_json, open_regular, parse_json, read_bounded

Stamp: TypeAlias = tuple[int, ...]
"""Device, inode, size, and the times of modification and of any change, in nanoseconds."""

LARGEST = 16 << 20
"""Bytes of the largest JSON file that is read."""

ADMINISTRATOR = 0
"""The user whose files everybody believes."""


def open_checked(path: Path, stamp: Stamp | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: of the file; symbolic links are followed.
        stamp: that the file must have; any if None.

    Raises:
        FileChanged: it is missing, is no regular file, cannot be read, or has another stamp.
    """
    stream = open_regular(path, FileChanged)
    if stamp is not None and stamp_of(os.fstat(stream.fileno())) != stamp:
        stream.close()
        raise changed(path, "was changed while it was in use")
    return stream


def read_regular(path: Path, most: int, stamp: Stamp | None = None) -> bytes:
    """The content of a file of at most that many bytes.

    Raises:
        FileChanged: as `open_checked`, or it is larger.
    """
    with open_checked(path, stamp) as stream:
        try:
            return read_bounded(stream, most, str(path), FileChanged)
        except OSError as error:
            raise changed(path, f"cannot be read: {error.strerror}") from error


def hash_regular(path: Path, size: int) -> tuple[str, Stamp]:
    """SHA-256 and stamp of a file of that many bytes.

    Raises:
        FileChanged: as `open_checked`, or it has another size, or it was changed meanwhile.
    """
    digest, left = hashlib.sha256(), size
    with open_checked(path) as stream:
        stamp = stamp_of(os.fstat(stream.fileno()))
        while block := stream.read(min(1 << 20, left + 1)):
            digest.update(block)
            left -= len(block)
            if left < 0:
                break
        if left or stamp_of(os.fstat(stream.fileno())) != stamp:
            raise changed(path, "is not the file that was exported")
    return digest.hexdigest(), stamp


def stamp(path: Path) -> Stamp:
    """The stamp of the file that a path leads to.

    Raises:
        FileChanged: there is none.
    """
    try:
        return stamp_of(path.stat())
    except (OSError, ValueError) as error:
        how = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise changed(path, how) from error


def stamp_of(found: os.stat_result) -> Stamp:
    """As `stamp`, of a file that was looked up."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def make_private(folder: Path) -> None:
    """Make a folder in which nobody else can write; whatever the umask is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def is_ours(path: Path) -> bool:
    """Whether only this user and the administrator can have written a file of a cache.

    A cache may lie in a folder that others can write. Windows knows no such owners: there it is
    True.
    """
    if not hasattr(os, "geteuid"):
        return True
    try:
        file, folder = path.lstat(), path.parent.lstat()
    except OSError:
        return False
    owned = {file.st_uid, folder.st_uid} <= {ADMINISTRATOR, os.geteuid()}
    return owned and not stat.S_ISLNK(file.st_mode) and _closed(folder)


def _closed(folder: os.stat_result) -> bool:
    return stat.S_ISDIR(folder.st_mode) and not folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def changed(path: Path, how: str) -> FileChanged:
    """The error about a file of a bundle."""
    return FileChanged(f"{path} {how}", hint="copy the bundle again, or export it again")


@contextmanager
def unusable(what: object) -> Iterator[None]:
    """Turn whatever a foreign file makes a library raise into one sentence.

    Raises:
        BundleError: instead of any exception that is not ours.
    """
    try:
        yield
    except SegagentError:
        raise
    except BaseException as error:
        # The tokenizers' own panics are no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = str(error).splitlines() or [""]
        raise BundleError(
            f"{what} cannot be used: {type(error).__name__} {lines[0][:200]!a}",
            hint="export the bundle again, or ask its author",
        ) from error


def recall_verified(record: Path) -> dict[str, Any] | None:
    """What was verified before; None if nothing was, or another user may have written it."""
    try:
        known = parse_json(read_regular(record, LARGEST)) if is_ours(record) else None
    except (SegagentError, ValueError):
        return None
    return known if isinstance(known, dict) and "weights" in known else None


def remember_verified(record: Path, verified: dict[str, Any]) -> None:
    """Write what was verified; a cache that cannot be written only costs time."""
    with suppress(OSError, OutputError):
        make_private(record.parent)
        atomic_write(record, dump_json(verified).encode())
