"""Show what this machine can do."""

from __future__ import annotations

import json
from typing import Any

import typer

from segagent_rt.cli.parameters import JsonOption


def command(as_json: JsonOption = False) -> None:
    """Versions, cores, double installs, which backends really work."""
    from segagent_rt.doctor import examine

    report = examine()
    typer.echo(json.dumps(report) if as_json else _text(report))


def _text(report: dict[str, Any]) -> str:
    lines = [f"{name:14s} {value}" for name, value in report["machine"].items()]
    lines += ["", "packages:"]
    lines += [f"  {name:24s} {version}" for name, version in report["packages"].items()]
    lines += ["", "backends:"]
    lines += [
        f"  {b['name']:10s} {'works' if b['works'] else 'no: ' + b['why']}"
        for b in report["backends"]
    ]
    lines += ["", *(f"advice: {advice}" for advice in report["advice"] or ["nothing to do"])]
    return "\n".join(lines)
