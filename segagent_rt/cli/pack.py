"""Write a bundle as one file, to carry it to another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import BundleArgument, QuietOption


def command(
    bundle: BundleArgument = None,
    variant: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Take this variant instead of all; may be repeated."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="The file; NAME.segagent if left out."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """The file holds every part with its hashes. `run -b` and `unpack` take it."""
    from segagent_rt.bundle.archive import SUFFIX
    from segagent_rt.bundle.bundle import open_bundle
    from segagent_rt.bundle.packing import pack

    opened = open_bundle(bundle)
    target = output or Path(opened.folder.resolve().name + SUFFIX)
    report_progress = console.progress(f"packing {target.name}", in_logs=False, in_bytes=True)
    index = pack(
        opened,
        target,
        variants=variant or (),
        overwrite=overwrite,
        report_progress=report_progress,
    )
    size = sum(record.size for record in index.files.values())
    console.show_row(target, console.counted(len(index.files), "file"), f"{size / 1e6:.1f} MB")
