"""List the bundles on this machine: exported, downloaded, and shipped."""

from __future__ import annotations

from segagent_rt.cli import console
from segagent_rt.cli.parameters import JsonOption


def command(as_json: JsonOption = False) -> None:
    """Each line has a bundle's name, families, size, licences, and the verdict of its gate."""
    from segagent_rt.bundle.catalogue import list_bundles

    found = list(list_bundles())
    if as_json:
        console.show_json(
            [
                {
                    "name": bundle.name,
                    "folder": str(bundle.folder),
                    "families": bundle.families,
                    "bytes": bundle.size,
                    "licences": bundle.licences,
                    "gate": bundle.gate,
                }
                for bundle in found
            ]
        )
        return
    for bundle in found:
        console.show_row(
            bundle.name,
            " + ".join(bundle.families),
            f"{bundle.size / 1e6:.1f} MB",
            ", ".join(bundle.licences),
            bundle.gate,
        )
