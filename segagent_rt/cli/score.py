"""Rate how well a mask fits its expression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segagent_rt.cli import console
from segagent_rt.cli.option_groups import ComputeOptions
from segagent_rt.cli.parameters import (
    DATA,
    RESULTS,
    BundleOption,
    ImagesOption,
    JsonOption,
    MaskLabelOption,
    OverwriteOption,
    SkipBadOption,
    ValueRangeOption,
    check_options,
    check_text,
    number_option,
    option,
    parse_range,
)

if TYPE_CHECKING:
    from segagent_rt.data.sources import Places
    from segagent_rt.eval.ratings import Rated

MANY = "--annotations"
ALONE = "a single mask"
ONLY_WITH = {
    **dict.fromkeys(("below", "images", "skip_bad", "output", "overwrite"), (MANY,)),
    **dict.fromkeys(("mask_label", "value_range"), (ALONE,)),
}


def command(
    context: typer.Context,
    image: Annotated[Path | None, typer.Argument(help="Image file.", show_default=False)] = None,
    mask: Annotated[
        Path | None, typer.Argument(help="Mask of the same size.", show_default=False)
    ] = None,
    expression: Annotated[
        str | None, typer.Argument(help="What the mask should cover, in words.", show_default=False)
    ] = None,
    annotations: Annotated[
        Path | None, option("COCO file with annotations to rate.", "--annotations", panel=DATA)
    ] = None,
    below: Annotated[
        float | None,
        number_option("Print only annotations with a lower rating, from 0 to 1.", min=0, max=1),
    ] = None,
    images: ImagesOption = None,
    skip_bad: SkipBadOption = False,
    mask_label: MaskLabelOption = None,
    value_range: ValueRangeOption = None,
    output: Annotated[
        Path | None,
        option(
            "Write the remaining annotations, with ratings, to this file.",
            "--output",
            "-o",
            panel=RESULTS,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    bundle: BundleOption = None,
    *,
    compute: ComputeOptions,
    as_json: JsonOption = False,
) -> None:
    """Prints the predicted IoU, from 0 to 1.

    With --annotations, it prints a line for each: id, IoU, image, expressions.
    """
    alone = (image, mask, expression)
    if (annotations is None) == (None in alone) or (annotations and any(alone)):
        raise typer.BadParameter("give an image, a mask and an expression, or --annotations")
    check_options(context, MANY if annotations else ALONE, ONLY_WITH)
    from segagent_rt.data.sources import Places
    from segagent_rt.runtime import load

    if expression is not None:
        check_text([expression])
    if output is not None:
        from segagent_rt.io import check_replaceable, check_writable

        check_writable(output.parent)
        check_replaceable([output], overwrite=overwrite)
    with load(bundle, backend=compute.backend, threads=compute.threads, parts=["mllm"]) as runtime:
        if annotations is None:
            rating = _one(runtime, alone, mask_label, parse_range(value_range))
            if as_json:
                console.show_json({"expression": expression, "predicted_iou": round(rating, 4)})
            else:
                console.show(f"{rating:.2f}")
            return
        places = Places(Path(), images, skip_bad)
        document, rated = _rate(runtime, annotations, places)
    if output is not None:
        from segagent_rt.eval.ratings import filtered
        from segagent_rt.io import json_bytes, write_result

        kept = json_bytes(filtered(document, rated, below))
        write_result(output, kept, overwrite=overwrite)
    _report(rated, below, as_json=as_json)


def _one(
    runtime: Any, alone: tuple[Any, ...], label: int | None, value_range: tuple[float, float] | None
) -> float:
    from segagent_rt.data.canvas_cache import check_size
    from segagent_rt.data.masks import load_mask
    from segagent_rt.eval.ratings import rate

    image, mask, expression = alone
    given, canvas = load_mask(mask, label), runtime.open(image, value_range=value_range)
    check_size(canvas.image.shape, given.shape, image)
    return rate(canvas, given, [expression])


def _rate(runtime: Any, path: Path, places: Places) -> tuple[Any, list[Rated]]:
    """The document, and each of its annotations with a rating."""
    from segagent_rt.data.coco import looks_like_coco, read_coco
    from segagent_rt.data.reading import read_json
    from segagent_rt.errors import DataInvalid
    from segagent_rt.eval.ratings import rate_all

    document = read_json(path)
    if not looks_like_coco(document):
        raise DataInvalid(
            f"{path} does not hold COCO annotations",
            hint=f"turn it into them: segagent-rt convert {path} --to coco",
        )
    context = places.context(path.parent)
    samples = read_coco(document, path.name, context)
    context.report_progress(path.name, len(samples), sum(sample.crowd for sample in samples))
    return document, list(rate_all(samples, runtime, console.progress(path.stem)))


def _report(rated: list[Rated], below: float | None, *, as_json: bool) -> None:
    """Print the ratings, and fail if some could not be made.

    Raises:
        BatchFailed: an annotation has no rating.
    """
    from segagent_rt.errors import BatchFailed

    chosen = [
        (each.sample, each.rating)
        for each in rated
        if each.rating is not None and (below is None or each.rating < below)
    ]
    if as_json:
        listed = [
            {
                "id": sample.id,
                "predicted_iou": round(rating, 4),
                "image": sample.name,
                "expressions": list(sample.expressions),
            }
            for sample, rating in chosen
        ]
        console.show_json({"annotations": listed})
    else:
        for sample, rating in chosen:
            console.show_row(sample.id, f"{rating:.2f}", sample.name, "; ".join(sample.expressions))
    unrated = [each for each in rated if each.rating is None]
    for each in unrated:
        console.warn(f"{each.sample.source}: {each.problem}")
    if unrated:
        raise BatchFailed(
            f"{len(unrated)} of {console.counted(len(rated), 'annotation')} could not be rated"
        )
