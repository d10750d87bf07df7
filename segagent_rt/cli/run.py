"""Segment what an expression says, or what clicks show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import (
    DATA,
    SEARCH,
    AllowHostOption,
    BackendOption,
    BundleOption,
    CandidatesOption,
    EndpointOption,
    JsonOption,
    MaxClicksOption,
    ModelOption,
    OutputOption,
    OverwriteOption,
    PresetOption,
    QuietOption,
    ServerOption,
    TemperatureOption,
    ThreadsOption,
    TimeoutOption,
    ValueRangeOption,
    check_options,
    check_text,
    endpoint_of,
    finite,
    parse_box,
    parse_click,
    parse_range,
)
from segagent_rt.errors import BatchFailed, NoMaskFound
from segagent_rt.image import MAX_MEGAPIXELS
from segagent_rt.types import Box, Click, Prediction, Step, Trajectory

if TYPE_CHECKING:
    from segagent_rt.results import ResultFiles
    from segagent_rt.runtime import Runtime
    from segagent_rt.search import SearchConfig

WORDS = "expressions"
ONLY_WITH = dict.fromkeys(
    (
        "max_clicks", "candidates", "temperature", "deadline_ms", "endpoint", "model", "server",
        "timeout", "allow_host", "preset", "all_objects",
    ),
    (WORDS,),
)  # fmt: skip


def command(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="An image.", show_default=False, readable=False)],
    expressions: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help='What to cut out: "the red circle".', show_default=False),
    ] = None,
    click: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="A click instead of words: +120,80 adds, -30,40 removes.", rich_help_panel=SEARCH
        ),
    ] = None,
    box: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="A box around the object, alone or with clicks: left,top,right,bottom.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    all_objects: Annotated[
        bool,
        typer.Option(
            "--all",
            help="A mask for every object that matches, if the model lists several.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    bundle: BundleOption = None,
    output: OutputOption = Path(),
    overwrite: OverwriteOption = False,
    max_clicks: MaxClicksOption = 7,
    candidates: CandidatesOption = 1,
    temperature: TemperatureOption = 1.0,
    deadline_ms: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0,
            max=86_400_000,
            callback=finite,
            help="Stop after so long; the best mask so far is the result.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    max_megapixels: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Refuse larger images.", rich_help_panel=DATA),
    ] = MAX_MEGAPIXELS,
    value_range: ValueRangeOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    endpoint: EndpointOption = None,
    model: ModelOption = None,
    server: ServerOption = "openai",
    timeout: TimeoutOption = 120.0,
    allow_host: AllowHostOption = None,
    preset: PresetOption = None,
) -> None:
    """Writes NAME.segagent.json, NAME.segagent.mask.png and NAME.segagent.overlay.png.

    With several expressions the masks are NAME.segagent.1.mask.png and so on. The exit code is 5 if
    no mask was found.
    """
    clicks, area = [parse_click(text) for text in click or ()], parse_box(box)
    shown_by_hand = bool(clicks or area)
    if shown_by_hand == bool(expressions):
        raise typer.BadParameter("give either expressions, or --click and --box")
    check_options(context, "--click and --box" if shown_by_hand else WORDS, ONLY_WITH)
    where = endpoint_of(endpoint, model, server, timeout, allow_host, preset)
    from segagent_rt.image import load_image
    from segagent_rt.loop import StoppingRules
    from segagent_rt.results import ResultFiles
    from segagent_rt.runtime import load
    from segagent_rt.search import SearchConfig

    texts = check_text(expressions or [])
    files = ResultFiles.plan(output, image, max(1, len(texts)), overwrite=overwrite)
    pixels = load_image(image, max_megapixels, value_range=parse_range(value_range))
    seconds = None if deadline_ms is None else deadline_ms / 1000
    config = SearchConfig(StoppingRules(max_clicks, deadline=seconds), candidates, temperature)
    with load(
        bundle, backend=backend, threads=threads, endpoint=where, photo=shown_by_hand
    ) as runtime:
        if shown_by_hand:
            made = runtime.open(pixels).segment(clicks, box=area)
            found = [Trajectory("", tuple(steps_by_hand(clicks, area, made)))]
        else:
            found = annotate(runtime, pixels, texts, config, all_objects=all_objects)
            files = files.with_count(len(found))
        about = about_run(image, pixels, runtime)
    finish(files, pixels, found, about, as_json=as_json)


def annotate(
    runtime: Runtime,
    pixels: Any,
    texts: list[str],
    config: SearchConfig,
    *,
    all_objects: bool = False,
) -> list[Trajectory]:
    """Segment each expression, and report the steps on stderr."""
    asked = [runtime.annotator.check(text) for text in texts]
    canvas, found = runtime.open(pixels), list[Trajectory]()
    for text in asked:
        first = Trajectory(text, tuple(shown(canvas.search_steps(text, config=config))))
        found.append(first)
        if all_objects:
            found += canvas.further_objects(first)
        elif further := len(first.further_boxes):
            console.say(f"  {console.counted(further, 'further object')}: --all segments them, too")
    return found


def about_run(image: Path, pixels: Any, runtime: Runtime) -> dict[str, Any]:
    """What a result document says of the image and of what ran."""
    from segagent_rt.bundle.manifest import to_json

    return {
        "image": str(image),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "bundle": runtime.bundle.index.name,
        "digest": runtime.bundle.digest,
        "backends": to_json(runtime.placements),
        "endpoint": to_json(runtime.endpoint),
    }


def finish(
    files: ResultFiles,
    pixels: Any,
    found: list[Trajectory],
    about: dict[str, Any],
    *,
    as_json: bool = False,
) -> None:
    """Write the files, print what was found, and fail if there is no mask.

    Raises:
        NoMaskFound: no expression has a mask.
        BatchFailed: some have none.
    """
    from segagent_rt.draw import undrawable

    document = files.write(pixels, found, about)
    for trajectory in found:
        if left_out := undrawable(trajectory.expression):
            console.say(f"no font here has `{left_out}`: the overlay's caption leaves it out")
    if as_json:
        console.show_json(document)
    else:
        for result in document["results"]:
            console.show_row(*row(files.folder, result))
    check_found(document["results"])


def check_found(results: Sequence[dict[str, Any]]) -> None:
    """Raise `NoMaskFound` if no result has a mask, `BatchFailed` if some have none."""
    from segagent_rt.results import why_no_mask

    failed = [(result, why) for result in results if (why := why_no_mask(result)) is not None]
    if not failed:
        return
    stop = failed[0][0]["stop"]
    hint = {
        None: "give other clicks",
        "deadline": "give it more time with --deadline-ms",
        "malformed": "was the bundle exported with the preset that the model was trained for?",
    }.get(stop, "say it in other words, or show the object with --click")
    text = "; ".join(why for _, why in failed)
    raise (NoMaskFound if len(failed) == len(results) else BatchFailed)(text, hint=hint)


def steps_by_hand(clicks: list[Click], box: Box | None, prediction: Prediction) -> Iterator[Step]:
    """The steps of a mask that clicks and a box alone have made."""
    if not clicks:
        yield Step(prediction=prediction, box=box)
    for click in clicks:
        yield Step(click, prediction, box=box)


def shown(steps: Iterator[Step]) -> Iterator[Step]:
    """Pass the steps on, and report each on stderr."""
    number = 0
    for step in steps:
        rated = "" if step.rating is None else f"  rated {step.rating:.2f}"
        if step.click is not None:
            number += 1
            sign = "+" if step.click.positive else "-"
            at = f"{sign}({step.click.x}, {step.click.y}){' restarted' if step.restarted else ''}"
            console.say(f"  click {number}: {at}{rated}")
        elif step.box is not None:
            box = step.box
            console.say(f"  box: ({box.x0}, {box.y0}) to ({box.x1}, {box.y1}){rated}")
        elif step.given:
            console.say(f"  given mask{rated}")
        if step.stop is not None:
            console.say(f"  {step.stop}")
        yield step


def row(folder: Path, result: dict[str, Any]) -> list[str]:
    """The mask's file, its rating, the clicks, why it ended, the expression."""
    return [
        str(folder / result["files"]["mask"]) if "files" in result else "no mask",
        rating_of(result),
        _prompts_of(result),
        result["stop"] or "given",
        result["expression"],
    ]


def _prompts_of(result: dict[str, Any]) -> str:
    """What the mask was made of: a box, clicks, or both."""
    clicks = console.counted(len(result["clicks"]), "click")
    boxed = any(step["box"] for step in result["steps"])
    return clicks if not boxed else f"a box and {clicks}" if result["clicks"] else "a box"


def rating_of(result: dict[str, Any]) -> str:
    """The MLLM's rating of the mask, 0 to 1, or else the segmenter's own estimate."""
    if result["predicted_iou"] is not None:
        return f"{result['predicted_iou']:.2f}"
    if result["estimated_iou"] is not None:
        return f"{result['estimated_iou']:.2f} estimated"
    return "unrated"
