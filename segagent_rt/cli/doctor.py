"""Show what this machine can do."""

from __future__ import annotations

from typing import Any

from segagent_rt.cli import console
from segagent_rt.cli.parameters import JsonOption, QuietOption


def command(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Versions, cores, double installs, which backends really work."""
    from segagent_rt.doctor import examine

    report = examine()
    if as_json:
        console.show_json(report)
    else:
        console.show(_text(report))


def _text(report: dict[str, Any]) -> str:
    """The report in two columns, the first one as wide as its longest name."""
    backends = {
        each["name"]: "works" if each["works"] else f"no: {each['why']}"
        for each in report["backends"]
    }
    blocks = {"machine": report["machine"], "packages": report["packages"], "backends": backends}
    width = max(len(name) for block in blocks.values() for name in block)
    lines = list[str]()
    for title, block in blocks.items():
        lines += [f"{title}:", *(f"  {name:{width}s}  {block[name]}" for name in block), ""]
    lines += [f"advice: {advice}" for advice in report["advice"] or ["nothing to do"]]
    return "\n".join(lines)
