"""Prepare a bundle for a hub, and upload it on request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from segagent_rt.cli import console
from segagent_rt.cli.parameters import BundleArgument, option


def command(
    bundle: BundleArgument = None,
    output: Annotated[
        Path | None, option("New folder. Default: upload/NAME.", "--output", "-o")
    ] = None,
    target: Annotated[
        str | None,
        option("Upload the folder to hf:owner/name. A new repository is private.", "--upload"),
    ] = None,
) -> None:
    """Writes a folder with the bundle's files and a model card. Nothing leaves this machine
    without --upload."""
    from segagent_rt.bundle.bundle import open_bundle
    from segagent_rt.hub.bundles import prepare_upload, upload
    from segagent_rt.hub.repository import parse_repository

    repository = None if target is None else parse_repository(target)
    opened = open_bundle(bundle)
    folder = output or Path("upload") / opened.folder.resolve().name
    prepare_upload(opened, folder)
    console.show_row("folder", folder)
    if repository is not None:
        console.show_row("uploaded", upload(folder, repository))
