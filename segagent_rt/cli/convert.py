"""Convert data sets to other formats, and trajectories to training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from segagent_rt.cli import console
from segagent_rt.cli.option_groups import DataOptions
from segagent_rt.cli.parameters import (
    JsonOption,
    OutputOption,
    OverwriteOption,
    check_options,
    option,
)

if TYPE_CHECKING:
    from segagent_rt.data.sources import Places

Format: TypeAlias = Literal["llama-factory", "qwen-vl", "coco", "labelme", "segagent"]
TRAINING: tuple[Format, ...] = ("llama-factory", "qwen-vl")
ONLY_WITH = {"preset": TRAINING}


def command(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(help="A data file, a folder, a split by name, or a file of trajectories."),
    ],
    to: Annotated[Format, option("Format to write. llama-factory and qwen-vl need trajectories.")],
    *,
    reading: DataOptions,
    preset: Annotated[
        str | None, option("Preset of the training data: segagent, segagent-rated, ...")
    ] = None,
    output: OutputOption = Path("segagent-data"),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Training data has an image, a question and a reply for each click.

    The mask is painted over the image.
    """
    check_options(context, to, ONLY_WITH)
    from segagent_rt.data import conversion
    from segagent_rt.data.sources import open_data
    from segagent_rt.io import check_writable

    check_writable(output)
    problems = list[str]()
    places = reading.places()
    if to in TRAINING:
        noun = "sample"
        count = _training(data, to, preset, places, (output, overwrite, problems))
        made = [(output, count)]
    else:
        noun, write = "object", conversion.TARGETS[to]
        opened = open_data(data, places)
        made = [(write(each, output, overwrite=overwrite), len(each.samples)) for each in opened]
    if as_json:
        console.show_json([{"path": str(path), f"{noun}s": count} for path, count in made])
    else:
        for path, count in made:
            console.show_row(path, console.counted(count, noun))
    _report(problems)


def _report(problems: list[str]) -> None:
    """Name the trajectories that gave no sample.

    Raises:
        BatchFailed: there are some.
    """
    from segagent_rt.errors import BatchFailed

    for problem in problems:
        console.warn(problem)
    if problems:
        count = console.counted(len(problems), "trajectory", "trajectories")
        raise BatchFailed(f"{count} without a usable image")


def _training(
    data: str, to: str, preset: str | None, places: Places, where: tuple[Path, bool, list[str]]
) -> int:
    """Write training data; returns how many samples there are.

    Args:
        data: a file of trajectories.
        to: the format.
        preset: of the replies; None for the format's own.
        places: where images lie.
        where: the folder, whether to replace files that are not ours, and the list that takes a
            sentence about each trajectory that gave no sample.
    """
    from segagent_rt.data import training
    from segagent_rt.data.sources import open_trajectories
    from segagent_rt.errors import DataInvalid
    from segagent_rt.io import check_replaceable
    from segagent_rt.mllm.prompts import PRESETS

    output, overwrite, problems = where
    target, context = training.TARGETS[to], places.context(Path())
    name = preset or target.preset
    chosen = training.check_preset(name, PRESETS)
    check_replaceable((output / name for name in target.files), overwrite=overwrite)
    shown = list(training.trainable(open_trajectories(data, places), context))
    context.report_progress(data, len(shown))
    report_progress = console.progress(Path(data).stem)
    taught = list(
        training.conversation_samples(
            shown, chosen, output, report_progress, problems, overwrite=overwrite
        )
    )
    if not taught:
        raise DataInvalid(f"{data} gives no sample: {'; '.join(problems[:1])}")
    target.write(output, taught, name, overwrite=overwrite)
    return len(taught)
