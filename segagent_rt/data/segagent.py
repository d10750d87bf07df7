"""SegAgent's data files, `refcoco_val.json` and its relatives, and any JSON of that shape.

`{"data": [{"image_name", "height", "width", "gt_ann": {"object_id", "caption", "segmentation"}}]}`,
one record for each object; `clicks_list` beside `gt_ann` makes it a file of trajectories.

This module is also the one place that knows SegAgent's convention for ratings: a reply rates the
mask that the annotator was shown, which is the mask before the reply's own click. Everywhere else a
step has the rating of its own mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import captions, field, identifier, image_size, truth
from segagent_rt.data.record import Category, Sample, bounding_box
from segagent_rt.errors import DataInvalid
from segagent_rt.io import json_bytes, write_result
from segagent_rt.reply import ReplyProtocol
from segagent_rt.types import Trajectory

Made = TypeVar("Made")

UNKNOWN = "Unknown"
"""Stands for an expression that is the image's name without its last six characters."""


def looks_like_segagent(document: Any) -> bool:
    """Whether a JSON document has the shape of this format."""
    records = document.get("data") if isinstance(document, dict) else document
    return isinstance(records, list) and any(
        isinstance(record, dict) and "gt_ann" in record for record in records
    )


def records_of(document: Any, name: str) -> list[tuple[str, Any]]:
    """The records of a document, each with its place in words.

    Raises:
        DataInvalid: there is no list of them, or it is empty.
    """
    listed = document if isinstance(document, list) else field(document, "data", list, name)
    if not listed:
        raise DataInvalid(f"{name} holds no record")
    return [(f"{name}, record {number}", record) for number, record in enumerate(listed, 1)]


def read_segagent(document: Any, name: str, context: ReadContext) -> list[Sample]:
    """The samples of a parsed file; `name` stands for it in messages.

    Of several trajectories about the same expression of an object, the first one counts.

    Raises:
        DataInvalid: a record is not as described above, or stands there twice.
    """
    samples, seen, shown = list[Sample](), dict[Any, str](), set[Any]()
    for where, record in records_of(document, name):
        with context.entry():
            sample = read_sample(record, where, context)
            about = {(sample.name, sample.mask, expression) for expression in sample.expressions}
            if "clicks_list" in record and about <= shown:
                continue
            shown |= about
            key = (sample.name, sample.id, sample.expressions)
            if key in seen:
                raise DataInvalid(
                    f"{where} repeats {seen[key]}: image {sample.name}, object {sample.id}"
                )
            seen[key] = where
            samples.append(sample)
    return samples


def read_sample(record: Any, where: str, context: ReadContext) -> Sample:
    """One record.

    Raises:
        DataInvalid: it is not as described above.
    """
    size = image_size(record, where)
    name = image_name(record, "image_name", where)
    about = field(record, "gt_ann", dict, where)
    said = captions(field(about, "caption", object, where), f"{where}: `caption`")
    if said == (UNKNOWN,):
        said = captions(str(name)[:-6], f"{where}: the expression in the image's name")
        context.from_names += said
    category, crowd = read_kind(about)
    return Sample(
        id=identifier(about.get("object_id", 0), f"{where}: `object_id`"),
        name=name,
        image=context.images.find(name, where),
        mask=truth(field(about, "segmentation", object, where), size, where),
        expressions=said,
        source=where,
        category=category,
        crowd=crowd,
    )


def read_kind(record: Any) -> tuple[Category | None, bool]:
    """Category and crowd as `describe_kind` writes them; anything else there is somebody else's."""
    known = record.get("category")
    crowd = record.get("iscrowd") in (1, True)
    if not isinstance(known, dict) or not isinstance(known.get("name"), str):
        return None, crowd
    number, above = known.get("id"), known.get("supercategory")
    return (
        Category(
            known["name"],
            number if isinstance(number, (int, str)) else None,
            above if isinstance(above, str) else None,
        ),
        crowd,
    )


def describe_kind(sample: Sample) -> dict[str, Any]:
    """Category and crowd, for formats that have no place of their own for them."""
    category = {} if sample.category is None else {"category": sample.category.json()}
    return category | ({"iscrowd": 1} if sample.crowd else {})


def image_name(record: Any, key: str, where: str) -> str | int:
    """A COCO image id or a path.

    Raises:
        DataInvalid: neither.
    """
    name = field(record, key, object, where)
    named = isinstance(name, str) and name.strip() and "\0" not in name
    numbered = isinstance(name, int) and not isinstance(name, bool) and name >= 0
    if not named and not numbered:
        raise DataInvalid(f"{where}: `{key}` is neither a path nor a number")
    return name  # type: ignore[no-any-return]


def describe_sample(sample: Sample) -> dict[str, Any]:
    """A sample as a record, without clicks."""
    mask = sample.mask.mask()
    return {
        "image_name": sample.name,
        "height": sample.size[0],
        "width": sample.size[1],
        "gt_ann": {
            "object_id": sample.id,
            "caption": list(sample.expressions),
            "segmentation": sample.mask.json(),
            "bbox": list(bounding_box(mask)),
            "area": int(mask.sum()),
            **describe_kind(sample),
        },
    }


def write_segagent(path: Path, samples: Iterable[Sample], *, overwrite: bool = False) -> None:
    """Write a data file.

    Raises:
        OutputError: it cannot be written.
    """
    document = {"info": {"args": {}}, "data": [describe_sample(sample) for sample in samples]}
    write_result(path, json_bytes(document), overwrite=overwrite)


def ratings_of_masks(replies: Sequence[str | None], last: str | None) -> list[float | None]:
    """The rating of every step's own mask, read from replies in SegAgent's convention.

    Args:
        replies: of each step, the reply that proposed its click; it rates the mask before.
        last: the last reply of all. It rates the last mask unless it is the last step's own.

    Returns:
        Predicted IoUs, 0..1; None where no reply rates the mask.
    """
    after = [*replies[1:], last if replies and last != replies[-1] else None][: len(replies)]
    return [None if reply is None else _predicted_iou(reply) for reply in after]


def _predicted_iou(reply: str) -> float | None:
    return ReplyProtocol().read(reply, (1000, 1000)).iou


def last_reply(trajectory: Trajectory) -> str | None:
    """The last text of the annotator: the one that rates the last mask, if any does."""
    if not trajectory.steps:
        return None
    last = trajectory.steps[-1]
    if last.rating_reply is not None:
        return last.rating_reply
    return None if last.turn is None else last.turn.reply


def shown_before(start: Made, made: Sequence[Made]) -> list[Made]:
    """What the annotator is shown before each click, and rates: the start, then what the click
    before has made."""
    return [start, *made][: len(made)]


def reference_best(replies: Sequence[str | None]) -> int:
    """Index of the mask that SegAgent's own evaluation takes (evaltools/eval_result_iou.py).

    Reply i rates the mask of step i - 1, so the mask before the best-rated reply is taken, or the
    first mask if the first reply is the best. The last mask is never taken. If one reply holds no
    rating, all count as 0, which gives the first mask.
    """
    for read in (_before_comma, _before_sign):
        try:
            ratings = [0.0 if reply is None else read(reply) for reply in replies]
            break
        except ValueError:
            continue
    else:
        ratings = [0.0] * len(replies)
    return max(int(np.argmax(ratings)) - 1, 0)


def _before_comma(reply: str) -> float:
    return float(reply.split("Current IOU: ")[-1].split(",")[0])


def _before_sign(reply: str) -> float:
    return float(reply.split("Current IOU: ")[-1].split("P")[0].split("N")[0])
