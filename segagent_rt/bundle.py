"""Open bundles: find them, check their manifests and files, choose a variant, load graphs."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

from segagent_rt.backends import Runtime
from segagent_rt.contracts import (
    BUNDLE_FILE,
    MANIFEST_FILE,
    BundleIndex,
    Manifest,
    PartName,
    Variant,
    inside,
    parse,
    read_json,
)
from segagent_rt.engines import Graph
from segagent_rt.errors import BundleMissing, FileChanged, ManifestInvalid
from segagent_rt.sessions import Opened, open_role
from segagent_rt.types import Session

SHIPPED = "tiny"
"""The bundle that is used when none is named."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a bundle on disk; `digest` names its content."""

    folder: Path
    manifest: Manifest
    digest: str

    def file(self, name: str) -> Path:
        """The path of a file of this part.

        Raises:
            ManifestInvalid: the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise ManifestInvalid(f"{self.folder / MANIFEST_FILE} lists no file `{name}`")
        return inside(self.folder, name)

    def settings(self, into: type[S]) -> S:
        """The family's settings, checked and typed."""
        where = f"{self.folder / MANIFEST_FILE}: settings"
        settings: S = parse(dict(self.manifest.settings), into, where)
        return settings

    @property
    def roles(self) -> list[str]:
        """What graphs there are, in the manifest's order."""
        return list(dict.fromkeys(r for v in self.manifest.variants.values() for r in v.graphs))

    def graphs(self, role: str, variant: str | None = None) -> list[Graph]:
        """The graphs of a role, of every variant that has one or of the variant named.

        Raises:
            BundleMissing: there is no such variant.
            ManifestInvalid: no graph plays the role.
        """
        variants = self.manifest.variants
        if variant is not None and variant not in variants:
            raise BundleMissing(
                f"{self.folder} has no variant `{variant}`", hint="it has " + ", ".join(variants)
            )
        names = [n for n, v in variants.items() if role in v.graphs and variant in (None, n)]
        if not names:
            raise ManifestInvalid(f"{self.folder} has no graph for `{role}`")
        return [self._graph(name, variants[name], role) for name in names]

    def _graph(self, name: str, variant: Variant, role: str) -> Graph:
        file = variant.graphs[role]
        hashes = [self.manifest.files[n].sha256 for n in (file, *self.weights(file))]
        digest = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
        return Graph(self.file(file), digest, self.manifest.kind, role, name, variant)

    def weights(self, graph: str) -> list[str]:
        """The .data files beside a graph that it names as the place of its weights."""
        beside = PurePosixPath(graph).parent
        candidates = [
            name
            for name in sorted(self.manifest.files)
            if name.endswith(".data") and PurePosixPath(name).parent == beside
        ]
        if not candidates or self.file(graph).stat().st_size == 0:
            return []
        with (
            self.file(graph).open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return [n for n in candidates if content.find(PurePosixPath(n).name.encode()) >= 0]

    def open(self, role: str, runtime: Runtime, variant: str | None = None) -> Opened:
        """Load the graph of a role where the runtime says, and tell what was taken."""
        return open_role(self.graphs(role, variant), runtime, cache_folder() / "engines")

    def session(self, role: str, runtime: Runtime, variant: str | None = None) -> Session:
        """As `open`, but only the graph."""
        return self.open(role, runtime, variant).session

    def verify(self) -> None:
        """Compare every file with the manifest, byte for byte.

        Raises:
            FileChanged: one is missing or not the one that was exported.
        """
        for name, record in self.manifest.files.items():
            path = inside(self.folder, name)
            if _stat_size(path) != record.size or _sha256(path) != record.sha256:
                raise _changed(path)

    def verify_once(self) -> None:
        """As `verify`, but files whose stamp was verified before are not read again."""
        stamps = {name: _stamp(self.file(name)) for name in self.manifest.files}
        record = cache_folder() / "verified" / f"{self.digest}.json"
        key = json.dumps(stamps, sort_keys=True)
        try:
            known = record.read_text("utf-8") == key
        except OSError:
            known = False
        if not known:
            self.verify()
            _remember(record, key)

    def strangers(self) -> Iterator[Path]:
        """Files in the folder that the manifest does not name; they are never opened."""
        known = {inside(self.folder, name) for name in self.manifest.files}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path not in known and path.name != MANIFEST_FILE:
                yield path


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk."""

    folder: Path
    index: BundleIndex
    parts: dict[PartName, Part]

    @property
    def digest(self) -> str:
        """Names the content of all parts together, 12 hexadecimal digits."""
        joined = "".join(self.parts[name].digest for name in sorted(self.parts))
        return hashlib.sha256(joined.encode()).hexdigest()[:12]

    def part(self, name: PartName) -> Part:
        if name not in self.parts:
            raise BundleMissing(f"the bundle {self.folder} has no {name}")
        return self.parts[name]


def open_bundle(where: str | Path | None = None) -> Bundle:
    """Open a bundle by path, or by the name of one in `./engines`; the shipped one by default.

    Raises:
        BundleMissing: there is none.
        ManifestInvalid: a manifest is not what it should be.
    """
    folder = _find(where)
    index: BundleIndex = read_json(folder / BUNDLE_FILE, BundleIndex)
    parts = {name: open_part(folder / path, name) for name, path in index.parts.items()}
    return Bundle(folder, index, parts)


def open_part(folder: Path, kind: PartName) -> Part:
    """Open one part by its folder."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleMissing(f"there is no {kind} in {folder}", hint=f"{path} does not exist")
    manifest: Manifest = read_json(path, Manifest)
    if manifest.kind != kind:
        raise ManifestInvalid(f"{path} describes a {manifest.kind}, not a {kind}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Part(folder, manifest, digest)


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


def _find(where: str | Path | None) -> Path:
    package = Path(__file__).parent
    shipped = [package / "bundles" / SHIPPED, package.parent / "engines" / SHIPPED]
    if where is None:
        tried = shipped
    else:
        tried = [Path(where), Path("engines") / where]
        tried += shipped if str(where) == SHIPPED else []
    for folder in tried:
        if (folder / BUNDLE_FILE).is_file():
            return folder
    raise BundleMissing(
        f"there is no bundle `{where or SHIPPED}`",
        hint="make one with `segagent-rt export`, or leave --bundle out to use the shipped one",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _stat_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise _changed(path) from None


def _stamp(path: Path) -> list[str | int]:
    try:
        stat = path.stat()
    except OSError:
        raise _changed(path) from None
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _changed(path: Path) -> FileChanged:
    what = "is not the file that was exported" if path.exists() else "is missing"
    return FileChanged(f"{path} {what}", hint="copy the bundle again, or export it again")


def _remember(record: Path, key: str) -> None:
    """Write the stamp; a cache that cannot be written only costs time."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial = record.with_name(f"{record.name}.{os.getpid()}")
        partial.write_text(key, "utf-8")
        partial.replace(record)
    except OSError:
        pass
