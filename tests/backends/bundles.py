"""Bundles for tests: the shipped segmenter in several variants."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from segagent_rt.bundle.bundle import Part, open_bundle, open_part
from segagent_rt.bundle.manifest import BundleIndex, FileRecord, Range, to_json

ROLES = ("encoder", "decoder")


def write_bundle(folder: Path, variants: list[str], device: str = "gpu") -> Path:
    """A bundle without an MLLM; each variant has graphs of its own, which compute the same."""
    shipped = open_bundle().part("segmenter")
    manifest, target = shipped.manifest, folder / "segmenter"
    target.mkdir(parents=True)
    first = manifest.variants["cpu-w8"]
    files, found = {}, {}
    for role in ROLES:  # every variant has the same weights
        file = f"{role}.onnx.data"
        shutil.copy(shipped.file(file), target / file)
        files[file] = manifest.files[file]
    for name in variants:
        graphs = {role: f"{role}.{name}.onnx" for role in ROLES}
        for role, file in graphs.items():
            # A doc string (field 6 of the model) of its own: equal graphs would share an engine.
            note = b"\x32" + bytes([len(name)]) + name.encode()
            content = shipped.file(first.graphs[role]).read_bytes() + note
            (target / file).write_bytes(content)
            files[file] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        profiles = {"decoder": ({"points": Range((1, 1, 3), (1, 4, 3), (1, 16, 3))},)}
        found[name] = dataclasses.replace(
            first, device=device, dialect="portable", graphs=graphs, profiles=profiles
        )
    manifest = dataclasses.replace(manifest, files=files, variants=found)
    (target / "manifest.json").write_text(json.dumps(to_json(manifest)))
    index = BundleIndex("test", {"segmenter": "segmenter"})
    (folder / "bundle.json").write_text(json.dumps(to_json(index)))
    return folder


def segmenter(folder: Path) -> Part:
    """The part of such a bundle."""
    return open_part(folder / "segmenter", "segmenter")
