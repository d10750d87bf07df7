"""Writing results so that a file is whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from segagent_rt.errors import OutputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then move it into place.

    Raises:
        OutputError: the folder cannot be written, or the disk is full. Nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def check_writable(folder: Path) -> None:
    """Find out before the work whether results can be written, without leaving a trace.

    Raises:
        OutputError: they cannot.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{existing} is not a folder", hint="name a folder with -o")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"{existing} cannot be written", hint="choose another folder with -o")


def _refused(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: {path} was not written", hint="free some space")
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"the name {path.name[:40]}… is too long", hint="rename the image")
    return OutputError(
        f"{path} cannot be written: {error.strerror}", hint="choose another folder with -o"
    )
