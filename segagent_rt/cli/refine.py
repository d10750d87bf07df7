"""Improve an existing mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.cli.option_groups import ComputeOptions, SearchOptions
from segagent_rt.cli.parameters import (
    BundleOption,
    JsonOption,
    MaskLabelOption,
    OutputOption,
    OverwriteOption,
    ValueRangeOption,
    check_options,
    check_text,
    parse_range,
)


def command(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="Image file.", show_default=False)],
    mask: Annotated[Path, typer.Argument(help="Mask of the same size.", show_default=False)],
    expression: Annotated[
        str, typer.Argument(help="What the mask should cover, in words.", show_default=False)
    ],
    bundle: BundleOption = None,
    output: OutputOption = Path(),
    overwrite: OverwriteOption = False,
    *,
    search: SearchOptions,
    mask_label: MaskLabelOption = None,
    value_range: ValueRangeOption = None,
    compute: ComputeOptions,
    as_json: JsonOption = False,
) -> None:
    """Writes NAME.refined.segagent.json, a mask and an overlay.

    The mask stays as it is if no click makes one that is rated higher.
    """
    check_options(context)
    from segagent_rt.cli.run_output import finish, shown
    from segagent_rt.data.canvas_cache import check_size
    from segagent_rt.data.masks import load_mask
    from segagent_rt.image import load_image
    from segagent_rt.results import ResultFiles, SaveOptions, about_run
    from segagent_rt.runtime import load
    from segagent_rt.segmenters.prediction import GivenMask
    from segagent_rt.types import Trajectory

    (expression,) = check_text([expression])
    files = ResultFiles.plan(
        output, image, 1, kind=".refined", saved=SaveOptions(overwrite=overwrite)
    )
    pixels = load_image(image, value_range=parse_range(value_range))
    prior = GivenMask(load_mask(mask, mask_label))
    check_size(pixels.shape, prior.full.shape, image)
    with load(bundle, backend=compute.backend, threads=compute.threads) as runtime:
        said = runtime.annotator.check(expression)
        steps = runtime.open(pixels).search_steps(said, config=search.config(), prior=prior)
        found = Trajectory(said, tuple(shown(steps)))
        about = {**about_run(image, pixels, runtime), "mask": str(mask)}
    finish(files, pixels, [found], about, as_json=as_json)
