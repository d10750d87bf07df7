"""Export published checkpoints to a bundle, and compare it with them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import check_options, option
from segagent_rt.errors import BatchFailed, ExtraMissing

if TYPE_CHECKING:
    from segagent_rt.hub.repository import HubRepository
    from segagent_rt_export.plan import Plan
    from segagent_rt_export.recipe import Recipe

LIST, BUNDLE = "--list", "--target bundle"
CHECKPOINT = "Without a recipe"
ONLY_DETECTED = ("segmenter", "preset", "base", "print_recipe")
"""Options that say what a recipe would."""

ONLY_WITH = {
    **dict.fromkeys(("only", "variant", "resume", "below_gate", "calibration", "share"), (BUNDLE,)),
    **dict.fromkeys(
        ("recipe", "output", "target"),
        (BUNDLE, "--target edge-llm", "--target trtllm", "--target triton"),
    ),
    **dict.fromkeys(("agreed", "pin"), (BUNDLE, "--target edge-llm", "--target trtllm")),
}
FILES = (".png", ".jpg", ".jpeg", ".json", ".onnx", ".toml", ".zip", ".pt", ".pth", ".safetensors")
"""How the names of files end that people give in place of a bundle's folder."""

EXTRA = ("torch", "transformers", "onnx", "onnxscript", "safetensors")
"""What the extra `export` installs."""


def _expect_folder(output: Path | None) -> Path | None:
    """Refuse the name of a picture or another file where a folder is meant."""
    if output is not None and output.suffix.lower() in FILES:
        raise typer.BadParameter(f"it names a folder, and {output.name} looks like a file")
    return output


def command(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name or path; or a checkpoint: a folder, a .pt file, hf:owner/name.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "Folder of the bundle. Default: the recipe's name, in your data folder.",
            "--output",
            "-o",
            callback=_expect_folder,
        ),
    ] = None,
    only: Annotated[Literal["segmenter", "mllm"] | None, option("Export only this part.")] = None,
    variant: Annotated[
        list[str] | None, option("Variant to write instead of the recipe's. May be repeated.")
    ] = None,
    show: Annotated[bool, option("List the recipes of the package.", "--list")] = False,
    resume: Annotated[
        bool, option("Continue an interrupted export; finished parts stay.", "--resume")
    ] = False,
    agreed: Annotated[
        bool, option("Download missing models without a question.", "--yes", "-y", "--download")
    ] = False,
    calibration: Annotated[
        Path | None,
        option("Folder of photos for comparison and calibration, instead of generated scenes."),
    ] = None,
    below_gate: Annotated[
        bool,
        option(
            "Write parts that fail the gate, and record the failure in the manifest.",
            "--allow-below-gate",
        ),
    ] = False,
    share: Annotated[
        bool,
        option("Refer to equal parts of neighbouring bundles instead of copying them.", "--share"),
    ] = False,
    pin: Annotated[
        list[str] | None,
        option(
            "Commit of a model, instead of the recipe's or the newest: hf:owner/name@COMMIT. "
            "May be repeated."
        ),
    ] = None,
    target: Annotated[
        Literal["bundle", "edge-llm", "trtllm", "triton"],
        option("A bundle, or what a server loads. For triton, name a bundle instead of a recipe."),
    ] = "bundle",
    segmenter: Annotated[
        str | None,
        option(
            "The other part: a segmenter's checkpoint, or a recipe whose segmenter is taken.",
            panel=CHECKPOINT,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        option(
            "Preset of the MLLM: segagent-rated, qwen3-vl, ... (see engines/README.md).",
            panel=CHECKPOINT,
        ),
    ] = None,
    base: Annotated[
        str | None,
        option("Base model of an adapter, if the adapter does not name it.", panel=CHECKPOINT),
    ] = None,
    print_recipe: Annotated[
        bool,
        option("Print the recipe for a checkpoint, and stop.", "--print-recipe", panel=CHECKPOINT),
    ] = False,
) -> None:
    """Needs the extra `export`. The manifest records the comparison with the original."""
    check_options(context, LIST if show else f"--target {target}", ONLY_WITH)
    if show:
        _list()
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe or a checkpoint, or see --list")
    if target == "triton":
        _write_repository(recipe, output)
        return
    found = _read(context, recipe, tuple(variant or ())).pinned(pin or ())
    if print_recipe:
        return
    found = found.narrowed(only, tuple(variant or ()))
    if not all(map(find_spec, EXTRA)):
        raise ExtraMissing("export", "export")
    from segagent_rt_export.gate.photo_inputs import open_photo_inputs
    from segagent_rt_export.pipeline import GatePolicy, run_export
    from segagent_rt_export.plan import check_room, describe, make_plan

    photos = None if calibration is None else open_photo_inputs(calibration)
    folder = output or _folder(found, target)
    wanted = found if target == "bundle" else found.narrowed("mllm", ())
    _download(wanted, folder, agreed=agreed)
    if target != "bundle":
        _prepare(found, target, folder)
        return
    named = "" if photos is None else photos.sha256
    plan = make_plan(
        found, folder, resume=resume, below_gate=below_gate, pictures=named, share=share
    )
    for line in describe(plan):
        console.say(line)
    check_room(plan)
    run_export(plan, GatePolicy(forgiving=below_gate, photos=photos), _report_progress)
    _report(plan)


def _write_repository(bundle: str, output: Path | None) -> None:
    """A model repository for Triton; it needs no PyTorch."""
    from segagent_rt_export.targets.triton import write_repository

    folder = output or Path("triton")
    names = write_repository(bundle, folder, _report_progress)
    console.say(f"tritonserver --model-repository={folder}")
    console.show("\n".join(names))


def _read(context: typer.Context, name: str, variants: tuple[str, ...]) -> Recipe:
    """The recipe of that name; of a checkpoint the one that its files give, which is shown.

    Raises:
        typer.BadParameter: an option says what the recipe says.
    """
    from segagent_rt_export.recipe import find_recipe, is_checkpoint, read_recipe

    options = context.params
    given = [option for option in ONLY_DETECTED if options[option]]
    if not is_checkpoint(name):
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise typer.BadParameter(f"{flag} applies to a checkpoint, and {name} is a recipe")
        return read_recipe(find_recipe(name))
    if not all(map(find_spec, EXTRA)):
        raise ExtraMissing("export", "export")
    from segagent_rt_export.detection import Wishes, detect_recipe, needed_sources
    from segagent_rt_export.sources.locations import find_missing

    wishes = Wishes(options["preset"], options["base"], options["segmenter"], variants)
    for source in needed_sources(name, wishes):
        missing = find_missing([source])
        said = [f"downloads {model}, to read what it is" for model in missing]
        _fetch(missing, said, agreed=options["agreed"])
    recipe, text = detect_recipe(name, wishes)
    if options["print_recipe"]:
        console.show(text.rstrip())
    else:
        console.say(text)
    return recipe


def _folder(recipe: Recipe, target: str) -> Path:
    """Where the result goes if nobody said it."""
    from segagent_rt.bundle.store import bundles_folder

    if target == "bundle":
        return bundles_folder() / recipe.name
    return Path("engines") / f"{recipe.name}-{target}"


def _download(recipe: Recipe, folder: Path, *, agreed: bool) -> None:
    """Fetch the models of a recipe that are not here."""
    from segagent_rt_export.announcement import announce, check_disk
    from segagent_rt_export.sources.locations import find_missing, locate_local

    locate_local(recipe)
    missing = find_missing(recipe.sources)
    if missing:
        check_disk(recipe, missing, folder)
    _fetch(missing, announce(recipe, missing, folder), agreed=agreed)


def _fetch(missing: list[HubRepository], said: Iterable[str], *, agreed: bool) -> None:
    """Fetch models after somebody agreed.

    Args:
        missing: the models; nothing is done without any.
        said: what is told about the download before it is asked for consent.
        agreed: whether consent was given on the command line.

    Raises:
        SourceMissing: nobody agreed.
        HubError, TooLittleRoom: a model cannot be downloaded.
    """
    from segagent_rt_export.announcement import fetch_missing
    from segagent_rt_export.sources.locations import not_here

    if not missing:
        return
    for line in said:
        console.say(line)
    if not agreed and not console.ask("Download and export?"):
        raise not_here(missing[0])
    fetch_missing(missing, _report_progress, show_bars=console.draws_bars())
    console.end_line()


def _prepare(recipe: Recipe, target: str, folder: Path) -> None:
    """Tab-separated, a line each: what a command is for, and the command."""
    from segagent_rt_export.targets.prepare import prepare

    served = prepare(recipe, target, folder, _report_progress)  # type: ignore[arg-type]
    console.end_line()
    console.show_row("folder", folder)
    for what, command in served.commands.items():
        console.show_row(what, command)


def _list() -> None:
    """A line for each tracked recipe: its name, its families, what it is."""
    from segagent_rt_export.recipe import read_recipe, tracked_recipes

    for path in tracked_recipes():
        found = read_recipe(path)
        families = " + ".join(part.family for part in found.parts.values())
        console.show_row(found.name, families, found.about)


_report_progress = console.phases()


def _report(plan: Plan) -> None:
    """Tab-separated: each part, what became of it, its size, the gate's verdict, its folder."""
    from segagent_rt.bundle.bundle import open_bundle

    console.end_line()
    left_out = list[str]()
    bundle = open_bundle(plan.target)
    for part in plan.parts:
        opened = bundle.part(part.name)
        size = sum(record.size for record in opened.manifest.files.values())
        gate = opened.manifest.verified.get("gate", "not compared")
        megabytes = f"{size / 1e6:.1f} MB"
        console.show_row(part.name, part.state, megabytes, gate, opened.folder)
        instead = opened.manifest.verified.get("instead", {})
        for variant, reasons in opened.manifest.verified.get("left_out", {}).items():
            if variant in instead:
                what = f"left out, {instead[variant]} instead"
            else:
                what = "left out"
                left_out.append(f"{variant} of the {part.name}")
            console.show_row(part.name, what, variant, "; ".join(reasons))
    if left_out:
        raise BatchFailed(
            f"{', '.join(left_out)} did not pass the gate; the other variants are written",
            hint="name only variants that pass, or use --allow-below-gate to write the others too",
        )
