"""Where bundles are, and where this machine keeps what it builds."""

from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
)
from segagent_rt.errors import BundleMissing

SHIPPED = "tiny"
"""The bundle that is used when none is named."""


def cache_folder() -> Path:
    """Where this machine keeps what it builds and what it verified; `SEGAGENT_CACHE` moves it."""
    if named := os.environ.get("SEGAGENT_CACHE"):
        return Path(named)
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "segagent-rt"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return _homeless_cache()


@lru_cache(maxsize=1)
def _homeless_cache() -> Path:
    """A folder for temporary files that nobody else can have written to."""
    folder = Path(tempfile.gettempdir()) / f"segagent-rt-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="segagent-rt-"))
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="segagent-rt-"))


def find_bundle(where: str | Path | None) -> Path:
    """The folder of a bundle, by path or name; raises `BundleMissing` if there is none."""
    package = Path(__file__).parents[1]
    shipped = [package / "assets" / SHIPPED, package.parent / "engines" / SHIPPED]
    if where is None:
        tried = shipped
    else:
        tried = [Path(where), Path("engines") / where]
        tried += shipped if str(where) == SHIPPED else []
    for folder in tried:
        if os.path.isfile(folder / BUNDLE_FILE):  # noqa: PTH113 (is_file raises for some names)
            return folder
    raise BundleMissing(
        f"there is no bundle `{where or SHIPPED}`",
        hint="make one with `segagent-rt export`, or leave --bundle out to use the shipped one",
    )
