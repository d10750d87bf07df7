"""Open bundles: check their manifests and files, choose a variant, load graphs."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.integrity import (
    changed_file,
    file_stamp,
    remember_stamp,
    sha256_of,
    size_of,
)
from segagent_rt.bundle.manifest import (
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
from segagent_rt.bundle.placement import Opened, open_role
from segagent_rt.bundle.store import cache_folder, find_bundle
from segagent_rt.engine_cache.key import Graph
from segagent_rt.errors import BundleMissing, ManifestInvalid
from segagent_rt.types import Session

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

    def open(self, role: str, runtime: SessionOptions, variant: str | None = None) -> Opened:
        """Load the graph of a role where the runtime says, and tell what was taken."""
        return open_role(self.graphs(role, variant), runtime, cache_folder() / "engines")

    def session(self, role: str, runtime: SessionOptions, variant: str | None = None) -> Session:
        """As `open`, but only the graph."""
        return self.open(role, runtime, variant).session

    def verify(self) -> None:
        """Compare every file with the manifest, byte for byte.

        Raises:
            FileChanged: one is missing or not the one that was exported.
        """
        for name, record in self.manifest.files.items():
            path = inside(self.folder, name)
            if size_of(path) != record.size or sha256_of(path) != record.sha256:
                raise changed_file(path)

    def verify_once(self) -> None:
        """As `verify`, but files whose stamp was verified before are not read again."""
        stamps = {name: file_stamp(self.file(name)) for name in self.manifest.files}
        record = cache_folder() / "verified" / f"{self.digest}.json"
        key = json.dumps(stamps, sort_keys=True)
        try:
            known = record.read_text("utf-8") == key
        except OSError:
            known = False
        if not known:
            self.verify()
            remember_stamp(record, key)

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
    folder = find_bundle(where)
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
