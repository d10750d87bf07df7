"""Download a bundle from a hub."""

from __future__ import annotations

from typing import Annotated

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import option


def command(
    repository: Annotated[
        str,
        typer.Argument(
            help="Repository of the bundle: hf:owner/name or hf:owner/name@revision.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        option("Name of the bundle on this machine. Default: the repository's name.", "--name"),
    ] = None,
) -> None:
    """Every file is compared with the bundle's manifests first."""
    from segagent_rt.bundle.store import bundles_folder, is_name
    from segagent_rt.hub.bundles import pull_bundle
    from segagent_rt.hub.repository import parse_repository

    found = parse_repository(repository)
    called = found.name if name is None else name
    if not is_name(called):
        raise typer.BadParameter(f"`{called}` cannot be the name of a bundle")
    bundle = pull_bundle(
        found, bundles_folder() / called, console.phases(), show_bars=console.draws_bars()
    )
    console.end_line()
    console.show_row(called, bundle.folder)
