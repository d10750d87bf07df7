"""Whether a file of a bundle is the one that was exported."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from segagent_rt.errors import FileChanged


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """The size of a file in bytes; raises `FileChanged` if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        raise changed_file(path) from None


def file_stamp(path: Path) -> list[str | int]:
    """What changes when a file is written anew; raises `FileChanged` if it is missing."""
    try:
        stat = path.stat()
    except OSError:
        raise changed_file(path) from None
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]


def changed_file(path: Path) -> FileChanged:
    """The error for a file that is missing or not the one that was exported."""
    what = "is not the file that was exported" if path.exists() else "is missing"
    return FileChanged(f"{path} {what}", hint="copy the bundle again, or export it again")


def remember_stamp(record: Path, key: str) -> None:
    """Write the stamp; a cache that cannot be written only costs time."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial = record.with_name(f"{record.name}.{os.getpid()}")
        partial.write_text(key, "utf-8")
        partial.replace(record)
    except OSError:
        pass
