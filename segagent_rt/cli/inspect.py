"""Show what a bundle is: parts, variants, files, verified numbers."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional

import typer

from segagent_rt.cli.parameters import JsonOption


def command(
    bundle: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A bundle's folder or name; the shipped one if left out."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file's hash.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Reads the manifests; with --verify every byte."""
    from segagent_rt.bundle import Bundle, open_bundle
    from segagent_rt.contracts import to_json

    opened: Bundle = open_bundle(bundle)
    if verify:
        for part in opened.parts.values():
            part.verify()
    document: dict[str, Any] = {
        "bundle": opened.index.name,
        "folder": str(opened.folder),
        "digest": opened.digest,
        "about": opened.index.about,
        "verified_files": verify,
        "parts": {
            name: {"digest": part.digest, **to_json(part.manifest)}
            for name, part in opened.parts.items()
        },
        "strangers": [str(p) for part in opened.parts.values() for p in part.strangers()],
    }
    typer.echo(json.dumps(document) if as_json else _text(document))


def _text(document: dict[str, Any]) -> str:
    lines = [f"{document['bundle']}  {document['digest']}  {document['folder']}"]
    if document["about"]:
        lines.append(document["about"])
    for name, part in document["parts"].items():
        size = sum(record["size"] for record in part["files"].values())
        lines += ["", f"{name}: {part['family']}, {size / 1e6:.1f} MB, {part['digest']}"]
        for variant, record in part["variants"].items():
            graphs = ", ".join(f"{role} {file}" for role, file in record["graphs"].items())
            lines.append(f"  {variant} ({record['device']}, {record['precision']}): {graphs}")
        for title in ("provenance", "verified"):
            lines += _nested(title, part[title], "  ")
    if document["verified_files"]:
        lines += ["", "every file is the one that was exported"]
    for path in document["strangers"]:
        lines.append(f"not in the manifest, never opened: {path}")
    return "\n".join(lines)


def _nested(title: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, dict):
        if not value:
            return []
        inner = [line for k, v in value.items() for line in _nested(k, v, indent + "  ")]
        return [f"{indent}{title}:", *inner]
    return [f"{indent}{title}: {value}"]
