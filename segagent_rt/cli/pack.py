"""Write a bundle as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from segagent_rt.cli import console
from segagent_rt.cli.parameters import BundleArgument, option


def command(
    bundle: BundleArgument = None,
    variant: Annotated[list[str] | None, option("Pack only this variant. May be repeated.")] = None,
    output: Annotated[
        Path | None, option("File to write. Default: NAME.segagent.", "--output", "-o")
    ] = None,
    overwrite: Annotated[bool, option("Replace an existing file.", "--overwrite")] = False,
) -> None:
    """The file holds every part with its hashes. `run -b FILE` and `unpack` read it."""
    from segagent_rt.bundle.archive import SUFFIX
    from segagent_rt.bundle.bundle import open_bundle
    from segagent_rt.bundle.packing import pack

    opened = open_bundle(bundle)
    target = output or Path(opened.folder.resolve().name + SUFFIX)
    report_progress = console.progress(f"packing {target.name}", in_logs=False, in_bytes=True)
    index = pack(
        opened, target, variants=variant or (), overwrite=overwrite, report_progress=report_progress
    )
    size = sum(record.size for record in index.files.values())
    console.show_row(target, console.counted(len(index.files), "file"), f"{size / 1e6:.1f} MB")
