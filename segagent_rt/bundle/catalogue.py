"""The bundles on this machine: where they lie, and what each is in a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segagent_rt.bundle.bundle import Bundle, open_bundle
from segagent_rt.bundle.manifest import BUNDLE_FILE
from segagent_rt.bundle.store import PHOTO, SHIPPED, bundles_folder
from segagent_rt.errors import BundleError

UNKNOWN = "not recorded"


@dataclass(frozen=True, slots=True)
class BundleSummary:
    """A bundle in a line.

    Attributes:
        name: under which `--bundle` finds it.
        families: of its parts, segmenter first.
        size: bytes of all files that its manifests list.
        licences: of the checkpoints it was made of, each once.
        gate: `passed`, or the verdict of the part that did not; `damaged` if it cannot be opened.
    """

    name: str
    folder: Path
    families: tuple[str, ...]
    size: int
    licences: tuple[str, ...]
    gate: str


def list_bundles() -> Iterator[BundleSummary]:
    """The bundles that are found by name: in `./engines`, the user's data folder, the package."""
    seen = set[str]()
    for parent in (Path("engines"), bundles_folder()):
        for index in sorted(parent.glob(f"[!.]*/{BUNDLE_FILE}")):
            name = index.parent.name
            if name not in seen:
                seen.add(name)
                yield _summary(name, index.parent)
    for name in (SHIPPED, PHOTO):
        if name not in seen:
            yield summarise(name, open_bundle(name))


def _summary(name: str, folder: Path) -> BundleSummary:
    """A bundle that cannot be opened is listed, so that somebody finds it."""
    try:
        return summarise(name, open_bundle(folder))
    except BundleError:
        return BundleSummary(name, folder, (), 0, (), "damaged")


def summarise(name: str, bundle: Bundle) -> BundleSummary:
    """A bundle in a line, from its manifests; no other file is read."""
    manifests = [part.manifest for _, part in sorted(bundle.parts.items(), reverse=True)]
    sizes = (record.size for manifest in manifests for record in manifest.files.values())
    licences = [str(manifest.provenance.get("licence", UNKNOWN)) for manifest in manifests]
    gates = [str(manifest.verified.get("gate", "passed")) for manifest in manifests]
    return BundleSummary(
        name,
        bundle.folder,
        tuple(manifest.family for manifest in manifests),
        sum(sizes),
        tuple(dict.fromkeys(licences)),
        next((gate for gate in gates if gate != "passed"), "passed"),
    )
