"""Improve a mask that is there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.cli.parameters import (
    BackendOption,
    BundleOption,
    CandidatesOption,
    JsonOption,
    MaskLabelOption,
    OutputOption,
    TemperatureOption,
    ThreadsOption,
    ValueRangeOption,
    parse_range,
)


def command(
    image: Annotated[Path, typer.Argument(help="A picture.", show_default=False)],
    mask: Annotated[Path, typer.Argument(help="The mask, of its size.", show_default=False)],
    expression: Annotated[str, typer.Argument(help="What it should cover.", show_default=False)],
    bundle: BundleOption = None,
    output: OutputOption = Path(),
    max_clicks: Annotated[int, typer.Option(min=1, help="The most clicks.")] = 7,
    candidates: CandidatesOption = 1,
    temperature: TemperatureOption = 1.0,
    mask_label: MaskLabelOption = None,
    value_range: ValueRangeOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Writes <stem>.refined.1.mask.png, an overlay and <stem>.refined.json.

    The mask stays as it is if no click makes one that is rated higher.
    """
    from segagent_rt.cli.run import line, shown, write_results
    from segagent_rt.contracts import to_json
    from segagent_rt.data.canvas_cache import check_size
    from segagent_rt.data.masks import load_mask
    from segagent_rt.files import check_writable
    from segagent_rt.image import load_image
    from segagent_rt.loop import StoppingRules
    from segagent_rt.runtime import load
    from segagent_rt.search import SearchConfig
    from segagent_rt.segmenters.prediction import GivenMask
    from segagent_rt.types import Trajectory

    check_writable(output)
    pixels = load_image(image, value_range=parse_range(value_range))
    prior = GivenMask(load_mask(mask, mask_label))
    check_size(pixels.shape, prior.full.shape, image)
    with load(bundle, backend=backend, threads=threads) as runtime:
        said = runtime.annotator.check(expression)
        config = SearchConfig(StoppingRules(max_clicks), candidates, temperature)
        steps = runtime.open(pixels).search_steps(said, config=config, prior=prior)
        found = Trajectory(said, tuple(shown(steps)))
        about = {"image": str(image), "mask": str(mask)}
        about |= {"bundle": runtime.bundle.index.name, "digest": runtime.bundle.digest}
        about |= {"backends": to_json(runtime.placements)}
    document = write_results(f"{image.stem}.refined", output, pixels, [found], about)
    typer.echo(json.dumps(document) if as_json else line(output, document["results"][0]))
