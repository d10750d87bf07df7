"""Show which backends work on this machine, and what is missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import JsonOption


def command(
    bundle: Annotated[
        str | None, typer.Argument(help="Also show which variants of this bundle suit this GPU.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints versions, cores, conflicting packages and the state of each backend."""
    from segagent_rt.doctor import examine, examine_variants

    report = examine()
    if bundle is not None:
        from segagent_rt.bundle.bundle import open_bundle

        report["variants"] = examine_variants(open_bundle(bundle))
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
    if "variants" in report:
        from segagent_rt.cli.inspect import variant_line

        found = [variant_line(fit) for fit in report["variants"]]
        lines += [*(found or ["variants: there is no GPU here; those for CPUs run"]), ""]
    lines += [f"advice: {advice}" for advice in report["advice"] or ["nothing to do"]]
    return "\n".join(lines)
