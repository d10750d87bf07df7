"""Open files that others made: regular ones only, of bounded length, and no placeholders."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from segagent_rt_export.errors import CheckpointInvalid

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git leaves in place of a large file."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; pipes, devices and folders are refused without waiting.

    Args:
        path: of the file; links are followed.

    Returns:
        The file, open at its first byte.

    Raises:
        CheckpointInvalid: there is none, it cannot be read, or it is a pointer of Git LFS.
    """
    try:
        stream = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    except FileNotFoundError:
        raise CheckpointInvalid(f"there is no file {path}", hint="check the path") from None
    except IsADirectoryError:
        raise CheckpointInvalid(f"{path} cannot be read: it is a folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointInvalid(f"{path} cannot be read: {reason}") from error
    try:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise CheckpointInvalid(f"{path} cannot be read: it is not a regular file")
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointInvalid(
                f"{path} is a pointer of Git LFS, the file itself was not downloaded",
                hint="run `git lfs pull` in its folder, or download the model with --download",
            )
        stream.seek(0)
    except BaseException:
        stream.close()
        raise
    return stream


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        CheckpointInvalid: as for `open_regular`, or it is longer.
    """
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise CheckpointInvalid(f"{path} is too long: more than {most / 1e6:g} MB")
    return content
