"""Write a bundle as one file, with all or some of its variants; `archive` has the layout."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segagent_rt.bundle.archive import BLOCK, INDEX_FILE, ArchiveIndex, CopyReporter, written_whole
from segagent_rt.bundle.bundle import Bundle, Part
from segagent_rt.bundle.integrity import LARGEST, changed, open_checked, read_regular
from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
    MANIFEST_FILE,
    BundleIndex,
    FileRecord,
    Manifest,
    inside,
    to_json,
    variant_name,
)
from segagent_rt.errors import BundleMissing, OutputError
from segagent_rt.io import json_bytes

_MODE = (stat.S_IFREG | 0o644) << 16
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every entry, so that a bundle always becomes the same bytes."""


@dataclass(frozen=True, slots=True)
class _Content:
    """A file to be packed: what it must be, and its bytes or its place."""

    record: FileRecord
    source: bytes | Path


def pack(
    bundle: Bundle,
    target: Path,
    *,
    variants: Sequence[str] = (),
    overwrite: bool = False,
    report_progress: CopyReporter | None = None,
) -> ArchiveIndex:
    """Write a bundle as one file. Every file is compared with its manifest on the way.

    Args:
        bundle: its parts may lie in other bundles' folders; the archive holds them.
        target: the archive.
        variants: the only ones to take; all if empty. Each part must have one of them.
        overwrite: replace a file that is there.
        report_progress: is told how much is copied.

    Raises:
        BundleMissing: a part has none of the variants, or no part has one of them.
        FileChanged: a file is not the one that was exported.
        OutputError: the archive exists already, or cannot be written.
    """
    if os.path.lexists(target) and not overwrite:
        raise OutputError(
            f"{target} exists already", hint="choose another name with -o, or use --overwrite"
        )
    contents = _contents(bundle, variants)
    index = ArchiveIndex(bundle.index.name, {name: c.record for name, c in contents.items()})
    listing = _in_memory(json_bytes(to_json(index), indent=1))
    total = sum(content.record.size for content in (listing, *contents.values()))
    done = 0
    with written_whole(target) as partial:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, content in {INDEX_FILE: listing, **contents}.items():
                for count in _add(archive, name, content):
                    done += count
                    if report_progress is not None:
                        report_progress(done, total)
        partial.replace(target)
    return index


def copy_bundle(bundle: Bundle, folder: Path, variants: Sequence[str] = ()) -> int:
    """Write the files of a bundle into an empty folder, each compared with its manifest.

    Args:
        bundle: its parts may lie in other bundles' folders; the copy holds them.
        folder: where `bundle.json` and the parts' folders go.
        variants: the only ones to take; all if empty.

    Returns:
        The number of bytes.

    Raises:
        BundleMissing: a part has none of the variants, or no part has one of them.
        FileChanged: a file is not the one that was exported.
    """
    contents = _contents(bundle, variants)
    for name, content in contents.items():
        place = inside(folder, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with place.open("xb") as stream:
            for block in _blocks(content):
                digest.update(block)
                stream.write(block)
        if digest.hexdigest() != content.record.sha256 and isinstance(content.source, Path):
            raise changed(content.source, "is not the file that was exported")
    return sum(content.record.size for content in contents.values())


def _contents(bundle: Bundle, variants: Sequence[str]) -> dict[str, _Content]:
    """Every file of the archive but its index, by path."""
    variants = [variant_name(name) for name in variants]
    known = {name for part in bundle.parts.values() for name in part.manifest.variants}
    if unknown := [name for name in variants if name not in known]:
        raise BundleMissing(
            f"{bundle.folder} has no variant `{unknown[0]}`", hint="it has " + ", ".join(known)
        )
    index = BundleIndex(
        bundle.index.name,
        {name: name for name in bundle.parts},
        bundle.index.about,
        bundle.index.loop_gain,
        bundle.index.accept_unrated,
    )
    found = {BUNDLE_FILE: _in_memory(json_bytes(to_json(index), indent=1))}
    for name, part in bundle.parts.items():
        manifest = _narrowed(part, variants)
        whole = manifest == part.manifest  # then its digest stays what it is
        content = (
            read_regular(part.folder / MANIFEST_FILE, LARGEST)
            if whole
            else json_bytes(to_json(manifest), indent=1)
        )
        found[f"{name}/{MANIFEST_FILE}"] = _in_memory(content)
        for file, record in manifest.files.items():
            found[f"{name}/{file}"] = _Content(record, inside(part.folder, file))
    return found


def _narrowed(part: Part, variants: Sequence[str]) -> Manifest:
    """The manifest with these variants alone, and without the files that only others need."""
    manifest = part.manifest
    kept = {name: v for name, v in manifest.variants.items() if not variants or name in variants}
    if not kept:
        raise BundleMissing(
            f"the {manifest.kind} has none of the variants {', '.join(variants)}",
            hint="name one of " + ", ".join(manifest.variants),
        )
    by_variant = {
        name: {f for graph in v.graphs.values() for f in (graph, *part.weights(graph))}
        | {*v.golden.values()}
        for name, v in manifest.variants.items()
    }
    needed = set[str]().union(*(by_variant[name] for name in kept))
    dropped = set[str]().union(*by_variant.values()) - needed
    files = {name: record for name, record in manifest.files.items() if name not in dropped}
    return replace(manifest, variants=kept, files=files)


def _in_memory(content: bytes) -> _Content:
    return _Content(FileRecord(len(content), hashlib.sha256(content).hexdigest()), content)


def _add(archive: zipfile.ZipFile, name: str, content: _Content) -> Iterator[int]:
    """Write an entry; yields the number of bytes of each block."""
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr, entry.create_system, entry.file_size = _MODE, 3, content.record.size
    digest = hashlib.sha256()
    with archive.open(entry, "w") as stream:
        for block in _blocks(content):
            digest.update(block)
            stream.write(block)
            yield len(block)
    if digest.hexdigest() != content.record.sha256 and isinstance(content.source, Path):
        raise changed(content.source, "is not the file that was exported")


def _blocks(content: _Content) -> Iterator[bytes]:
    """The bytes of a file, of one that grew only those that it should have."""
    if isinstance(content.source, bytes):
        yield content.source
        return
    left = content.record.size
    with open_checked(content.source) as stream:
        while left and (block := stream.read(min(BLOCK, left))):
            left -= len(block)
            yield block
