"""Bundles on a hub: fetched and verified before they can be seen, and prepared for upload.

A repository holds a bundle as its folder does: `bundle.json`, and the parts' folders with their
manifests. Only files that a manifest lists are taken.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segagent_rt.bundle.archive import written_whole
from segagent_rt.bundle.bundle import Bundle, open_bundle
from segagent_rt.bundle.catalogue import UNKNOWN, summarise
from segagent_rt.bundle.integrity import LARGEST
from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
    MANIFEST_FILE,
    BundleIndex,
    Manifest,
    inside,
    read_json,
)
from segagent_rt.bundle.packing import copy_bundle
from segagent_rt.errors import HubError, ManifestInvalid, OutputError
from segagent_rt.hub.client import hub_of
from segagent_rt.hub.refusals import explained
from segagent_rt.hub.repository import HubRepository, Listing
from segagent_rt.types import ProgressReporter

CARD = "README.md"


def pull_bundle(
    repository: HubRepository,
    folder: Path,
    report_progress: ProgressReporter,
    *,
    show_bars: bool = False,
) -> Bundle:
    """Fetch a bundle into a new folder, which appears when every byte was compared.

    Args:
        repository: that holds the bundle.
        folder: must not be there yet.
        report_progress: is told what is fetched.
        show_bars: whether the hub's client may draw its progress bars on stderr.

    Raises:
        HubError: the hub refuses or breaks off, or the repository holds no bundle.
        ManifestInvalid: a manifest is not what it should be, or names a file outside.
        FileChanged: a file is not the one that its manifest names.
        OutputError: the folder is there already, or cannot be written.
    """
    if folder.exists():
        raise OutputError(
            f"{folder} is there already", hint="choose another name with --name, or remove it"
        )
    hub = hub_of(repository)
    listing = hub.list_files(repository)

    def fetch(names: list[str], sizes: Mapping[str, int]) -> Path:
        _expect_listed(listing, names, sizes)
        return hub.fetch(listing.only(names), report_progress, show_bars=show_bars)

    # 1. The index and the manifests, which say what else there is.
    cached = fetch([BUNDLE_FILE], {})
    index: BundleIndex = read_json(cached / BUNDLE_FILE, BundleIndex)
    names, sizes = [BUNDLE_FILE], dict[str, int]()
    for part in index.parts.values():
        inside(cached, part)
        described = f"{part}/{MANIFEST_FILE}"
        fetch([described], {})
        manifest: Manifest = read_json(cached / described, Manifest)
        sizes |= {f"{part}/{name}": record.size for name, record in manifest.files.items()}
        names.append(described)
    # 2. The files, copied aside and compared with the manifests.
    names += sizes
    fetch(names, sizes)
    with written_whole(folder) as partial:
        for name in names:
            place = inside(partial, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cached / name, place)
        bundle = open_bundle(partial)
        for opened in bundle.parts.values():
            opened.verify()
        partial.rename(folder)
    return open_bundle(folder)


def _expect_listed(listing: Listing, names: list[str], sizes: Mapping[str, int]) -> None:
    """See before a download that the repository has files of the sizes that manifests name."""
    known = {file.name: file.size for file in listing.files}
    for name in names:
        found, wanted = known.get(name), sizes.get(name)
        if found is None and name == BUNDLE_FILE:
            raise HubError(
                f"{listing.repository} has no `{BUNDLE_FILE}`, so it holds no bundle",
                hint=f"if it is a checkpoint: segagent-rt export {listing.repository}",
            )
        if found is None or found > LARGEST if wanted is None else found != wanted:
            raise ManifestInvalid(
                f"{listing.repository} has no `{name}` of the size that its manifest names",
                hint="tell the bundle's owner",
            )


def prepare_upload(bundle: Bundle, folder: Path) -> None:
    """Write a folder to be uploaded: the files of a bundle and a model card.

    Args:
        bundle: every file is compared with its manifest.
        folder: must not be there yet.

    Raises:
        FileChanged: a file of the bundle is not the one that was exported.
        OutputError: the folder is there already, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"{folder} is there already", hint="choose another folder with -o")
    with written_whole(folder) as partial:
        partial.mkdir(parents=True)
        copy_bundle(bundle, partial)
        (partial / CARD).write_text(model_card(bundle), "utf-8")
        partial.rename(folder)


def model_card(bundle: Bundle) -> str:
    """The page of a bundle: its licences, what it was made of, and the figures of its gate."""
    summary = summarise(bundle.index.name, bundle)
    parts = sorted(bundle.parts.items(), reverse=True)
    bases = [str(p.manifest.provenance.get("model", "")) for _, p in parts]
    base = [name.removeprefix("hf:").split("@")[0] for name in bases if name.startswith("hf:")]
    licence = summary.licences[0] if len(summary.licences) == 1 else "other"
    lines = [
        "---",
        f"license: {'other' if licence == UNKNOWN else ' '.join(licence.split())}",
        "library_name: segagent-rt",
        "pipeline_tag: image-segmentation",
        *(["base_model:", *(f"  - {name}" for name in base)] if base else []),
        "---",
        "",
        f"# {bundle.index.name}",
        "",
        bundle.index.about or "A bundle of segagent-rt.",
        "",
        "```",
        "segagent-rt pull hf:OWNER/NAME",
        f'segagent-rt run photo.jpg "the mug" -b {bundle.index.name}',
        "```",
        "",
        "| part | family | made of | licence | variants | gate |",
        "|---|---|---|---|---|---|",
        *(_card_row(name, part.manifest) for name, part in parts),
        "",
        "The licence of each checkpoint applies to the part that was made of it.",
        "",
    ]
    return "\n".join(lines)


def _card_row(name: str, manifest: Manifest) -> str:
    origin: Any = manifest.provenance
    made_of = f"{origin.get('model', origin.get('source', UNKNOWN))} {origin.get('commit', '')}"
    fields = [
        name, manifest.family, made_of.strip(), origin.get("licence", UNKNOWN),
        ", ".join(manifest.variants), manifest.verified.get("gate", "not compared"),
    ]  # fmt: skip
    return (
        "| " + " | ".join(" ".join(str(field).replace("|", "/").split()) for field in fields) + " |"
    )


def upload(folder: Path, repository: HubRepository) -> str:
    """Upload a prepared folder to a model of Hugging Face, which is made private if it is new.

    Returns:
        The address of the commit.

    Raises:
        HubError: it is another hub's, or the hub refuses.
    """
    if repository.hub != "hf":
        raise HubError(
            f"bundles cannot be uploaded to {repository}",
            hint=f"use the hub's own client: modelscope upload {repository.id} {folder}",
        )
    from huggingface_hub import HfApi, get_token

    with explained(repository, with_token=bool(get_token())):
        api = HfApi()
        api.create_repo(repository.id, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository.id,
            folder_path=folder,
            revision=repository.revision,
            commit_message="Bundle of segagent-rt",
        )
    return str(done)
