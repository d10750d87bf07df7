"""Unpack a bundle that `pack` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import option


def command(
    archive: Annotated[Path, typer.Argument(help="File that `pack` wrote.", show_default=False)],
    output: Annotated[
        Path | None, option("New folder. Default: engines/NAME.", "--output", "-o")
    ] = None,
) -> None:
    """Every file is compared with its hash. `run -b` also reads packed bundles directly."""
    from segagent_rt.bundle.archive import unpack

    folder = output or Path("engines") / archive.stem
    report_progress = console.progress(f"unpacking {archive.name}", in_logs=False, in_bytes=True)
    index = unpack(archive, folder, report_progress)
    console.show_row(folder, console.counted(len(index.files), "file"))
