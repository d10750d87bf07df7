"""COCO instance annotations: `{"images": [...], "annotations": [...], "categories": [...]}`.

An annotation's expressions are its `caption` (text or a list of them), else its category's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segagent_rt.data.images import ImageFolders
from segagent_rt.data.reading import captions, expect, field, image_size, segmentation
from segagent_rt.data.record import Sample, bounding_box
from segagent_rt.data.segagent import image_name
from segagent_rt.errors import DataInvalid
from segagent_rt.files import json_bytes, write_result


def looks_like_coco(document: Any) -> bool:
    """Whether a JSON document has the shape of this format."""
    return isinstance(document, dict) and {"images", "annotations"} <= set(document)


def read_coco(document: Any, name: str, images: ImageFolders) -> list[Sample]:
    """A sample for each annotation, in their order; `name` stands for the file in messages.

    Raises:
        DataInvalid: an annotation is not as described above, names an image that the file does
            not list, or has an id that another one has.
    """
    pictures = by_id(document, "images", name)
    categories = by_id(document, "categories", name) if "categories" in document else {}
    annotations = by_id(document, "annotations", name)
    if not annotations:
        raise DataInvalid(f"{name} holds no annotation")
    samples = []
    for number, record in annotations.items():
        where = f"{name}, annotation {number}"
        picture = pictures.get(field(record, "image_id", int, where))
        if picture is None:
            raise DataInvalid(f"{where}: the file lists no image {record['image_id']}")
        size = image_size(picture, f"{name}, image {record['image_id']}")
        file = image_name(picture, "file_name", f"{name}, image {record['image_id']}")
        mask = segmentation(field(record, "segmentation", object, where), size, where)
        said = _expressions(record, categories, where)
        samples.append(Sample(number, file, images.find(file), mask, said, where))
    return samples


def by_id(document: Any, listing: str, name: str) -> dict[int, Any]:
    """The objects of a list of the document by their `id`, in order.

    Raises:
        DataInvalid: no list, an object without an id, or two with the same.
    """
    found: dict[int, Any] = {}
    for at, record in enumerate(field(document, listing, list, name), 1):
        number = field(record, "id", int, f"{name}, `{listing}` {at}")
        if number in found:
            raise DataInvalid(f"{name}: two of `{listing}` have the id {number}")
        found[number] = record
    return found


def _expressions(record: dict[str, Any], categories: dict[int, Any], where: str) -> tuple[str, ...]:
    if "caption" in record:
        return captions(record["caption"], f"{where}: `caption`")
    number = expect(record.get("category_id", -1), int, f"{where}: `category_id`")
    if number not in categories:
        raise DataInvalid(
            f"{where} has no caption, and no category that the file lists",
            hint='add "caption": "what a person would say"',
        )
    return captions(field(categories[number], "name", str, where), f"{where}: the category's name")


def write_coco(path: Path, samples: Sequence[Sample], *, overwrite: bool = False) -> None:
    """Write samples as annotations, their expressions as `caption`.

    Ids are kept if no two are the same; else annotations are numbered from 1.

    Raises:
        OutputError: the file cannot be written.
    """
    sizes = {sample.file_name: sample.size for sample in samples}
    pictures = {name: at for at, name in enumerate(sizes, 1)}
    unique = len({sample.id for sample in samples}) == len(samples)
    document = {
        "images": [
            {"id": at, "file_name": name, "height": sizes[name][0], "width": sizes[name][1]}
            for name, at in pictures.items()
        ],
        "annotations": [
            _annotation(sample, sample.id if unique else at, pictures[sample.file_name])
            for at, sample in enumerate(samples, 1)
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    write_result(path, json_bytes(document), overwrite=overwrite)


def _annotation(sample: Sample, number: int, picture: int) -> dict[str, Any]:
    mask = sample.mask.mask()
    return {
        "id": number,
        "image_id": picture,
        "category_id": 1,
        "caption": list(sample.expressions),
        "segmentation": sample.mask.json(),
        "bbox": list(bounding_box(mask)),
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
