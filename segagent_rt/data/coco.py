"""COCO instance annotations: `{"images": [...], "annotations": [...], "categories": [...]}`.

An annotation's expressions are its `caption` (text or a list of them), else its category's name.
Crowds (`iscrowd`) are read and written, but not asked about, as in COCO's own evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import captions, field, identifier, image_size, truth, whole
from segagent_rt.data.record import Category, Sample, bounding_box
from segagent_rt.data.segagent import image_name
from segagent_rt.errors import DataInvalid
from segagent_rt.io import json_bytes, write_result
from segagent_rt.types import Size


def looks_like_coco(document: Any) -> bool:
    """Whether a JSON document has the shape of this format."""
    return isinstance(document, dict) and {"images", "annotations"} <= set(document)


def read_coco(document: Any, name: str, context: ReadContext) -> list[Sample]:
    """A sample for each annotation, in their order; `name` stands for the file in messages.

    Raises:
        DataInvalid: an annotation is not as described above, names an image that the file does
            not list, or has an id that another one has.
    """
    instances = Instances.read(document, name, context)
    if not instances.annotations and not context.skipped:
        raise DataInvalid(f"{name} holds no annotation")
    samples = []
    for number, record in instances.annotations.items():
        with context.entry():
            where = f"{name}, annotation {number}"
            image = identifier(field(record, "image_id", object, where), f"{where}: `image_id`")
            said = expressions_of(record, instances.category(record, where), where)
            samples.append(instances.sample(number, image, said, where, context))
    return samples


@dataclass(frozen=True, slots=True)
class Instances:
    """A parsed file: its images, its annotations and its categories by their ids."""

    name: str
    images: Mapping[int | str, Any]
    annotations: Mapping[int | str, Any]
    categories: Mapping[int | str, Category]

    @classmethod
    def read(cls, document: Any, name: str, context: ReadContext) -> Instances:
        """The lists of a document; `name` stands for it in messages.

        Raises:
            DataInvalid: there is no list, an object without an id, or two with the same.
        """
        categories = {}
        if "categories" in document:
            for number, record in _by_id(document, "categories", name, context).items():
                with context.entry():
                    categories[number] = _category(record, number, name)
        context.categories += categories.values()
        return cls(
            name,
            _by_id(document, "images", name, context),
            _by_id(document, "annotations", name, context),
            categories,
        )

    def category(self, record: Any, where: str) -> Category | None:
        """The category of an annotation; None if the file does not list it."""
        number = record.get("category_id")
        return (
            None
            if number is None
            else self.categories.get(identifier(number, f"{where}: `category_id`"))
        )

    def sample(
        self,
        number: int | str,
        image: int | str,
        said: tuple[str, ...],
        where: str,
        context: ReadContext,
    ) -> Sample:
        """An annotation of an image as a sample.

        Raises:
            DataInvalid: the file does not list it, or one of the two is not as described above.
        """
        if number not in self.annotations:
            raise DataInvalid(f"{where}: {self.name} lists no annotation {number}")
        if image not in self.images:
            raise DataInvalid(f"{where}: {self.name} lists no image {image}")
        record, picture = self.annotations[number], self.images[image]
        size = image_size(picture, f"{self.name}, image {image}")
        file = image_name(picture, "file_name", f"{self.name}, image {image}")
        return Sample(
            id=number,
            name=file,
            image=context.images.find(file),
            mask=truth(field(record, "segmentation", object, where), size, where),
            expressions=said,
            source=where,
            category=self.category(record, where),
            crowd=bool(whole(record.get("iscrowd") or 0, f"{where}: `iscrowd`")),
        )


def _by_id(document: Any, listing: str, name: str, context: ReadContext) -> dict[int | str, Any]:
    found: dict[int | str, Any] = {}
    for at, record in enumerate(field(document, listing, list, name), 1):
        with context.entry():
            place = f"{name}, `{listing}` {at}"
            number = identifier(field(record, "id", object, place), f"{place}: `id`")
            if number in found:
                raise DataInvalid(f"{name}: two of `{listing}` have the id {number}")
            found[number] = record
    return found


def _category(record: Any, number: int | str, name: str) -> Category:
    where = f"{name}, category {number}"
    (named,) = captions(field(record, "name", str, where), f"{where}: `name`")
    above = record.get("supercategory")
    return Category(named, number, above if isinstance(above, str) else None)


def expressions_of(record: Any, category: Category | None, where: str) -> tuple[str, ...]:
    """What an annotation says of its object: its captions, else its category's name.

    Raises:
        DataInvalid: neither is there.
    """
    if "caption" in record:
        return captions(record["caption"], f"{where}: `caption`")
    if category is None:
        raise DataInvalid(
            f"{where} has no caption, and no category that the file lists",
            hint='add "caption": "what a person would say"',
        )
    return (category.name,)


def write_coco(
    path: Path,
    samples: Sequence[Sample],
    categories: Iterable[Category] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Write samples as annotations; see `coco_document`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_result(path, json_bytes(coco_document(samples, categories)), overwrite=overwrite)


def coco_document(
    samples: Sequence[Sample],
    categories: Iterable[Category] = (),
    images: Mapping[str, Size] | None = None,
) -> dict[str, Any]:
    """Samples as annotations, their expressions as `caption`.

    Ids are kept if no two are the same; else annotations are numbered from 1.

    Args:
        samples: the objects.
        categories: all that are to be listed, also those of no sample.
        images: names and sizes of images that are to be listed first, also without a sample.
    """
    sizes = {**(images or {}), **{sample.file_name: sample.size for sample in samples}}
    pictures = {name: at for at, name in enumerate(sizes, 1)}
    unique = len({sample.id for sample in samples}) == len(samples)
    classes = _numbered([*categories, *(sample.category or OBJECT for sample in samples)])
    return {
        "images": [
            {"id": at, "file_name": name, "height": sizes[name][0], "width": sizes[name][1]}
            for name, at in pictures.items()
        ],
        "annotations": [
            {
                "id": sample.id if unique else at,
                "image_id": pictures[sample.file_name],
                "category_id": classes[sample.category or OBJECT],
                **_annotation(sample),
            }
            for at, sample in enumerate(samples, 1)
        ],
        "categories": [{**known.json(), "id": number} for known, number in classes.items()],
    }


OBJECT = Category("object")
"""Stands for a category that is not known."""


def _numbered(categories: Iterable[Category]) -> dict[Category, int | str]:
    """Every category with an id: its own, or the next one that is free."""
    known = dict.fromkeys(categories)
    used = {category.id for category in known}
    free = (number for number in count(1) if number not in used)
    return {each: next(free) if each.id is None else each.id for each in known}


def _annotation(sample: Sample) -> dict[str, Any]:
    mask = sample.mask.mask()
    return {
        "caption": list(sample.expressions),
        "segmentation": sample.mask.json(),
        "bbox": list(bounding_box(mask)),
        "area": int(mask.sum()),
        "iscrowd": int(sample.crowd),
    }
