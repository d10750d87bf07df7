"""Write the parts of a bundle: files first, manifest last, the folder moved into place whole."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segagent_rt.bundle.bundle import Part
from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
    MANIFEST_FILE,
    BundleIndex,
    FileRecord,
    Manifest,
    PartName,
    Variant,
    inside,
    to_json,
)
from segagent_rt.io import atomic_write, json_bytes


@contextmanager
def new_part(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` if the block ends well, and vanishes if not."""
    scratch = target.with_name(f".{target.name}-{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        old = target.with_name(f".{target.name}-old")
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def copy_part(part: Part, target: Path) -> None:
    """A part's files in another bundle, as hard links where the file system can."""
    with new_part(target) as folder:
        for name in (*part.manifest.files, MANIFEST_FILE):
            copy = inside(folder, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(inside(part.folder, name), copy)
            except OSError:
                shutil.copy2(inside(part.folder, name), copy)


@dataclass(frozen=True, slots=True)
class PartDraft:
    """A part before its files are counted and hashed."""

    kind: PartName
    family: str
    settings: Any
    variants: Mapping[str, Variant]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    verified: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(folder: Path, draft: PartDraft, *, hashed: bool = True) -> Manifest:
    """Describe every file of the folder; the manifest is the last file written.

    Args:
        folder: the part's.
        draft: what the files are.
        hashed: whether files are named by their content; not needed while a part is made.
    """
    files = file_records(folder, hashed=hashed)
    manifest = Manifest(
        kind=draft.kind,
        family=draft.family,
        settings=to_json(draft.settings),
        variants=draft.variants,
        files=files,
        provenance=draft.provenance,
        tools=tool_versions(),
        verified=draft.verified,
    )
    write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def file_records(folder: Path, *, hashed: bool = True) -> dict[str, FileRecord]:
    """Size and hash of every file of a folder but its manifest, by path within it."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(
            path.stat().st_size, _sha256(path) if hashed else ""
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }


def write_index(folder: Path, index: BundleIndex) -> None:
    """Write `bundle.json`."""
    write_json(folder / BUNDLE_FILE, index)


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass as JSON."""
    atomic_write(path, json_bytes(to_json(value), indent=1))


def tool_versions() -> dict[str, str]:
    """Versions of what has a say in the result."""
    names = ("segagent-rt", "torch", "transformers", "onnx", "onnxruntime", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
