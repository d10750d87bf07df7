"""Turn checkpoints into a bundle: exported, quantised, compared with what was published."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from segagent_rt.errors import BatchFailed, ExtraMissing

if TYPE_CHECKING:
    from segagent_rt_export.plan import Plan
    from segagent_rt_export.recipe import Recipe

EXTRA = ("torch", "transformers", "onnx", "onnxscript", "safetensors")
"""What the extra `export` installs."""


def command(
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A recipe's name or path.", show_default=False),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="The bundle's folder; engines/NAME if left out."),
    ] = None,
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="segmenter or mllm: export this part alone."),
    ] = None,
    variant: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A variant instead of those that the recipe names; may be repeated."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the recipes that come along.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the parts that an earlier run finished.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch models of hubs that are not here yet.")
    ] = False,
    calibration: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="A folder of photos to compare and calibrate on, instead of generated scenes."
        ),
    ] = None,
    below_gate: Annotated[
        bool,
        typer.Option(
            "--allow-below-gate", help="Write what is not good enough, too, and record that."
        ),
    ] = False,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Refer to equal parts of bundles beside this one instead of holding a copy.",
        ),
    ] = False,
    target: Annotated[
        str,
        typer.Option(help="bundle, or what a server of the MLLM loads: edge-llm, trtllm."),
    ] = "bundle",
) -> None:
    """Needs the extra `export`. What was compared, and how well it did, is in the manifest."""
    from segagent_rt_export.recipe import find_recipe, read_recipe

    if show:
        _list()
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe, or see --list")
    if only not in (None, "segmenter", "mllm"):
        raise typer.BadParameter("--only takes segmenter or mllm")
    if target not in ("bundle", "edge-llm", "trtllm"):
        raise typer.BadParameter("--target takes bundle, edge-llm or trtllm")
    if target != "bundle" and (only or variant or resume or below_gate or calibration or share):
        raise typer.BadParameter("of the other options only -o and --download go with --target")
    found = read_recipe(find_recipe(recipe)).narrowed(only, tuple(variant or ()))  # type: ignore[arg-type]
    if not all(map(find_spec, EXTRA)):
        raise ExtraMissing("export", "export")
    from segagent_rt_export.exporter import Judge, carry_out
    from segagent_rt_export.photos import open_photos
    from segagent_rt_export.plan import check_room, describe, make_plan
    from segagent_rt_export.sources import fetch_missing

    photos = None if calibration is None else open_photos(calibration)
    if download:
        wanted = found if target == "bundle" else found.narrowed("mllm", ())
        fetch_missing(wanted.sources, _tell)
    if target != "bundle":
        _prepare(found, target, output)
        return
    folder = output or Path("engines") / found.name
    named = "" if photos is None else photos.sha256
    plan = make_plan(
        found, folder, resume=resume, below_gate=below_gate, pictures=named, share=share
    )
    for line in describe(plan):
        typer.echo(line, err=True)
    check_room(plan)
    carry_out(plan, Judge(forgiving=below_gate, photos=photos), _tell)
    _report(plan)


def _prepare(recipe: Recipe, target: str, output: Path | None) -> None:
    """Tab-separated, a line each: what a command is for, and the command."""
    from segagent_rt_export.served.prepare import prepare

    folder = output or Path("engines") / f"{recipe.name}-{target}"
    served = prepare(recipe, target, folder, _tell)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        typer.echo(err=True)
    typer.echo(f"folder\t{folder}")
    for what, command in served.commands.items():
        typer.echo(f"{what}\t{command}")


def _list() -> None:
    """A line for each tracked recipe: its name, its families, what it is."""
    from segagent_rt_export.recipe import read_recipe, tracked_recipes

    for path in tracked_recipes():
        found = read_recipe(path)
        families = " + ".join(part.family for part in found.parts.values())
        typer.echo(f"{found.name}\t{families}\t{found.about}")


def _tell(text: str) -> None:
    """Progress on stderr: one line that changes on a terminal, a line each elsewhere."""
    if sys.stderr.isatty():
        typer.echo(f"\r{text[:78]:78s}", nl=False, err=True)
    else:
        typer.echo(text, err=True)


def _report(plan: Plan) -> None:
    """Tab-separated: each part, what became of it, its size, the gate's verdict, its folder."""
    from segagent_rt.bundle import open_bundle

    if sys.stderr.isatty():
        typer.echo(err=True)
    left_out = list[str]()
    bundle = open_bundle(plan.target)
    for part in plan.parts:
        opened = bundle.part(part.name)
        size = sum(record.size for record in opened.manifest.files.values())
        gate = opened.manifest.verified.get("gate", "not compared")
        typer.echo(f"{part.name}\t{part.state}\t{size / 1e6:.1f} MB\t{gate}\t{opened.folder}")
        for variant, reasons in opened.manifest.verified.get("left_out", {}).items():
            left_out.append(f"{variant} of the {part.name}")
            typer.echo(f"{part.name}\tleft out\t{variant}\t{'; '.join(reasons)}")
    if left_out:
        raise BatchFailed(
            f"{', '.join(left_out)} did not pass the gate; the other variants are written",
            hint="name only variants that pass, or use --allow-below-gate to write the others too",
        )
