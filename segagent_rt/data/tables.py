"""SegAgent's tables of IoUs: a CSV with a row for each mask, and a text of two figures.

Columns `image_name, mask_idx, iou, caption`; after the masks of an image a row with the index -1
holds their mean. Its arithmetic is repeated here down to the last bit: float32, the union made
1e-5 larger, empty masks of empty objects 0 in their row and 1 in every mean
(evaltools/eval_result_iou.py). For figures that are exact see `segagent_rt.metrics`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from segagent_rt.io import write_result

COLUMNS = ("image_name", "mask_idx", "iou", "caption")
MEAN = -1
"""`mask_idx` of the row that holds an image's mean."""

_TINY = np.float32(1e-5)


@dataclass(frozen=True, slots=True)
class Overlap:
    """A mask against its target: pixels in both and in either."""

    image: str
    caption: str
    intersection: int
    union: int

    @property
    def iou(self) -> np.float32:
        return np.float32(np.float32(self.intersection) / (np.float32(self.union) + _TINY))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    image: str
    index: int
    iou: float
    caption: str


def rows(overlaps: Sequence[Overlap]) -> Iterator[Row]:
    """The table's lines. Masks of an image that do not follow each other make two blocks."""
    for image, group in groupby(overlaps, key=lambda overlap: overlap.image):
        block = list(group)
        for index, overlap in enumerate(block):
            yield Row(image, index, float(overlap.iou), overlap.caption)
        yield Row(image, MEAN, float(_mean(block)), "")


def summary(overlaps: Sequence[Overlap]) -> tuple[float, float]:
    """`class_iou`, which is the cIoU, and `global_iou`, which is the gIoU."""
    both = either = total = np.float32(0)
    for _, group in groupby(overlaps, key=lambda overlap: overlap.image):
        block = list(group)
        both = np.float32(both + np.float32(sum(overlap.intersection for overlap in block)))
        either = np.float32(either + np.float32(sum(overlap.union for overlap in block)))
        total = np.float32(total + _mean(block) * np.float32(len(block)))
    return float(both / (either + _TINY)), float(total / np.float32(len(overlaps) + 1e-5))


def _mean(block: Sequence[Overlap]) -> np.float32:
    total = np.float32(0)
    for overlap in block:
        total = np.float32(total + overlap.iou + np.float32(overlap.union == 0))
    return np.float32(total / np.float32(len(block)))


def write_tables(
    stem: Path, click: int | None, overlaps: Sequence[Overlap], *, overwrite: bool = False
) -> list[Path]:
    """Write `<stem>_clicknew2<click>.csv` and `<stem>_clicknew2<click>_click<click>.txt`.

    Raises:
        OutputError: they cannot be written.
    """
    table = stem.with_name(f"{stem.name}_clicknew2{click}.csv")
    text = stem.with_name(f"{stem.name}_clicknew2{click}_click{click}.txt")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    writer.writerows((row.image, row.index, row.iou, row.caption) for row in rows(overlaps))
    class_iou, global_iou = summary(overlaps)
    figures = f"class_iou: {class_iou}\nglobal_iou: {global_iou}\n"
    write_result(table, stream.getvalue().encode(), overwrite=overwrite)
    write_result(text, figures.encode(), overwrite=overwrite)
    return [table, text]
