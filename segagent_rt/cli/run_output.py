"""What `run`, `refine` and `demo` print: steps, a row for each result, and failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segagent_rt.cli import console
from segagent_rt.errors import BatchFailed, NoMaskFound
from segagent_rt.types import RgbImage, Step, Trajectory

if TYPE_CHECKING:
    from segagent_rt.batch import BatchFolder, ImageOutcome
    from segagent_rt.batch_options import BatchOptions
    from segagent_rt.html_report.run_report import RunReport
    from segagent_rt.results import ResultFiles

NAMED = 20
"""So many failed images are named at the end; the summary names all."""


def finish(
    files: ResultFiles,
    pixels: RgbImage,
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


@contextmanager
def reporting(path: Path | None, options: BatchOptions, count: int) -> Iterator[RunReport | None]:
    """What takes results for a report, which is written at the end, also if masks are missing.

    Args:
        path: of the report; None if none is wanted.
        options: of the run.
        count: how many objects there will be.

    Raises:
        OutputError: on entering: the file cannot be written, or somebody else wrote the one there.
    """
    if path is None:
        yield None
        return
    from segagent_rt.html_report.builder import ReportBuilder
    from segagent_rt.html_report.run_report import RunReport
    from segagent_rt.io import check_replaceable, check_writable

    check_writable(path.parent)
    check_replaceable([path], overwrite=options.overwrite)
    report = RunReport(path, ReportBuilder(count), options.max_megapixels, options.value_range)
    try:
        yield report
    except (BatchFailed, NoMaskFound):
        report.write(overwrite=options.overwrite)
        raise
    report.write(overwrite=options.overwrite)
    console.say(f"report: {path}")


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
        _mask_of(folder, result),
        rating_of(result),
        _prompts_of(result),
        result["stop"] or "given",
        result["expression"],
    ]


def _mask_of(folder: Path, result: dict[str, Any]) -> str:
    """The mask's file; the document's key where no mask was saved."""
    if "files" not in result:
        return "no mask"
    return str(folder / result["files"]["mask"]) if "mask" in result["files"] else "mask not saved"


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


def show_batch(
    outcomes: Iterator[ImageOutcome], batch: BatchFolder, *, lost_is_fine: bool, as_json: bool
) -> None:
    """Print a row for each result of a batch as it is made, and write the summary.

    Args:
        outcomes: of all images.
        batch: where they are.
        lost_is_fine: whether an image without the object is no failure, as a frame of a video.
        as_json: print the rows of the summary as one document instead.

    Raises:
        NoMaskFound: no image has a mask.
        BatchFailed: some images failed.
    """
    rows: list[dict[str, Any]] = []
    failed: list[ImageOutcome] = []
    found = 0
    for outcome in outcomes:
        found += outcome.found
        if outcome.problem is not None and not (lost_is_fine and outcome.document is not None):
            failed.append(outcome)
        console.clear_line()
        if as_json:
            rows.append(outcome.row())
        elif outcome.document is None:
            console.show_row("failed", outcome.image)
        else:
            for result in outcome.document["results"]:
                console.show_row(*row(batch.folder, result), outcome.image)
    summary = batch.summarise()
    if as_json:
        console.show_json({"summary": str(summary), "images": rows})
    console.say(f"summary: {summary}")
    for outcome in failed[:NAMED]:
        console.warn(f"failed: {outcome.image}: {outcome.problem}")
    if len(failed) > NAMED:
        console.warn(f"and {len(failed) - NAMED} more, which {summary} names")
    _check_batch(failed, batch.count, found)


def _check_batch(failed: Sequence[ImageOutcome], count: int, found: int) -> None:
    unread = sum(outcome.document is None for outcome in failed)
    if not found and not unread:
        raise NoMaskFound(
            "no image has a mask", hint="say it in other words, or show the object with --click"
        )
    if failed:
        again = "run the same command again: finished images are not done again"
        raise BatchFailed(
            f"{len(failed)} of {console.counted(count, 'image')} failed",
            hint=again if unread else "say it in other words, or show the object with --click",
        )
