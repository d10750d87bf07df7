"""Open bundles: check their manifests and files, choose a variant, load graphs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.graph import Graph
from segagent_rt.bundle.integrity import (
    LARGEST,
    Stamp,
    changed,
    hash_regular,
    open_checked,
    read_regular,
    recall_verified,
    remember_verified,
    stamp,
    unusable,
)
from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
    MANIFEST_FILE,
    BundleIndex,
    Manifest,
    PartName,
    UnratedAcceptance,
    Variant,
    decode_json,
    inside,
    parse,
    read_json,
)
from segagent_rt.bundle.onnx_files import external_files
from segagent_rt.bundle.placement import OpenedGraph, open_role
from segagent_rt.bundle.store import PHOTO, cache_folder, find_bundle
from segagent_rt.errors import BundleMissing, ManifestInvalid
from segagent_rt.types import Array, Session

S = TypeVar("S")

RULES = 2
"""Raised when more is verified: what was verified by fewer rules is verified again."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a bundle on disk; `digest` names its content."""

    folder: Path
    manifest: Manifest
    digest: str
    _stamps: dict[str, Stamp] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of the files that were compared with the manifest, by name."""
    _weights: dict[str, list[str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The files that graphs keep their weights in, by name of the graph."""

    def file(self, name: str) -> Path:
        """The path of a file of this part.

        Raises:
            ManifestInvalid: the manifest does not list it.
            FileChanged: it was verified, and is another one now.
        """
        if name not in self.manifest.files:
            raise ManifestInvalid(f"{self.folder / MANIFEST_FILE} lists no file `{name}`")
        path = inside(self.folder, name)
        known = self._stamps.get(name)
        if known is not None and stamp(path) != known:
            raise changed(path, "was changed while it was in use")
        return path

    def text(self, name: str) -> str:
        """A text file of this part.

        Raises:
            BundleError: it is not listed, was changed, or is not UTF-8.
        """
        path = self.file(name)
        content = read_regular(path, self.manifest.files[name].size, self._stamps.get(name))
        with unusable(path):
            return content.decode("utf-8")

    def array(self, name: str) -> Array:
        """A NumPy file of this part as a memory map.

        Raises:
            BundleError: it is not listed, was changed, or is not an array of floats by rows.
        """
        path, form = self.file(name), np.lib.format
        with unusable(path), open_checked(path, self._stamps.get(name)) as stream:
            read = {1: form.read_array_header_1_0, 2: form.read_array_header_2_0}
            shape, columns_first, dtype = read[form.read_magic(stream)[0]](stream)
            if dtype.kind != "f" or columns_first:
                raise ValueError(f"it holds {dtype}{' by columns' if columns_first else ''}")
            return np.memmap(stream, dtype, "r", stream.tell(), shape)

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
        path = self.file(file)
        hashes = [self.manifest.files[n].sha256 for n in (file, *self.weights(file))]
        digest = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
        golden = self.file(variant.golden[role]) if role in variant.golden else None
        return Graph(path, digest, self.manifest.kind, role, name, variant, golden)

    def weights(self, graph: str) -> list[str]:
        """The files that a graph keeps its weights in, by their names in the manifest.

        Raises:
            ManifestInvalid: one of them is not listed there.
        """
        if graph not in self._weights:
            path = self.file(graph)
            sizes = {name: record.size for name, record in self.manifest.files.items()}
            known = self._stamps.get(graph) or stamp(path)
            self._weights[graph] = external_files(path, graph, sizes, known)
        return self._weights[graph]

    def open(self, role: str, runtime: SessionOptions, variant: str | None = None) -> OpenedGraph:
        """Load the graph of a role where the runtime says, and tell what was taken.

        Raises:
            BundleError: no graph can be used, or it was changed after it was verified.
        """
        opened = open_role(self.graphs(role, variant), runtime, cache_folder() / "engines")
        graph = opened.graph.variant.graphs[role]
        for name in (graph, *self.weights(graph)):
            self.file(name)  # what was opened is what was verified
        return opened

    def session(self, role: str, runtime: SessionOptions, variant: str | None = None) -> Session:
        """As `open`, but only the graph."""
        return self.open(role, runtime, variant).session

    def verify(self) -> None:
        """Compare every file with the manifest, byte for byte, and what graphs name as theirs.

        Raises:
            FileChanged: one is missing or not the one that was exported.
            ManifestInvalid: one leads out of the bundle, or a graph names one that is not listed.
        """
        for (name, record), place in zip(self.manifest.files.items(), self._places(), strict=True):
            found, self._stamps[name] = hash_regular(place, record.size)
            if found != record.sha256:
                raise changed(place, "is not the file that was exported")
        self._weights.clear()
        for variant in self.manifest.variants.values():
            for graph in variant.graphs.values():
                self.weights(graph)

    def verify_once(self) -> None:
        """As `verify`, but files whose stamps were verified before are not read again.

        Raises:
            BundleError: as `verify`.
        """
        record = cache_folder() / "verified" / f"{self.digest}.json"
        places = [*self._places(), self.folder / MANIFEST_FILE]
        stamps = {str(place): [*stamp(place)] for place in places}
        known = recall_verified(record)
        if known is None or known.get("files") != stamps or known.get("rules") != RULES:
            self.verify()
            remember_verified(record, {"rules": RULES, "files": stamps, "weights": self._weights})
            return
        found = map(tuple, stamps.values())
        self._stamps.update(zip(self.manifest.files, found, strict=False))
        self._weights.update(known["weights"])

    def _places(self) -> list[Path]:
        """Where the files are; a symbolic link must not lead out of the part's folder.

        Raises:
            ManifestInvalid: one does.
        """
        root, places = os.path.realpath(self.folder) + os.sep, list[Path]()
        for name in self.manifest.files:
            path = inside(self.folder, name)
            place = os.path.realpath(path)
            if not place.startswith(root):
                raise ManifestInvalid(
                    f"{path} is a link that leads out of the bundle",
                    hint="put a copy of the file there",
                )
            places.append(Path(place))
        return places

    def unlisted_files(self) -> Iterator[Path]:
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

    @property
    def loop_gain(self) -> float | None:
        """Mean gain in IoU by the clicks after the first mask, over all expressions measured.

        None if nothing was measured with the content that the bundle has now.
        """
        digest = self.digest
        known = [each for each in self.index.loop_gain.values() if each.digest == digest]
        if not known:
            return None
        return sum(e.samples * e.gain for e in known) / sum(e.samples for e in known)

    @property
    def accept_unrated(self) -> UnratedAcceptance | None:
        """From where on masks are accepted unrated; None unless measured with this content."""
        known = self.index.accept_unrated
        return known if known is not None and known.digest == self.digest else None

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


def open_photo_bundle(*, with_mllm: bool = False) -> Bundle:
    """The shipped segmenter for photos; with the demo bundle's MLLM if it is asked for.

    Raises:
        BundleError: the installation lacks it, or it is damaged.
    """
    bundle = open_bundle(PHOTO)
    if with_mllm:
        bundle = replace(bundle, parts={**bundle.parts, "mllm": open_bundle().part("mllm")})
    return bundle


def open_part(folder: Path, kind: PartName) -> Part:
    """Open one part by its folder."""
    path = folder / MANIFEST_FILE
    if not os.path.isfile(path):  # noqa: PTH113 (is_file raises for some names)
        raise BundleMissing(f"there is no {kind} in {folder}", hint=f"{path} does not exist")
    with unusable(path):
        content = read_regular(path, LARGEST)
        manifest: Manifest = decode_json(content, Manifest, path)
    if manifest.kind != kind:
        raise ManifestInvalid(f"{path} describes a {manifest.kind}, not a {kind}")
    return Part(folder, manifest, hashlib.sha256(content).hexdigest()[:12])
