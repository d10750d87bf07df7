"""Segment what words describe, or what clicks and boxes show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from segagent_rt.choices import SaveKind
from segagent_rt.cli import console
from segagent_rt.cli.option_groups import ComputeOptions, SearchOptions, ServerOptions
from segagent_rt.cli.parameters import (
    DATA,
    RESULTS,
    SEARCH,
    BundleOption,
    JsonOption,
    OutputOption,
    ReportOption,
    RestartOption,
    ValueRangeOption,
    check_options,
    check_text,
    number_option,
    one_of,
    option,
    parse_box,
    parse_click,
    parse_range,
)
from segagent_rt.cli.run_output import finish, reporting, show_batch, shown
from segagent_rt.errors import Cancelled
from segagent_rt.image import MAX_MEGAPIXELS
from segagent_rt.types import ObjectPrompt

if TYPE_CHECKING:
    from segagent_rt.batch import BatchFolder, ImageOutcome
    from segagent_rt.batch_options import BatchOptions
    from segagent_rt.runtime import Runtime

    Outcomes = Iterator[ImageOutcome]

WORDS, HAND, LIST, VIDEO = "expressions", "--click and --box", "--from", "--video"
ONLY_WITH = {
    **dict.fromkeys(
        (
            "max_clicks", "candidates", "temperature", "rate_every_mask", "deadline_ms", "endpoint",
            "model", "server", "timeout", "allow_host", "preset",
        ),
        (WORDS, LIST),
    ),
    "all_objects": (WORDS, LIST),
}  # fmt: skip


def command(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT|EXPRESSION",
            help="First an image, a folder, a quoted pattern, or - for standard input. Further "
            "arguments that end like image files are images. All others are expressions, such as "
            '"the red circle". With --from or --video, all arguments may be expressions.',
            show_default=False,
        ),
    ] = None,
    from_list: Annotated[
        str | None,
        option(
            "List of images: text (path, tab, expression), JSONL (image, expression, "
            "clicks, box) or COCO. - is standard input.",
            "--from",
            panel=DATA,
        ),
    ] = None,
    video: Annotated[
        Path | None,
        option(
            "Video file or folder of frames. The mask is tracked from frame to frame.",
            panel=DATA,
            readable=False,
        ),
    ] = None,
    look_every: Annotated[
        int, option("In a video, ask the MLLM only on every Nth frame.", panel=SEARCH, min=1)
    ] = 10,
    click: Annotated[
        list[str] | None,
        option(
            "Click in pixels: +120,80 on the object, -30,40 beside it. May be repeated.",
            panel=SEARCH,
        ),
    ] = None,
    box: Annotated[
        str | None,
        option(
            "Box around the object, in pixels: left,top,right,bottom. May go with clicks.",
            panel=SEARCH,
        ),
    ] = None,
    all_objects: Annotated[
        bool,
        option(
            "Return every object that matches, if the MLLM lists several.", "--all", panel=SEARCH
        ),
    ] = False,
    bundle: BundleOption = None,
    output: OutputOption = Path(),
    save: Annotated[
        str,
        option(
            "Files to write beside the JSON file: mask, overlay, cutout (RGBA, cropped to the "
            "object), coco, yolo, labelme.",
            panel=RESULTS,
        ),
    ] = "mask,overlay",
    report: ReportOption = None,
    overwrite: RestartOption = False,
    *,
    search: SearchOptions,
    deadline_ms: Annotated[
        float | None,
        number_option(
            "Stop after this time and return the best mask so far. Loading does not count.",
            panel=SEARCH,
            min=0,
            max=86_400_000,
        ),
    ] = None,
    max_megapixels: Annotated[
        float, number_option("Refuse images with more megapixels.", panel=DATA, min=0)
    ] = MAX_MEGAPIXELS,
    value_range: ValueRangeOption = None,
    compute: ComputeOptions,
    as_json: JsonOption = False,
    server: ServerOptions,
) -> None:
    """Writes NAME.segagent.json, NAME.segagent.mask.png and NAME.segagent.overlay.png.

    With several expressions, masks are NAME.segagent.1.mask.png and so on. For many images,
    segagent-run.jsonl is a summary, and the same command continues an interrupted run. The exit
    code is 5 if no mask was found, and 4 if some images failed.
    """
    sources, texts = tell_apart(arguments or [], named=from_list is None and video is None)
    prompts = _prompts(texts, click, box, required=from_list is None)
    mode = HAND if click or box else WORDS if texts else LIST
    check_options(context, mode, ONLY_WITH)
    check_options(context, VIDEO if video else "images", {"look_every": (VIDEO,)})
    if video is not None and (all_objects or sources or from_list):
        raise typer.BadParameter("--video cannot be combined with --all, --from or images")
    where = server.where()
    from segagent_rt.batch_options import BatchOptions
    from segagent_rt.bundle.store import PHOTO
    from segagent_rt.runtime import load

    seconds = None if deadline_ms is None else deadline_ms / 1000
    options = BatchOptions(
        search.config(deadline=seconds),
        all_objects,
        _kinds(save),
        max_megapixels,
        parse_range(value_range),
        overwrite,
    )

    def start(by_hand: bool) -> Runtime:
        """Load what clicks and boxes, or words, need."""
        return load(
            PHOTO if bundle is None and by_hand else bundle,
            backend=compute.backend,
            threads=compute.threads,
            endpoint=where,
            parts=["segmenter"] if by_hand else None,
        )

    run = _Run(start, prompts, options, output, report, as_json)
    if video is not None:
        run.over_video(video, look_every)
    elif from_list is None and len(sources) == 1 and _is_one(sources[0]):
        run.over_image(sources[0])
    else:
        run.over_images(sources, from_list)


def tell_apart(arguments: Sequence[str], *, named: bool) -> tuple[list[str], list[str]]:
    """Images and expressions: an image ends as images do, and the first argument is one anyway.

    Args:
        arguments: of the command line.
        named: whether the first argument is an image, a folder or a pattern in any case.

    Raises:
        typer.BadParameter: there is no argument, and no other option names an image.
    """
    from segagent_rt.inputs import looks_like_picture

    if named and not arguments:
        raise typer.BadParameter("give an image, a folder, --from or --video")
    first, rest = (list(arguments[:1]), arguments[1:]) if named else ([], arguments)
    images = [each for each in rest if looks_like_picture(each)]
    return first + images, [each for each in rest if not looks_like_picture(each)]


def _prompts(
    texts: list[str], click: list[str] | None, box: str | None, *, required: bool
) -> list[ObjectPrompt]:
    """What is asked of every image.

    Raises:
        typer.BadParameter: nothing, or both expressions and clicks.
    """
    clicks, area = tuple(parse_click(text) for text in click or ()), parse_box(box)
    by_hand = bool(clicks or area)
    if (by_hand and texts) or (required and not by_hand and not texts):
        raise typer.BadParameter("give either expressions, or --click and --box, not both")
    return (
        [ObjectPrompt("", clicks, area)] if by_hand else list(map(ObjectPrompt, check_text(texts)))
    )


def _kinds(save: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(one_of(SaveKind, each.strip(), "--save") for each in save.split(","))
    )


def _is_one(source: str) -> bool:
    from segagent_rt.inputs import stands_for_many

    return not stands_for_many(source)


class _Run(NamedTuple):
    """What is done with every image of a run, and where its results go."""

    start: Callable[[bool], Runtime]
    prompts: Sequence[ObjectPrompt]
    options: BatchOptions
    output: Path
    report: Path | None
    as_json: bool

    def over_image(self, source: str) -> None:
        """Segment one image."""
        from segagent_rt.image import load_image
        from segagent_rt.results import ResultFiles, SaveOptions, about_run

        image = Path(source)
        saved = SaveOptions(self.options.kinds, self.options.overwrite)
        files = ResultFiles.plan(self.output, image, len(self.prompts), saved=saved)
        pixels = load_image(
            image, self.options.max_megapixels, value_range=self.options.value_range
        )
        with self.start(self.prompts[0].by_hand) as runtime:
            found = runtime.open(pixels).annotate_prompts(
                self.prompts,
                config=self.options.config,
                all_objects=self.options.all_objects,
                watch=iter if self.prompts[0].by_hand else shown,
            )
            files = files.with_count(len(found))
            about = about_run(image, pixels, runtime)
        with reporting(self.report, self.options, len(found)) as taken:
            if taken is not None:
                taken.add(pixels, found, about)
        further = sum(len(each.further_boxes) for each in found)
        if further and not self.options.all_objects:
            console.say(f"  {console.counted(further, 'further object')}: --all segments them, too")
        finish(files, pixels, found, about, as_json=self.as_json)

    def over_images(self, sources: Sequence[str], from_list: str | None) -> None:
        """Segment many images into one folder."""
        from segagent_rt.batch import annotate_images
        from segagent_rt.input_lists import read_list
        from segagent_rt.inputs import gather_items

        if "-" in sources:
            raise typer.BadParameter(
                "- is one image on standard input, and cannot be combined with other images"
            )
        items = gather_items(sources, read_list(from_list) if from_list else (), self.prompts)
        report_progress = console.progress("images", in_logs=False)
        by_hand = all(prompt.by_hand for item in items for prompt in item.prompts)
        count = sum(len(item.prompts) for item in items)
        with self._open_batch(by_hand, count) as (runtime, batch, watch):
            outcomes = watch(annotate_images(runtime, items, batch, report_progress))
            show_batch(outcomes, batch, lost_is_fine=False, as_json=self.as_json)

    def over_video(self, path: Path, look_every: int) -> None:
        """Segment the frames of a video."""
        from segagent_rt.video import Video, annotate_video

        video = Video(path, self.options.max_megapixels)
        report_progress = console.progress("frames", in_logs=False)
        by_hand, count = self.prompts[0].by_hand, video.count * len(self.prompts)
        with self._open_batch(by_hand, count) as (runtime, batch, watch):
            outcomes = annotate_video(
                runtime, video, self.prompts, batch, report_progress, look_every=look_every
            )
            show_batch(watch(outcomes), batch, lost_is_fine=True, as_json=self.as_json)

    @contextmanager
    def _open_batch(
        self, by_hand: bool, count: int
    ) -> Iterator[tuple[Runtime, BatchFolder, Callable[[Outcomes], Outcomes]]]:
        """The runtime, a folder in which a run continues, and what shows outcomes to a report.

        `count` is how many objects the report will have.
        """
        from segagent_rt.batch import BatchFolder

        with reporting(self.report, self.options, count) as taken, self.start(by_hand) as runtime:
            try:
                on_result = None if taken is None else taken.add
                with BatchFolder(self.output, self.options, runtime, on_result=on_result) as batch:
                    yield runtime, batch, iter if taken is None else taken.follow
            except KeyboardInterrupt:
                hint = "run the same command again to continue"
                raise Cancelled("interrupted", hint=hint) from None
