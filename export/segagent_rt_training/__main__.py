"""`python -m segagent_rt_training`: train the models of the demo bundle, or the photo segmenter."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import to_json
from segagent_rt.cli import fail
from segagent_rt.cli.parameters import ImagesOption, option
from segagent_rt.errors import SegagentError, install_hint

WHAT = (
    "segmenter", "mllm", "all", "trajectories", "bundle", "calibrate", "report", "photo",
    "photo-bundle", "photo-gallery", "words-study",
)  # fmt: skip


def command(  # noqa: C901, PLR0913 (a command has as many options as it needs)
    what: Annotated[
        str,
        typer.Argument(
            help="Training stage, in this order: segmenter, mllm (or all), trajectories, bundle, "
            "report. bundle ends with calibrate: which masks need no rating. photo trains the "
            "segmenter for photos; photo-bundle exports and measures it; photo-gallery draws what "
            "it cuts out. words-study measures how well everyday words can be found in photos."
        ),
    ] = "all",
    folder: Annotated[
        Path, option("Checkpoints and logs; an earlier run continues.", "--folder")
    ] = Path("training"),
    seed: Annotated[int, option("Another seed gives another model.")] = 0,
    scale: Annotated[float, option("Share of the full number of samples.", min=0.0001)] = 1.0,
    processes: Annotated[int, option("Processes that train together.", min=1)] = 2,
    rounds: Annotated[
        int, option("Rounds of training on the masks of the model's own loop.", min=0)
    ] = 2,
    output: Annotated[
        Path | None,
        option(
            "The bundle to write, or to report on. [engines/tiny, photo] For words-study, the "
            "result, with a picture beside it. [docs/training/everyday-words.json]",
            "--output",
            "-o",
        ),
    ] = None,
    scenes: Annotated[int, option("Scenes and states that a bundle is judged by.", min=5)] = 500,
    allow_below_gate: Annotated[
        bool, option("Write a bundle that differs too much.", "--allow-below-gate")
    ] = False,
    init: Annotated[
        str | None,
        option(
            "A bundle's folder or name, such as tiny: its weights are the start of what has "
            "no checkpoint yet. With photo, activations are rounded too, as in the export; "
            "photo-bundle exports the bundle's own weights again.",
            metavar="BUNDLE",
        ),
    ] = None,
    trajectories: Annotated[
        list[Path] | None,
        option("The files of the stage trajectories; may be repeated.", metavar="FILE"),
    ] = None,
    images: ImagesOption = None,
    photos: Annotated[
        Path, option("Training photos with label maps, for photo and words-study.", "--photos")
    ] = Path("training_photos"),
    hours: Annotated[
        float, option("Computing time of all runs of photo together.", min=0.001)
    ] = 6.0,
    crop: Annotated[
        int, option("Pixels of a crop's side in photo; a multiple of 32.", min=64)
    ] = 256,
    crops: Annotated[int, option("Crops of a batch in photo.", min=1)] = 4,
    longest: Annotated[
        tuple[float, float],
        option("Least and most pixels that photo resizes a picture's longer side to."),
    ] = (240.0, 600.0),
    boxes: Annotated[
        float | None,
        option(
            "Share of the examples of photo that begin with a box. [0.3; with --init 0.35]",
            min=0.0,
            max=1.0,
        ),
    ] = None,
    held_out: Annotated[
        Path | None, option("Photos with one mask each that photo-bundle measures.", "--held-out")
    ] = None,
    mix: Annotated[
        float | None,
        option(
            "Share of the training's weights in photo-bundle; the others are those of --init.",
            min=0.0,
            max=1.0,
        ),
    ] = None,
    side: Annotated[
        int, option("Pixels of the square that photo-bundle exports for.", min=64)
    ] = 512,
) -> None:
    """Resumable: run it again after a kill. Needs the extra `export`.

    `trajectories` goes on from there, or from --init, with files that `segagent-rt trajectories`
    wrote. `bundle` exports the checkpoints and judges what comes out; `report` writes
    docs/training.md.
    """
    if what not in WHAT:
        raise typer.BadParameter(f"say one of {', '.join(WHAT)}")
    if (what == "trajectories") != bool(trajectories):
        raise typer.BadParameter("the stage trajectories, and no other, takes --trajectories")
    try:
        from segagent_rt_training.main import TrainingPlan, train
        from segagent_rt_training.report import write_report
        from segagent_rt_training.ship import Trial, calibrate_bundle, ship
    except ModuleNotFoundError:
        raise SegagentError(
            "training needs packages that are not installed", hint=install_hint("export")
        ) from None
    start = None if init is None else open_bundle(init)
    if what == "photo":
        from segagent_rt_training.photo.batches import BatchPlan
        from segagent_rt_training.photo.training import photo_recipe, train_photo

        if not 0 < longest[0] <= longest[1]:
            raise typer.BadParameter("--longest takes two sizes above 0, the smaller one first")
        plan = BatchPlan(seed, side=crop, images=crops, longest=longest)
        recipe = photo_recipe(hours, plan, start)
        if boxes is not None:
            recipe = replace(recipe, box_share=boxes)
        train_photo(recipe, photos, folder, processes, start)
    elif what == "photo-bundle":
        from segagent_rt_training.photo.bundle import (
            PhotoTrial,
            mixed_weights,
            ship_photo,
            shipped_weights,
            trained_weights,
        )

        if mix is not None and start is None:
            raise typer.BadParameter("--mix needs the bundle that training began with: --init")
        if start is None:
            weights = trained_weights(folder)
        elif mix is None:
            weights = shipped_weights(start)
        else:
            weights = mixed_weights(folder, start, mix)
        trial = PhotoTrial(photos, held_out, scenes, not allow_below_gate)
        ship_photo(weights, output or Path("engines/photo"), side, trial, _report_progress)
    elif what == "photo-gallery":
        from segagent_rt_training.photo.gallery import write_gallery

        target = Path("docs/photo-gallery.jpg")
        for name in write_gallery(photos, output or Path("engines/photo"), target):
            typer.echo(name)
    elif what == "words-study":
        from segagent_rt_training.words.study import StudyPlan, run_study
        from segagent_rt_training.words.training import WordsRecipe

        study = StudyPlan(recipe=WordsRecipe(seed))
        result = output or Path("docs/training/everyday-words.json")
        run_study(photos, folder, result, study, _report_progress)
    elif what == "bundle":
        ship(
            folder,
            output or Path("engines/tiny"),
            Trial(scenes, scenes, gated=not allow_below_gate),
            _report_progress,
        )
    elif what == "calibrate":
        found = calibrate_bundle(output or Path("engines/tiny"), scenes, _report_progress)
        typer.echo("every mask is rated" if found is None else json.dumps(to_json(found), indent=1))
    elif what == "report":
        write_report(folder, output or Path("engines/tiny"), Path("docs"))
    else:
        begin = None if start is None else start.folder
        files = tuple(trajectories or ())
        train(TrainingPlan(what, folder, seed, scale, processes, rounds, begin, files, images))  # type: ignore[arg-type]


def _report_progress(what: str) -> None:
    typer.echo(what, err=True)


def main() -> None:
    """Entry point."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=__doc__)(command)
    try:
        app(prog_name="python -m segagent_rt_training")
    except SegagentError as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
