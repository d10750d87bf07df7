"""SegAgent's data files, `refcoco_val.json` and its relatives, and any JSON of that shape.

`{"data": [{"image_name", "height", "width", "gt_ann": {"object_id", "caption", "segmentation"}}]}`,
one record for each object; `clicks_list` beside `gt_ann` makes it a file of trajectories.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import captions, field, identifier, image_size, truth
from segagent_rt.data.record import Category, Sample, bounding_box
from segagent_rt.errors import DataInvalid
from segagent_rt.files import json_bytes, write_result

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
