"""Where bundles are, and where this machine keeps what it builds."""

from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from segagent_rt.bundle.manifest import BUNDLE_FILE
from segagent_rt.errors import BundleMissing

SHIPPED, PHOTO = "tiny", "photo"
"""The bundles in the package: the demo bundle, which is used when none is named, and the segmenter
for photos."""


def cache_folder() -> Path:
    """Where this machine keeps what it builds and what it verified; `SEGAGENT_CACHE` moves it."""
    if named := os.environ.get("SEGAGENT_CACHE"):
        return Path(named)
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "segagent-rt"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return _homeless_cache()


def bundles_folder() -> Path:
    """Where exported and downloaded bundles lie, each in a folder of its name.

    It is in the user's data folder, as the operating system defines it; `SEGAGENT_DATA` moves it.
    """
    if named := os.environ.get("SEGAGENT_DATA"):
        return Path(named) / "bundles"
    import platformdirs  # most commands name no bundle, and do without it

    return platformdirs.user_data_path("segagent-rt", appauthor=False) / "bundles"


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


def is_name(where: str) -> bool:
    """Whether a text may be the name of a bundle: that of one folder, and not a hidden one."""
    return bool(where) and not set(where) & set("/\\:\0") and not where.startswith(".")


def find_bundle(where: str | Path | None) -> Path:
    """The folder of a bundle, by path or name; a packed bundle is unpacked to the cache.

    A name is looked up in `./engines`, in the package, and in the user's data folder.

    Raises:
        BundleMissing: there is none.
        ArchiveInvalid, FileChanged: a packed one is damaged.
    """
    if where is not None and os.path.isfile(where):  # noqa: PTH113 (as below)
        from segagent_rt.bundle.archive import unpack_to_cache

        return unpack_to_cache(Path(where), cache_folder() / "packed")
    package, name = Path(__file__).parents[1], SHIPPED if where is None else str(where)
    tried = [] if where is None else [Path(where), Path("engines") / where]
    if name in (SHIPPED, PHOTO):
        tried += [package / "assets" / name, package.parent / "engines" / name]
    elif is_name(name):
        tried.append(bundles_folder() / name)
    for folder in tried:
        if os.path.isfile(folder / BUNDLE_FILE):  # noqa: PTH113 (is_file raises for some names)
            return folder
    raise BundleMissing(
        f"there is no bundle `{name}`",
        hint="`segagent-rt bundles` lists those on this machine, and `segagent-rt export NAME` "
        "makes one",
    )
