"""Turn data sets into other formats, and trajectories into training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from segagent_rt.cli.parameters import (
    ImagesOption,
    MaskLabelOption,
    OutputOption,
    RootOption,
    SkipBadOption,
    telling,
)


def command(
    data: Annotated[
        str, typer.Argument(help="A data file, a folder, a split, or a file of trajectories.")
    ],
    to: Annotated[
        str,
        typer.Option(help="llama-factory or qwen-vl (of trajectories); coco, labelme, segagent."),
    ],
    images: ImagesOption = None,
    skip_bad: SkipBadOption = False,
    mask_label: MaskLabelOption = None,
    root: RootOption = Path(),
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Prompt and reply of the training data: segagent, segagent-rated, ..."),
    ] = None,
    output: OutputOption = Path("segagent-data"),
) -> None:
    """Training data is one picture, question and reply for every click, the mask painted in."""
    from segagent_rt.data import conversion, training
    from segagent_rt.data.sources import Places, open_data, open_trajectories
    from segagent_rt.errors import BatchFailed, DataInvalid
    from segagent_rt.files import check_writable
    from segagent_rt.mllm.prompts import PRESETS

    known = (*training.TARGETS, *conversion.TARGETS)
    if to not in known:
        raise typer.BadParameter(f"--to is {', '.join(known[:-1])} or {known[-1]}, not `{to}`")
    check_writable(output)
    places = Places(root, images, skip_bad, mask_label)
    if to in conversion.TARGETS:
        for each in open_data(data, places):
            path = conversion.TARGETS[to](each, output)
            typer.echo(f"{path}\t{len(each.samples)} objects")
        return
    target = training.TARGETS[to]
    chosen = training.check_preset(preset or target.preset, PRESETS)
    context, problems = places.context(Path()), list[str]()
    shown = list(training.trainable(open_trajectories(data, places), context))
    context.tell(data, len(shown))
    taught = list(training.lessons(shown, chosen, output, telling(Path(data).stem), problems))
    if not taught:
        raise DataInvalid(f"{data} gives no sample: {'; '.join(problems[:1])}")
    target.write(output, taught)
    typer.echo(f"{output}\t{len(taught)} samples")
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise BatchFailed(f"{len(problems)} of {len(shown)} trajectories have no usable picture")
