"""What every format is read into: an object of an image, its mask, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent_rt.image import mask_to_rle, rle_to_mask
from segagent_rt.types import Box, Mask, Size


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A mask, packed as COCO packs it."""

    size: Size
    counts: str

    @classmethod
    def of(cls, mask: Mask) -> RunLengths:
        """Pack a mask, bool [H, W]."""
        packed = mask_to_rle(mask)
        return cls((mask.shape[0], mask.shape[1]), packed["counts"])

    @classmethod
    def empty(cls, size: Size) -> RunLengths:
        """A mask of nothing."""
        return cls.of(np.zeros(size, np.bool_))

    def mask(self) -> Mask:
        """The mask, bool [H, W]."""
        return rle_to_mask(self.json())

    def json(self) -> dict[str, Any]:
        """`{"size": [H, W], "counts": str}`, as pycocotools writes it."""
        return {"size": list(self.size), "counts": self.counts}


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects. A file that numbers its classes gives the `id`."""

    name: str
    id: int | str | None = None
    supercategory: str | None = None

    def json(self) -> dict[str, Any]:
        """As COCO writes it, without what is not known."""
        known = {"id": self.id, "name": self.name, "supercategory": self.supercategory}
        return {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Sample:
    """An object in an image.

    Attributes:
        id: the object's number, or text, in its data set.
        name: the image as the data set names it; a number is a COCO image id.
        image: where the picture lies, or would lie if it is missing.
        mask: the object's pixels; its size is the image's.
        expressions: what is said of the object, at least one.
        source: the file and the place in it, for messages.
        category: the object's class, where the data set has classes.
        crowd: whether it is a group of objects (COCO's `iscrowd`), which is never asked about.
    """

    id: int | str
    name: str | int
    image: Path
    mask: RunLengths
    expressions: tuple[str, ...]
    source: str
    category: Category | None = None
    crowd: bool = False

    @property
    def size(self) -> Size:
        """Height and width of the image."""
        return self.mask.size

    @property
    def file_name(self) -> str:
        """The image's name as text, where the data set gives a number too."""
        return self.name if isinstance(self.name, str) else self.image.name


@dataclass(frozen=True, slots=True)
class ExpressionQuery:
    """One expression about one sample. `key` is unique in its data set and stays the same."""

    key: str
    sample: Sample
    expression: str


def expression_queries(samples: Sequence[Sample]) -> Iterator[ExpressionQuery]:
    """Every expression of every sample that is no crowd, in order.

    COCO's own evaluation neither counts a crowd as missed nor a result that covers it as wrong.
    """
    for at, sample in enumerate(samples):
        if sample.crowd:
            continue
        for number, expression in enumerate(sample.expressions):
            yield ExpressionQuery(f"{at}.{number}", sample, expression)


def bounding_box(mask: Mask) -> tuple[float, float, float, float]:
    """x, y, width and height of what a mask covers, in pixels; zeros if it covers nothing."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return float(x), float(y), float(width), float(height)


def corners(mask: Mask) -> Box:
    """The first and last column and row that a mask, not an empty one, covers."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return Box(x, y, x + width - 1, y + height - 1)
