"""Open files that others made: regular ones only, of bounded length, and no placeholders."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from segagent_rt import io
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
    stream = io.open_regular(path, CheckpointInvalid)
    if stream.read(len(LFS_POINTER)) != LFS_POINTER:
        stream.seek(0)
        return stream
    stream.close()
    raise CheckpointInvalid(
        f"{path} is a pointer of Git LFS, the file itself was not downloaded",
        hint="run `git lfs pull` in its folder, or export with --yes, which downloads the model",
    )


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        CheckpointInvalid: as for `open_regular`, or it is longer.
    """
    with open_regular(path) as stream:
        return io.read_bounded(stream, most, str(path), CheckpointInvalid)
