"""What is said about a finished annotation: one plain document, and the files that go with it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from segagent_rt.types import Click, Malformed, RgbImage, Step, Trajectory


def describe_clicks(clicks: Iterable[Click]) -> list[dict[str, Any]]:
    """Clicks as JSON objects, in pixels of the original image."""
    return [{"x": c.x, "y": c.y, "positive": c.positive} for c in clicks]


def describe_step(step: Step) -> dict[str, Any]:
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
        "seconds": {stage: round(spent, 6) for stage, spent in step.seconds.items()},
    }


def describe(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory with its mask.

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
        "steps": [describe_step(step) for step in trajectory.steps],
        "seconds": total_seconds(trajectory),
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


KINDS = ("mask", "overlay")


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The files for one image: `NAME.segagent.json`, a mask and an overlay for each expression.

    Masks are `NAME.segagent.mask.png`, or `NAME.segagent.2.mask.png` where there are several
    expressions. NAME is the image's name without its ending; if it stands for another image in this
    folder already, `-2` follows.

    Attributes:
        folder: where they go.
        name: what their names begin with.
        image: the image's path from the folder, which tells images of equal names apart.
        count: how many expressions there are.
        overwrite: also replace files that we did not write.
    """

    folder: Path
    name: str
    image: str
    count: int
    overwrite: bool = False

    @classmethod
    def plan(
        cls, folder: Path, image: Path, count: int, *, kind: str = "", overwrite: bool = False
    ) -> ResultFiles:
        """Choose the names before the work, and see that the files can be written.

        Args:
            folder: where they go.
            image: the image's path, `-` for standard input.
            count: how many expressions there are.
            kind: what tells results of one image apart, such as `.refined`.
            overwrite: also replace files that we did not write.

        Raises:
            OutputError: the folder cannot be written, or somebody else wrote one of the files.
        """
        check_writable(folder)
        stem, place = f"{image.stem if str(image) != '-' else 'stdin'}{kind}", _place(image, folder)
        number = 1
        while True:
            name = stem if number == 1 else f"{stem}-{number}"
            files = cls(folder, name, place, count, overwrite)
            known = files._stands_for()
            if known in (None, place):
                check_replaceable(files.paths, overwrite=overwrite)
                return files
            number += 1

    def with_count(self, count: int) -> ResultFiles:
        """The same files for another number of masks.

        Raises:
            OutputError: somebody else wrote one of the files.
        """
        files = replace(self, count=count)
        check_replaceable(files.paths, overwrite=self.overwrite)
        return files

    @property
    def document(self) -> Path:
        return self.folder / f"{self.name}.segagent.json"

    @property
    def paths(self) -> list[Path]:
        """Every file that may be written."""
        numbers = range(1, self.count + 1)
        pictures = [self.folder / self._picture(n, kind) for n in numbers for kind in KINDS]
        return [self.document, *pictures]

    def _picture(self, number: int, kind: str) -> str:
        within = f".{number}" if self.count > 1 else ""
        return f"{self.name}.segagent{within}.{kind}.png"

    def _stands_for(self) -> str | None:
        """The image that a document of ours at this place is about."""
        if not is_own_file(self.document):
            return None
        try:
            return str(parse_json(self.document.read_bytes())["image_from_here"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(
        self, pixels: RgbImage, found: Sequence[Trajectory], about: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a mask and an overlay for each trajectory, and the document; return the latter.

        Pictures of an earlier run that are ours and belong to none of these are deleted.

        Args:
            pixels: uint8 [H, W, 3] RGB, the image.
            found: one trajectory for each expression.
            about: what else the document says.

        Raises:
            OutputError: a file cannot be written, or a number is not finite. What was there stays.
        """
        from segagent_rt.draw import draw_overlay, png

        results, pictures = [], dict[str, bytes]()
        for number, trajectory in enumerate(found, 1):
            result = describe(trajectory)
            if trajectory.prediction is not None:
                mask = trajectory.prediction.mask()
                best = trajectory.best
                shown = draw_overlay(
                    pixels,
                    mask,
                    trajectory.clicks,
                    trajectory.expression,
                    box=None if best is None else best.box,
                )
                result["files"] = {kind: self._picture(number, kind) for kind in KINDS}
                pictures |= dict(
                    zip(result["files"].values(), (png(mask), png(shown)), strict=True)
                )
            results.append(result)
        document = {**about, "image_from_here": self.image, "results": results}
        content = json_bytes(document, indent=1)
        for name, picture in pictures.items():
            write_result(self.folder / name, picture, overwrite=self.overwrite)
        write_result(self.document, content, overwrite=self.overwrite)
        self._delete_stale(set(pictures))
        return document

    def _delete_stale(self, kept: set[str]) -> None:
        """Delete our own pictures of an earlier run about more, or other, expressions."""
        pattern = re.compile(
            rf"{re.escape(self.name)}\.segagent(\.[0-9]+)?\.({'|'.join(KINDS)})\.png"
        )
        for path in self.folder.iterdir():
            if pattern.fullmatch(path.name) and path.name not in kept and is_own_file(path):
                try:
                    path.unlink()
                except OSError as error:
                    raise OutputError(f"{path} cannot be deleted: {error.strerror}") from error


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
