"""Results as COCO, labelme and YOLO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segagent_rt.data.coco import coco_document
from segagent_rt.data.labelme import labelme_document
from segagent_rt.data.record import Category, RunLengths, Sample
from segagent_rt.data.yolo import yolo_labels
from segagent_rt.types import Size


def object_name(expression: str) -> str:
    """The class that an expression stands for in COCO and YOLO files; `object` if it is blank."""
    return " ".join(expression.split()).lower().rstrip(".!?") or "object"


def coco_of(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Result documents of several images as COCO instances, with `score` where there is a rating.

    Args:
        documents: the name of each image in the file, and its document. Every image is listed,
            also one without a mask.
    """
    sizes, samples = dict[str, Size](), list[Sample]()
    scores = list[float | None]()
    for name, document in documents:
        sizes[name] = (document["height"], document["width"])
        for sample, score in _samples(name, document["results"]):
            samples.append(sample)
            scores.append(score)
    made = coco_document(samples, images=sizes)
    for annotation, score in zip(made["annotations"], scores, strict=True):
        if score is not None:
            annotation["score"] = score
    return made


def labelme_of(image: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A result document as labelme writes it; `image` is its path from the folder of the file."""
    samples = [sample for sample, _ in _samples(image, document["results"])]
    return labelme_document(samples, image, (document["height"], document["width"]))


def yolo_of(document: Mapping[str, Any], classes: Sequence[str]) -> bytes:
    """A result document as a YOLO label file.

    Args:
        document: of one image.
        classes: the names of the classes in their order; see `object_name`.
    """
    return yolo_labels(
        (classes.index(object_name(sample.expressions[0])), sample.mask.mask())
        for sample, _ in _samples("", document["results"])
    )


def _samples(
    image: str, results: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[Sample, float | None]]:
    """The objects that have a mask, not an empty one, each with its rating or estimate."""
    for number, result in enumerate(results, 1):
        if result["empty"] is not False:
            continue
        mask = result["mask"]
        rating, estimate = result["predicted_iou"], result["estimated_iou"]
        yield (
            Sample(
                id=number,
                name=image,
                image=Path(image),
                mask=RunLengths((mask["size"][0], mask["size"][1]), mask["counts"]),
                expressions=(result["expression"] or "object",),
                source=image,
                category=Category(object_name(result["expression"])),
            ),
            estimate if rating is None else rating,
        )
