"""Say how well a mask fits what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from segagent_rt.cli.parameters import (
    BackendOption,
    BundleOption,
    ImagesOption,
    MaskLabelOption,
    SkipBadOption,
    ThreadsOption,
    ValueRangeOption,
    parse_range,
    telling,
)

if TYPE_CHECKING:
    from segagent_rt.data.sources import Places
    from segagent_rt.eval.ratings import Rated


def command(
    image: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A picture.", show_default=False),
    ] = None,
    mask: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A mask of its size.", show_default=False),
    ] = None,
    expression: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="What the mask should cover.", show_default=False),
    ] = None,
    annotations: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="COCO annotations to rate instead."),
    ] = None,
    below: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, max=100, help="Print only annotations rated below this, of 100."),
    ] = None,
    images: ImagesOption = None,
    skip_bad: SkipBadOption = False,
    mask_label: MaskLabelOption = None,
    value_range: ValueRangeOption = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Write the other annotations, with ratings, here."),
    ] = None,
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Prints the predicted IoU, of 100; of annotations one line each: id, IoU, image, words."""
    from segagent_rt.data.sources import Places
    from segagent_rt.runtime import load

    alone = (image, mask, expression)
    if (annotations is None) == (None in alone) or (annotations and any(alone)):
        raise typer.BadParameter("give a picture, a mask and an expression, or --json")
    with load(bundle, backend=backend, threads=threads) as runtime:
        if annotations is not None:
            _annotations(runtime, annotations, Places(Path(), images, skip_bad), output, below)
        else:
            typer.echo(f"{_one(runtime, alone, mask_label, parse_range(value_range)):.1f}")


def _one(
    runtime: Any,
    alone: tuple[Any, ...],
    label: int | None,
    value_range: tuple[float, float] | None,
) -> float:
    from segagent_rt.data.canvas_cache import check_size
    from segagent_rt.data.masks import load_mask
    from segagent_rt.eval.ratings import rate

    image, mask, expression = alone
    given, canvas = load_mask(mask, label), runtime.open(image, value_range=value_range)
    check_size(canvas.image.shape, given.shape, image)
    return 100 * rate(canvas, given, [expression])


def _annotations(
    runtime: Any, path: Path, places: Places, output: Path | None, below: float | None
) -> None:
    import json

    from segagent_rt.data.coco import looks_like_coco, read_coco
    from segagent_rt.data.reading import read_json
    from segagent_rt.errors import BatchFailed, DataInvalid
    from segagent_rt.eval.ratings import filtered, rate_all
    from segagent_rt.files import atomic_write, check_writable

    document = read_json(path)
    if not looks_like_coco(document):
        raise DataInvalid(
            f"{path} does not hold COCO annotations",
            hint=f"turn it into them: segagent-rt convert {path} --to coco",
        )
    if output is not None:
        check_writable(output.parent)
    context = places.context(path.parent)
    samples = read_coco(document, path.name, context)
    context.tell(path.name, len(samples), sum(sample.crowd for sample in samples))
    rated = list(rate_all(samples, runtime, telling(path.stem)))
    share = None if below is None else below / 100
    for each in rated:
        if each.rating is not None and (share is None or each.rating < share):
            typer.echo(_line(each, each.rating))
    if output is not None:
        atomic_write(output, (json.dumps(filtered(document, rated, share)) + "\n").encode())
    unrated = [each for each in rated if each.rating is None]
    for each in unrated:
        typer.echo(f"{each.sample.source}: {each.problem}", err=True)
    if unrated:
        raise BatchFailed(f"{len(unrated)} of {len(rated)} annotations could not be rated")


def _line(each: Rated, rating: float) -> str:
    sample = each.sample
    return f"{sample.id}\t{100 * rating:.1f}\t{sample.name}\t{'; '.join(sample.expressions)}"
