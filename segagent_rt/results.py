"""What is said about a finished annotation: one plain document, and the files that go with it.

`Result` is what Python code gets: the mask, and ways to show, save and convert it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segagent_rt.errors import OutputError
from segagent_rt.image import mask_to_rle
from segagent_rt.io import (
    check_replaceable,
    check_writable,
    is_own_file,
    json_bytes,
    parse_json,
    write_result,
)
from segagent_rt.types import Click, Malformed, Mask, RgbImage, Step, Trajectory

if TYPE_CHECKING:
    from segagent_rt.choices import SaveKind
    from segagent_rt.runtime import Runtime


def describe_clicks(clicks: Iterable[Click]) -> list[dict[str, Any]]:
    """Clicks as JSON objects, in pixels of the original image."""
    return [{"x": c.x, "y": c.y, "positive": c.positive} for c in clicks]


def describe_step(step: Step, *, timed: bool = True) -> dict[str, Any]:
    """One step: `reply` is the text that proposed the click or the box, `rating` the predicted IoU
    of the mask that this step made. `reply` is null for a mask that was given."""
    action = None if step.turn is None else step.turn.action
    return {
        "reply": None if step.turn is None else step.turn.reply,
        "click": describe_clicks([step.click])[0] if step.click else None,
        "box": None if step.box is None else asdict(step.box),
        "restarted": step.restarted,
        "rating": _rounded(step.rating),
        "problem": action.why if isinstance(action, Malformed) else None,
        "seconds": {k: round(spent, 6) for k, spent in step.seconds.items()} if timed else {},
    }


def describe(trajectory: Trajectory, *, timed: bool = True) -> dict[str, Any]:
    """A trajectory with its mask.

    `seconds` is empty without `timed`: nothing in the document differs from run to run then.

    `mask` is in COCO run lengths, or null if there is none. `returned` is the number of clicks
    after which the returned mask, the best-rated one, was made. `one_shot` is the first mask that
    was segmented, which is the result without a loop; null if there is none. `predicted_iou` is the
    MLLM's rating of the mask, `estimated_iou` the segmenter's own estimate. `further_objects` is
    the number of other objects that the first look listed. `empty` says whether the mask has no
    pixel.
    """
    prediction, first = trajectory.prediction, trajectory.one_shot
    mask = None if prediction is None else prediction.mask()
    return {
        "expression": trajectory.expression,
        "clicks": describe_clicks(trajectory.clicks),
        "returned": _clicks_before(trajectory),
        "predicted_iou": _rounded(trajectory.rating),
        "estimated_iou": None if prediction is None else _rounded(prediction.score),
        "stop": trajectory.stop,
        "steps": [describe_step(step, timed=timed) for step in trajectory.steps],
        "seconds": total_seconds(trajectory) if timed else {},
        "one_shot": None if first is None else _one_shot(first),
        "further_objects": len(trajectory.further_boxes),
        "empty": None if mask is None else not mask.any(),
        "mask": None if mask is None else mask_to_rle(mask),
    }


def _clicks_before(trajectory: Trajectory) -> int | None:
    """How many clicks had been made when the returned mask was."""
    if trajectory.best is None:
        return None
    at = next(n for n, step in enumerate(trajectory.steps) if step is trajectory.best)
    return sum(step.click is not None for step in trajectory.steps[: at + 1])


def _one_shot(step: Step) -> dict[str, Any]:
    mask = None if step.prediction is None else mask_to_rle(step.prediction.mask())
    return {"predicted_iou": _rounded(step.rating), "mask": mask}


def total_seconds(trajectory: Trajectory) -> dict[str, float]:
    """Seconds by stage over all steps; `annotate` and `segment` add up to the whole."""
    totals: dict[str, float] = {}
    for step in trajectory.steps:
        for stage, seconds in step.seconds.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return {stage: round(seconds, 6) for stage, seconds in totals.items()}


def why_no_mask(result: dict[str, Any]) -> str | None:
    """Why a described trajectory has no mask, or an empty one; None if it has a mask.

    Args:
        result: made by `describe`.
    """
    about = f'for "{result["expression"]}"' if result["expression"] else "for these clicks"
    if result["empty"] is False:
        return None
    found = f"the mask {about} is empty" if result["empty"] else f"no mask was found {about}"
    last = result["steps"][-1] if result["steps"] else None
    if result["stop"] == "deadline":
        return f"{found}: the deadline passed"
    if last is None or not last["reply"]:
        return found
    problem = f", in which {last['problem']}" if last["problem"] else ""
    return f"{found}: the model replied `{last['reply'][:200]}`{problem}"


def about_run(image: object, pixels: RgbImage, runtime: Runtime) -> dict[str, Any]:
    """What a result document says of the image and of what ran.

    Args:
        image: the image's path as it was given.
        pixels: uint8 [H, W, 3], the image.
        runtime: what ran.
    """
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


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Result:
    """The result for one object of an image; immutable.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        trajectory: every step that led to the mask.
        source: the image's path, or a name that stands for it.
        number: the object's number among those of the image, from 1.
        about: what else `to_json` says: the bundle, its digest, the backends.
    """

    image: RgbImage
    trajectory: Trajectory
    source: str = "image"
    number: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def expression(self) -> str:
        """The object in words; empty if it was shown by clicks or a box alone."""
        return self.trajectory.expression

    @property
    def mask(self) -> Mask | None:
        """The returned mask, bool [H, W] at the image's size; None if there is none."""
        made = self.trajectory.prediction
        return None if made is None else made.mask()

    @property
    def one_shot_mask(self) -> Mask | None:
        """The first mask that was segmented: the result without a loop; None if there is none."""
        first = self.trajectory.one_shot
        made = None if first is None else first.prediction
        return None if made is None else made.mask()

    @property
    def rating(self) -> float | None:
        """The annotator's rating of the mask, 0..1, else the segmenter's own estimate."""
        made = self.trajectory.prediction
        rating = self.trajectory.rating
        return made.score if rating is None and made is not None else rating

    def to_json(self) -> dict[str, Any]:
        """The image's path and size, what ran, and all that `describe` says of the trajectory."""
        return {**self._about(), **describe(self.trajectory)}

    def to_coco(self) -> dict[str, Any]:
        """A COCO document with the image and, if there is a mask with pixels, one annotation."""
        from segagent_rt.result_formats import coco_of

        document = {**self._about(), "results": [describe(self.trajectory)]}
        return coco_of([(Path(self.source).name, document)])

    def save(
        self,
        folder: str | Path = ".",
        kinds: Sequence[SaveKind] = ("mask", "overlay"),
        *,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the result, as `segagent-rt run --save` does.

        The files of a second object of the image begin with `NAME.2`.

        Args:
            folder: where the files go; it is made if it is not there.
            kinds: what to save beside the JSON document.
            overwrite: also replace files that segagent-rt did not write.

        Returns:
            The files that were written.

        Raises:
            OutputError: a file cannot be written, or somebody else wrote the one that is there.
        """
        kind = "" if self.number == 1 else f".{self.number}"
        saved = SaveOptions(tuple(kinds), overwrite=overwrite)
        files = ResultFiles.plan(Path(folder), Path(self.source), 1, kind=kind, saved=saved)
        files.write(self.image, [self.trajectory], self._about())
        return [path for path in files.paths if path.exists()]

    def _about(self) -> dict[str, Any]:
        height, width = self.image.shape[:2]
        return {"image": self.source, "height": height, "width": width, **self.about}

    def _repr_png_(self) -> bytes:
        """The overlay, or the image if there is no mask: what a notebook shows."""
        from segagent_rt.draw import png
        from segagent_rt.result_pictures import overlay_of

        found = self.trajectory
        return png(self.image if found.prediction is None else overlay_of(self.image, found))

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        mask = self.mask
        share = "no mask" if mask is None else f"{mask.mean():.1%} of the image"
        rated = "" if self.rating is None else f", rated {self.rating:.2f}"
        return f"<Result {self.expression!r} in {self.source}, {width} x {height}: {share}{rated}>"


_PICTURES = ("mask", "overlay", "cutout")
"""Kinds of which there is a PNG for each object."""

CLASSES_FILE = "classes.txt"
"""The names of the classes of YOLO labels, one a line, beside the folder `labels`.

Names are only ever added at its end, so labels that are there already keep their meaning.
"""


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """What is saved of results.

    Attributes:
        kinds: what is saved beside the document; see `SaveKind`.
        overwrite: also replace files that we did not write.
    """

    kinds: tuple[str, ...] = ("mask", "overlay")
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The files for one image: `NAME.segagent.json`, and what is saved of each object.

    Pictures are `NAME.segagent.mask.png`, or `NAME.segagent.2.mask.png` where there are several
    objects. NAME is the image's name without its ending; if it stands for another image in this
    folder already, `-2` follows. YOLO labels are `labels/NAME.txt`, where its tools look for them.

    Attributes:
        folder: where they go.
        name: what their names begin with.
        image: the image's path from the folder, which tells images of equal names apart.
        count: how many objects there are.
        saved: what is saved of them.
    """

    folder: Path
    name: str
    image: str
    count: int
    saved: SaveOptions = SaveOptions()

    @classmethod
    def plan(
        cls,
        folder: Path,
        image: Path,
        count: int,
        *,
        kind: str = "",
        saved: SaveOptions | None = None,
        taken: Mapping[str, str] | None = None,
    ) -> ResultFiles:
        """Choose the names before the work, and see that the files can be written.

        Args:
            folder: where they go.
            image: the image's path, `-` for standard input.
            count: how many objects there are.
            kind: what tells results of one image apart, such as `.refined`.
            saved: what is saved of them.
            taken: names that other images of a batch have, each with the image's path. In a batch
                no files in the way are looked for: finished images may have been edited.

        Raises:
            OutputError: the folder cannot be written, or somebody else wrote one of the files.
        """
        check_writable(folder)
        stem, place = f"{image.stem if str(image) != '-' else 'stdin'}{kind}", _place(image, folder)
        number = 1
        while True:
            name = stem if number == 1 else f"{stem}-{number}"
            files = cls(folder, name, place, count, saved or SaveOptions())
            known = (taken or {}).get(name) or files._stands_for()
            if known in (None, place):
                if taken is None:
                    files.check()
                return files
            number += 1

    def with_count(self, count: int) -> ResultFiles:
        """The same files for another number of masks.

        Raises:
            OutputError: somebody else wrote one of the files.
        """
        files = replace(self, count=count)
        files.check()
        return files

    def check(self) -> None:
        """Raise `OutputError` if somebody else wrote one of the files."""
        check_replaceable(self.paths, overwrite=self.saved.overwrite)

    @property
    def document(self) -> Path:
        return self.folder / f"{self.name}.segagent.json"

    @property
    def paths(self) -> list[Path]:
        """Every file that may be written."""
        numbers = range(1, self.count + 1)
        pictures = [
            self.folder / self._picture(number, kind)
            for number in numbers
            for kind in self.saved.kinds
            if kind in _PICTURES
        ]
        return [self.document, *pictures, *(path for _, path in self._of_the_image())]

    def _picture(self, number: int, kind: str) -> str:
        within = f".{number}" if self.count > 1 else ""
        return f"{self.name}.segagent{within}.{kind}.png"

    def _of_the_image(self) -> list[tuple[str, Path]]:
        """Files that hold all objects of the image, and their kinds."""
        places = {
            "coco": self.folder / f"{self.name}.segagent.coco.json",
            "labelme": self.folder / f"{self.name}.segagent.labelme.json",
            "yolo": self.folder / "labels" / f"{self.name}.txt",
        }
        found = [(kind, path) for kind, path in places.items() if kind in self.saved.kinds]
        if "yolo" in self.saved.kinds:  # the classes first: no label is without its name
            found.insert(0, ("classes", self.folder / CLASSES_FILE))
        return found

    def _stands_for(self) -> str | None:
        """The image that a document of ours at this place is about."""
        if not is_own_file(self.document):
            return None
        try:
            return str(parse_json(self.document.read_bytes())["image_from_here"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(
        self,
        pixels: RgbImage,
        found: Sequence[Trajectory],
        about: dict[str, Any],
        *,
        resumable: bool = False,
    ) -> dict[str, Any]:
        """Write what is saved of each trajectory, and at last the document; return the latter.

        Pictures of an earlier run that are ours and belong to none of these are deleted.

        Args:
            pixels: uint8 [H, W, 3] RGB, the image.
            found: one trajectory for each object.
            about: what else the document says; `height` and `width` of the image at least.
            resumable: leave times out of the document, so that it is the same in every run, and
                delete an earlier document first: pictures never lie beside one of another run.

        Raises:
            OutputError: a file cannot be written, or a number is not finite. What was there stays.
        """
        from segagent_rt.result_pictures import pictures_of

        results, contents = [], dict[Path, bytes]()
        for number, trajectory in enumerate(found, 1):
            result = describe(trajectory, timed=not resumable)
            if trajectory.prediction is not None:
                result["files"] = {}
            for kind, picture in pictures_of(pixels, trajectory, self.saved.kinds):
                result["files"][kind] = self._picture(number, kind)
                contents[self.folder / result["files"][kind]] = picture
            results.append(result)
        document = {**about, "image_from_here": self.image, "results": results}
        contents |= self._converted(document)
        content = json_bytes(document, indent=1)
        if resumable:
            self.document.unlink(missing_ok=True)
        for path, saved in contents.items():
            write_result(path, saved, overwrite=self.saved.overwrite)
        write_result(self.document, content, overwrite=self.saved.overwrite)
        self._delete_stale(contents)
        return document

    def _converted(self, document: dict[str, Any]) -> dict[Path, bytes]:
        """The document in the other formats that are saved."""
        if not {"coco", "yolo", "labelme"} & {*self.saved.kinds}:
            return {}
        from segagent_rt.result_formats import coco_of, labelme_of, object_name, yolo_of

        names = [object_name(result["expression"]) for result in document["results"]]
        classes = list(dict.fromkeys([*self._known_classes(), *names]))
        make = {
            "coco": lambda: json_bytes(coco_of([(Path(self.image).name, document)])),
            "labelme": lambda: json_bytes(labelme_of(self.image, document), indent=2),
            "yolo": lambda: yolo_of(document, classes),
            "classes": lambda: "".join(f"{name}\n" for name in classes).encode(),
        }
        return {path: make[kind]() for kind, path in self._of_the_image()}

    def _known_classes(self) -> list[str]:
        path = self.folder / CLASSES_FILE
        return path.read_text("utf-8").splitlines() if is_own_file(path) else []

    def _delete_stale(self, kept: Mapping[Path, bytes]) -> None:
        """Delete our own files of an earlier run about more, or other, objects."""
        for path in self._possible():
            if path not in kept and is_own_file(path):
                try:
                    path.unlink()
                except OSError as error:
                    raise OutputError(f"{path} cannot be deleted: {error.strerror}") from error

    def _possible(self) -> Iterator[Path]:
        """Every file but the document that an earlier run may have left for this image."""
        every = replace(self, count=1, saved=SaveOptions((*_PICTURES, "coco", "labelme", "yolo")))
        yield from (path for path in every.paths[1:] if path.name != CLASSES_FILE)
        for number in count(1):
            paths = [
                self.folder / f"{self.name}.segagent.{number}.{kind}.png" for kind in _PICTURES
            ]
            there = [path for path in paths if path.exists()]
            if number > self.count and not there:
                return
            yield from there


def _place(image: Path, folder: Path) -> str:
    """A path from the folder, which stays the same when both are moved together."""
    if str(image) == "-":
        return "-"
    try:
        return os.path.relpath(os.path.abspath(image), os.path.abspath(folder))  # noqa: PTH100
    except ValueError:  # on another drive
        return os.path.abspath(image)  # noqa: PTH100


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
