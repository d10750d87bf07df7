"""Segment what an expression says, or what clicks show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from segagent_rt.cli.parameters import (
    AllowHostOption,
    BackendOption,
    BundleOption,
    CandidatesOption,
    EndpointOption,
    JsonOption,
    ModelOption,
    OutputOption,
    ServerOption,
    TemperatureOption,
    ThreadsOption,
    TimeoutOption,
    ValueRangeOption,
    endpoint_of,
    parse_click,
    parse_range,
)
from segagent_rt.image import MAX_MEGAPIXELS
from segagent_rt.types import Click, Prediction, Step, Trajectory


def command(
    image: Annotated[Path, typer.Argument(help="A picture.", show_default=False, readable=False)],
    expressions: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help='What to cut out: "the red circle".', show_default=False),
    ] = None,
    click: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A click instead of words: +120,80 adds, -30,40 removes."),
    ] = None,
    bundle: BundleOption = None,
    output: OutputOption = Path(),
    max_clicks: Annotated[int, typer.Option(min=1, help="The most clicks per expression.")] = 7,
    candidates: CandidatesOption = 1,
    temperature: TemperatureOption = 1.0,
    deadline_ms: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Stop after so long; the best mask so far is the result."),
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(min=0, help="Refuse larger pictures.")
    ] = MAX_MEGAPIXELS,
    value_range: ValueRangeOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    endpoint: EndpointOption = None,
    model: ModelOption = None,
    server: ServerOption = "openai",
    timeout: TimeoutOption = 120.0,
    allow_host: AllowHostOption = None,
) -> None:
    """Writes <stem>.<n>.mask.png, <stem>.<n>.overlay.png and <stem>.json."""
    clicks = [parse_click(text) for text in click or ()]
    if bool(clicks) == bool(expressions):
        raise typer.BadParameter("give either expressions or --click")
    from segagent_rt.contracts import to_json
    from segagent_rt.files import check_writable
    from segagent_rt.image import load_image
    from segagent_rt.loop import StoppingRules
    from segagent_rt.runtime import load
    from segagent_rt.search import SearchConfig

    check_writable(output)
    pixels = load_image(image, max_megapixels, value_range=parse_range(value_range))
    where = endpoint_of(endpoint, model, server, timeout, allow_host)
    with load(bundle, backend=backend, threads=threads, endpoint=where) as runtime:
        canvas = runtime.open(pixels)
        about = {"image": str(image), "height": pixels.shape[0], "width": pixels.shape[1]}
        about |= {"bundle": runtime.bundle.index.name, "digest": runtime.bundle.digest}
        if clicks:
            found = [Trajectory("", tuple(_as_steps(clicks, canvas.segment(clicks))))]
        else:
            asked = [runtime.annotator.check(text) for text in expressions or ()]
            seconds = None if deadline_ms is None else deadline_ms / 1000
            rules = StoppingRules(max_clicks, deadline=seconds)
            config = SearchConfig(rules, candidates, temperature)
            found = [
                Trajectory(text, tuple(shown(canvas.search_steps(text, config=config))))
                for text in asked
            ]
        about["backends"] = to_json(runtime.placements)
        about["endpoint"] = to_json(runtime.endpoint)
    document = write_results(image.stem, output, pixels, found, about)
    if as_json:
        typer.echo(json.dumps(document))
        return
    for result in document["results"]:
        typer.echo(line(output, result))


def _as_steps(clicks: list[Click], prediction: Prediction) -> Iterator[Step]:
    for click in clicks:
        yield Step(click, prediction)


def shown(steps: Iterator[Step]) -> Iterator[Step]:
    """Pass the steps on, and report each on stderr."""
    number = 0
    for step in steps:
        rated = "" if step.rating is None else f"  rated {step.rating:.2f}"
        if step.click is not None:
            number += 1
            sign = "+" if step.click.positive else "-"
            at = f"{sign}({step.click.x}, {step.click.y}){' restarted' if step.restarted else ''}"
            typer.echo(f"  click {number}: {at}{rated}", err=True)
        elif step.box is not None:
            box = step.box
            typer.echo(f"  box: ({box.x0}, {box.y0}) to ({box.x1}, {box.y1}){rated}", err=True)
        elif step.given:
            typer.echo(f"  given mask{rated}", err=True)
        if step.stop is not None:
            typer.echo(f"  {step.stop}", err=True)
        yield step


def write_results(
    stem: str, folder: Path, pixels: Any, found: list[Trajectory], about: dict[str, Any]
) -> dict[str, Any]:
    """A mask and an overlay for each trajectory, and the document about them, which is returned."""
    from segagent_rt.draw import draw_overlay, png
    from segagent_rt.files import atomic_write
    from segagent_rt.results import describe

    results = []
    for number, trajectory in enumerate(found, 1):
        result = describe(trajectory)
        if trajectory.prediction is not None:
            mask = trajectory.prediction.mask()
            names = {kind: f"{stem}.{number}.{kind}.png" for kind in ("mask", "overlay")}
            shown = draw_overlay(pixels, mask, trajectory.clicks, trajectory.expression)
            atomic_write(folder / names["mask"], png(mask))
            atomic_write(folder / names["overlay"], png(shown))
            result["files"] = names
        results.append(result)
    document = {**about, "results": results}
    atomic_write(folder / f"{stem}.json", (json.dumps(document, indent=1) + "\n").encode())
    return document


def line(folder: Path, result: dict[str, Any]) -> str:
    """Tab-separated: the mask's file, its rating, the clicks, why it ended, the expression."""
    rating = result["predicted_iou"]
    return "\t".join(
        (
            str(folder / result["files"]["mask"]) if "files" in result else "no mask",
            "unrated" if rating is None else f"{rating:.2f}",
            f"{len(result['clicks'])} clicks",
            result["stop"] or "given",
            result["expression"],
        )
    )
