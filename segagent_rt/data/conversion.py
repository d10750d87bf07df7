"""Data sets from one format to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from segagent_rt.data.coco import write_coco
from segagent_rt.data.labelme import write_labelme
from segagent_rt.data.record import Sample
from segagent_rt.data.segagent import write_segagent
from segagent_rt.data.sources import DataSet
from segagent_rt.errors import DataInvalid

Write: TypeAlias = Callable[[DataSet, Path], Path]


def to_segagent(data: DataSet, folder: Path) -> Path:
    """SegAgent's data file."""
    path = folder / f"{data.title}.segagent.json"
    write_segagent(path, data.samples)
    return path


def to_coco(data: DataSet, folder: Path) -> Path:
    """COCO annotations."""
    path = folder / f"{data.title}.coco.json"
    write_coco(path, data.samples)
    return path


def to_labelme(data: DataSet, folder: Path) -> Path:
    """A file of labelme for each image, to be put beside it.

    Raises:
        DataInvalid: two images have the same name.
    """
    by_stem: dict[str, list[Sample]] = {}
    for sample in data.samples:
        by_stem.setdefault(sample.image.stem, []).append(sample)
    for samples in by_stem.values():
        first, *others = dict.fromkeys(sample.image for sample in samples)
        if others:
            raise DataInvalid(f"{first} and {others[0]} would be one file of labelme")
    for stem, samples in by_stem.items():
        write_labelme(folder / f"{stem}.json", samples)
    return folder


TARGETS: Mapping[str, Write] = {"segagent": to_segagent, "coco": to_coco, "labelme": to_labelme}
"""What writes a data set in a format, and returns where it is."""
