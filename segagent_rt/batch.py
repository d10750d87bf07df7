"""Many images in one go: what is done already, the results of the rest, and a summary.

A batch can be killed at any moment and run again: it goes on where it was, and its files are then
the same, byte for byte, as those of a run that was never stopped. For that, result documents of a
batch hold no times. Times are in the journal, which also says which images are finished: those
whose picture, prompts, options, bundle and version are the same, and whose files are still there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from segagent_rt import __version__
from segagent_rt.batch_options import BatchOptions
from segagent_rt.data.journal import CountReporter, Journal
from segagent_rt.data.reading import expect
from segagent_rt.data.reading import field as field_of
from segagent_rt.errors import AnnotatorError, InputError
from segagent_rt.image import load_image
from segagent_rt.io import (
    check_replaceable,
    dump_json,
    json_bytes,
    open_regular,
    parse_json,
    remove_partials,
    write_result,
)
from segagent_rt.result_formats import coco_of
from segagent_rt.results import (
    CLASSES_FILE,
    ResultFiles,
    SaveOptions,
    about_run,
    total_seconds,
    why_no_mask,
)
from segagent_rt.types import AnnotationItem, ObjectPrompt, RgbImage, Trajectory

if TYPE_CHECKING:
    from segagent_rt.runtime import Runtime

JOURNAL, SUMMARY, COCO = (
    "segagent-run.journal.jsonl",
    "segagent-run.jsonl",
    "segagent-run.coco.json",
)
"""Files of a batch beside the results."""

OnResult: TypeAlias = Callable[[RgbImage, Sequence[Trajectory], dict[str, Any]], None]
"""Is called with an image, a trajectory for each object, and what `about_run` says."""

SILENT_SERVER = 3
"""So many images in a row for which a server gave no usable answer end the batch."""


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """What became of an image, or of a frame of a video.

    Attributes:
        image: its path as it was given.
        document: the result document; None if there is none.
        files: where the results are.
        problem: a sentence that says what failed; None if every object has a mask.
        found: how many objects have a mask with pixels.
    """

    image: str
    document: dict[str, Any] | None = None
    files: ResultFiles | None = None
    problem: str | None = None
    found: int = 0

    @classmethod
    def of(cls, document: dict[str, Any], files: ResultFiles) -> ImageOutcome:
        """The outcome that a document tells of."""
        problems = [why_no_mask(result) for result in document["results"]]
        why = "; ".join(problem for problem in problems if problem is not None)
        return cls(document["image"], document, files, why or None, problems.count(None))

    def row(self) -> dict[str, Any]:
        """Its line in the summary."""
        document = self.document or {"results": []}
        return {
            "image": self.image,
            **({"frame": document["frame"]} if "frame" in document else {}),
            "document": self.files.document.name if self.files is not None else None,
            "problem": self.problem,
            "results": [
                {
                    "expression": result["expression"],
                    "mask": result.get("files", {}).get("mask"),
                    "predicted_iou": result["predicted_iou"],
                    "estimated_iou": result["estimated_iou"],
                    "clicks": len(result["clicks"]),
                    "stop": result["stop"],
                    "empty": result["empty"],
                }
                for result in document["results"]
            ],
        }


class BatchFolder:
    """The folder of a batch's results. Use in a `with` block; only one batch can write to it.

    Args:
        folder: it is made if it is not there.
        options: of the batch.
        runtime: results depend on its bundle, backend and endpoint.
        on_result: called with the results of each image once they are written.

    Raises:
        OutputError: on entering: another batch is writing there, or a file is in the way that
            somebody else wrote.
    """

    def __init__(
        self,
        folder: Path,
        options: BatchOptions,
        runtime: Runtime,
        *,
        on_result: OnResult | None = None,
    ) -> None:
        self.folder, self.options = folder, options
        endpoint = runtime.endpoint
        asked = endpoint and [endpoint.url, endpoint.model, endpoint.server, endpoint.preset]
        kinds = tuple(each for each in options.kinds if each != "coco")  # one file for the batch
        self._saved = SaveOptions(kinds, options.overwrite)
        self._on_result = on_result
        self._rows, self._pictures = bytearray(), list[tuple[Path, dict[str, Any]]]()
        self.count = 0
        self._common = [
            __version__,
            options.described(),
            runtime.bundle.digest,
            *(["clicks after a box"] if runtime.clicks_help else []),
            runtime.where.backend,
            asked,
        ]
        self._journal = Journal(
            folder / JOURNAL,
            {"segagent_rt": "journal of run", "format": 1},
            check=_check_entry,
            overwrite=options.overwrite,
        )

    def __enter__(self) -> BatchFolder:
        self._journal.__enter__()
        try:
            names = (SUMMARY, COCO, CLASSES_FILE)
            asked = (True, "coco" in self.options.kinds, "yolo" in self.options.kinds)
            paths = [
                self.folder / name for name, wanted in zip(names, asked, strict=True) if wanted
            ]
            check_replaceable(paths, overwrite=self.options.overwrite)
        except BaseException:
            self._journal.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.__exit__()

    def plan(
        self, image: Path, count: int, *, kind: str = "", taken: Mapping[str, str] | None = None
    ) -> ResultFiles:
        """The files of one image; see `ResultFiles.plan`. Files in the way are not looked for."""
        return ResultFiles.plan(
            self.folder, image, count, kind=kind, saved=self._saved, taken=taken or {}
        )

    def key(self, files: ResultFiles, content: str, prompts: object, *more: object) -> str:
        """Stands for all that the results of an image depend on, its name and content included."""
        parts = [*self._common, files.name, files.image, content, prompts, *more]
        return hashlib.sha256(dump_json(parts).encode()).hexdigest()

    def finished(self, key: str, files: ResultFiles) -> dict[str, Any] | None:
        """The document of an image that is finished, as it lies in the folder."""
        entry = self._journal.done.get(key)
        if entry is None:
            return None
        try:
            content = files.document.read_bytes()
            if hashlib.sha256(content).hexdigest() != entry["document"]:
                return None
            if not all((self.folder / name).is_file() for name in entry["files"]):
                return None
            document: dict[str, Any] = parse_json(content)
        except (OSError, ValueError):
            return None
        document.pop("segagent_rt", None)
        return document

    def write(
        self,
        key: str,
        files: ResultFiles,
        pixels: RgbImage,
        found: Sequence[Trajectory],
        about: dict[str, Any],
    ) -> dict[str, Any]:
        """Write the results of an image, and note that it is finished.

        Raises:
            OutputError: a file cannot be written.
        """
        files = files.with_count(len(found))
        document = files.write(pixels, found, about, resumable=True)
        written = [p.relative_to(self.folder).as_posix() for p in files.paths if p.is_file()]
        digest = hashlib.sha256(files.document.read_bytes()).hexdigest()
        seconds = [total_seconds(trajectory) for trajectory in found]
        self._journal.append(key, {"document": digest, "files": written, "seconds": seconds})
        if self._on_result is not None:
            self._on_result(pixels, found, about)
        return document

    def remove_partials(self, names: Iterable[str]) -> None:
        """Delete what a killed run has left half written of these images."""
        known = tuple(names)
        for folder in (self.folder, self.folder / "labels"):
            remove_partials(folder, (*known, "segagent-run.", CLASSES_FILE))

    def add(self, outcome: ImageOutcome) -> ImageOutcome:
        """Note an outcome for the summary; returns it."""
        self.count += 1
        self._rows += json_bytes(outcome.row())
        if "coco" in self.options.kinds and outcome.document is not None:
            self._pictures.append((Path(outcome.image).absolute(), outcome.document))
        return outcome

    def summarise(self) -> Path:
        """Write the summary, one line for each image, and the files about all of them.

        Returns:
            The summary.

        Raises:
            OutputError: a file cannot be written.
        """
        kinds, overwrite = self.options.kinds, self.options.overwrite
        write_result(self.folder / SUMMARY, bytes(self._rows), overwrite=overwrite, seal=False)
        if "coco" in kinds:
            content = json_bytes(coco_of(_named(self._pictures)))
            write_result(self.folder / COCO, content, overwrite=overwrite)
        return self.folder / SUMMARY


def _check_entry(content: Any) -> None:
    """Raise `DataInvalid` if a line of the journal is not one that `write` notes."""
    expect(field_of(content, "document", str, "the entry"), str, "the entry")
    for name in field_of(content, "files", list, "the entry"):
        expect(name, str, "the entry")


def _named(pictures: Sequence[tuple[Path, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Documents with the path of their image from the folder that has them all."""
    folder = os.path.commonpath([path.parent for path, _ in pictures]) if pictures else ""
    for path, document in pictures:
        name = path.relative_to(folder).as_posix()
        yield f"{name}/{document['frame']:06d}" if "frame" in document else name, document


@dataclass(frozen=True, slots=True)
class _PlannedImage:
    item: AnnotationItem
    files: ResultFiles
    key: str | None
    document: dict[str, Any] | None


def annotate_images(
    runtime: Runtime,
    items: Sequence[AnnotationItem],
    batch: BatchFolder,
    report_progress: CountReporter,
) -> Iterator[ImageOutcome]:
    """Segment every image that is not finished yet.

    Args:
        runtime: what segments; its graphs are loaded only if there is anything to do.
        items: images by their paths.
        batch: the folder of the results, entered.
        report_progress: called with the number of images done and to do, finished ones not counted.

    Yields:
        An outcome for each image in order, finished ones included.

    Raises:
        OutputError: a result cannot be written.
        ExpressionRefused: the annotator cannot take an expression that every image has.
        AnnotatorError: the annotator's server failed several times in a row.
    """
    # 1. Choose the names of all files, so that they do not depend on what is done first.
    planned = list(_plan_images(items, batch))
    todo = [each for each in planned if each.document is None]
    for each in todo:
        each.files.check()
    batch.remove_partials(each.files.name for each in todo)
    # 2. Load all graphs that any image needs: every document says where they run.
    if todo:
        load_for(runtime, [item.prompts for item in items])
    # 3. Segment.
    done = failures = 0
    for each in planned:
        if each.document is not None:
            yield batch.add(ImageOutcome.of(each.document, each.files))
            continue
        try:
            outcome, failures = _annotate(runtime, each, batch), 0
        except (InputError, AnnotatorError) as error:
            failures = failures + 1 if isinstance(error, AnnotatorError) else 0
            if failures == SILENT_SERVER:
                raise
            outcome = ImageOutcome(str(each.item.image), problem=str(error))
        done += 1
        report_progress(done, len(todo))
        yield batch.add(outcome)


def _plan_images(items: Sequence[AnnotationItem], batch: BatchFolder) -> Iterator[_PlannedImage]:
    taken = dict[str, str]()
    for item in items:
        files = batch.plan(Path(item.image), max(1, len(item.prompts)), taken=taken)
        taken[files.name] = files.image
        try:
            key = batch.key(files, file_digest(Path(item.image)), describe_prompts(item.prompts),
                            str(item.image))  # fmt: skip
        except InputError:
            yield _PlannedImage(item, files, None, None)
        else:
            yield _PlannedImage(item, files, key, batch.finished(key, files))


def _annotate(runtime: Runtime, planned: _PlannedImage, batch: BatchFolder) -> ImageOutcome:
    options, image = batch.options, planned.item.image
    pixels = load_image(image, options.max_megapixels, value_range=options.value_range)
    key = planned.key
    if key is None:
        raise InputError(f"{image} changed during the batch", hint="run it again")
    found = runtime.open(pixels).annotate_prompts(
        planned.item.prompts, config=options.config, all_objects=options.all_objects
    )
    document = batch.write(key, planned.files, pixels, found, about_run(image, pixels, runtime))
    return ImageOutcome.of(document, planned.files)


def load_for(runtime: Runtime, asked: Sequence[Sequence[ObjectPrompt]]) -> None:
    """Load what the prompts of several images need, and check the expressions that all have.

    Raises:
        ExpressionRefused: the annotator cannot take one of these.
    """
    _ = runtime.segmenter
    words = [{each.expression for each in prompts if not each.by_hand} for prompts in asked]
    if any(words):
        annotator = runtime.annotator
        for text in sorted(set.intersection(*words)):
            annotator.check(text)


def describe_prompts(prompts: Iterable[ObjectPrompt]) -> list[Any]:
    """Prompts as plain data."""
    return [
        [
            each.expression,
            [[click.x, click.y, click.positive] for click in each.clicks],
            each.box and [each.box.x0, each.box.y0, each.box.x1, each.box.y1],
        ]
        for each in prompts
    ]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        InputError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        try:
            while block := stream.read(1 << 20):
                digest.update(block)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
