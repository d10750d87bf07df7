"""Predictions: what was said and segmented for each expression, in SegAgent's own schema.

A list of `{"img_path", "height", "width", "caption", "gt_mask", "pred_list", "outputs", ...}`,
`pred_list` holding `{"click_id", "clicks": {"is_positive", "coords": [row, column]}, "used_box",
"mask", "outputs"}`.
`outputs` is the reply that proposed the click; its rating is of the mask before (see
`data.segagent`). Ours, and optional: `predicted_iou`, the rating of the step's own mask (0..1,
finer than the text), and `stop`, why the trajectory ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import (
    captions,
    expect,
    field,
    finite,
    image_size,
    segmentation,
    whole,
)
from segagent_rt.data.record import ExpressionQuery, RunLengths
from segagent_rt.data.segagent import image_name, last_reply, ratings_of_masks
from segagent_rt.errors import DataInvalid
from segagent_rt.io import json_bytes, write_result
from segagent_rt.types import Box, Click, Size, Trajectory


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step that made a mask.

    Attributes:
        click: None in a first step that gave the segmenter a box only, and, without a box, in one
            that stands for the mask that the trajectory started from.
        mask: None if the file says none was made.
        reply: the text that proposed the click; None if nobody was asked.
        rating: of this step's mask, 0..1, if it was rated.
    """

    click: Click | None
    box: Box | None
    mask: RunLengths | None
    reply: str | None
    rating: float | None


@dataclass(frozen=True, slots=True)
class Recording:
    """A trajectory for one expression, and the mask that was wanted."""

    image: str
    expression: str
    target: RunLengths
    steps: tuple[RecordedStep, ...]
    last_reply: str | None = None
    stop: str | None = None

    @property
    def size(self) -> Size:
        return self.target.size

    @property
    def started(self) -> bool:
        """Whether the first step is a mask that the trajectory began with."""
        return bool(self.steps) and self.steps[0].click is None and self.steps[0].box is None


def record(question: ExpressionQuery, trajectory: Trajectory) -> Recording:
    """Keep of a trajectory what predictions files hold."""
    steps = tuple(
        RecordedStep(
            step.click,
            step.box,
            RunLengths.of(step.prediction.mask()),
            None if step.turn is None else step.turn.reply,
            step.rating,
        )
        for step in trajectory.steps
        if step.prediction is not None
    )
    sample, last = question.sample, last_reply(trajectory)
    return Recording(
        sample.file_name, question.expression, sample.mask, steps, last, trajectory.stop
    )


def looks_like_predictions(document: Any) -> bool:
    """Whether a JSON document has the shape of this format."""
    return isinstance(document, list) and any(
        isinstance(record, dict) and "pred_list" in record for record in document
    )


def read_predictions(document: Any, name: str, context: ReadContext) -> list[Recording]:
    """The recordings of a parsed file; `name` stands for it in messages.

    Raises:
        DataInvalid: it is not as described above, or empty.
    """
    if not expect(document, list, name):
        raise DataInvalid(f"{name} holds no prediction")
    found = []
    for at, record in enumerate(document, 1):
        with context.entry():
            found.append(read_recording(record, f"{name}, prediction {at}"))
    return found


def read_recording(record: Any, where: str) -> Recording:
    """One prediction.

    Raises:
        DataInvalid: it is not as described above.
    """
    size = image_size(record, where)
    listed = field(record, "pred_list", list, where)
    last = _text(record, "outputs", where)
    steps = [_read_step(step, size, f"{where}, step {n}") for n, step in enumerate(listed, 1)]
    return Recording(
        image=str(image_name(record, "img_path", where)),
        expression=captions(field(record, "caption", object, where), f"{where}: `caption`")[0],
        target=segmentation(field(record, "gt_mask", object, where), size, where),
        steps=tuple(_rated(steps, last)),
        last_reply=last,
        stop=_text(record, "stop", where),
    )


def _read_step(step: Any, size: Size, where: str) -> RecordedStep:
    mask, rating = expect(step, dict, where).get("mask"), step.get("predicted_iou")
    return RecordedStep(
        click=_read_click(step.get("clicks"), where),
        box=_read_box(step.get("used_box"), where),
        mask=None if mask is None else segmentation(mask, size, where),
        reply=_text(step, "outputs", where),
        rating=None if rating is None else finite(rating, f"{where}: `predicted_iou`"),
    )


def _rated(steps: list[RecordedStep], last: str | None) -> list[RecordedStep]:
    """The steps with ratings from the replies, unless the file holds ratings."""
    if any(step.rating is not None for step in steps):
        return steps
    ratings = ratings_of_masks([step.reply for step in steps], last)
    return [replace(step, rating=rating) for step, rating in zip(steps, ratings, strict=True)]


def _text(record: Any, name: str, where: str) -> str | None:
    text = record.get(name)
    return None if text is None else expect(text, str, f"{where}: `{name}`")


def _read_click(clicks: Any, where: str) -> Click | None:
    if not clicks:
        return None
    place = [whole(finite(n, where), where) for n in field(clicks, "coords", list, where)]
    if len(place) != 2:
        raise DataInvalid(f"{where}: `coords` is not a row and a column")
    return Click(place[1], place[0], field(clicks, "is_positive", bool, where))


def _read_box(box: Any, where: str) -> Box | None:
    if box is None:
        return None
    corners = [int(finite(n, where)) for n in expect(box, list, where)]
    if len(corners) != 4:
        raise DataInvalid(f"{where}: `used_box` is not four numbers")
    return Box(*corners)


def describe_recording(recording: Recording) -> dict[str, Any]:
    """A recording as one prediction of the file."""
    return {
        "img_path": recording.image,
        "masks": None,
        "height": recording.size[0],
        "width": recording.size[1],
        "qas": [{"from": "human", "value": recording.expression}],
        "caption": [recording.expression],
        "coor": None,
        "relative_coor": None,
        "is_positive": None,
        "click_id": 0,
        "gt_mask": recording.target.json(),
        "annotation": [{"segmentation": None, "id": 0, "click_id": 0}],
        "pred_list": [_describe_step(n, step) for n, step in enumerate(recording.steps)],
        "outputs": recording.last_reply,
        "stop": recording.stop,
    }


def _describe_step(number: int, step: RecordedStep) -> dict[str, Any]:
    click, box = step.click, step.box
    return {
        "click_id": number,
        "clicks": {"is_positive": click.positive, "coords": [click.y, click.x]} if click else [],
        "used_box": [float(n) for n in (box.x0, box.y0, box.x1, box.y1)] if box else None,
        "mask": step.mask.json() if step.mask else None,
        "outputs": step.reply,
        "predicted_iou": None if step.rating is None else round(step.rating, 6),
    }


def write_predictions(
    path: Path, records: Sequence[dict[str, Any]], *, overwrite: bool = False
) -> None:
    """Write a predictions file.

    Raises:
        OutputError: it cannot be written.
    """
    write_result(path, json_bytes(list(records)), overwrite=overwrite)
