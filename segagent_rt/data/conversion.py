"""Data sets from one format to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from segagent_rt.data.coco import write_coco
from segagent_rt.data.labelme import write_labelme
from segagent_rt.data.record import Sample
from segagent_rt.data.segagent import write_segagent
from segagent_rt.data.sources import DataSet
from segagent_rt.errors import DataInvalid
from segagent_rt.io import check_replaceable


class Write(Protocol):
    """Writes a data set into a folder, and returns where it is."""

    def __call__(self, data: DataSet, folder: Path, *, overwrite: bool = False) -> Path: ...


def to_segagent(data: DataSet, folder: Path, *, overwrite: bool = False) -> Path:
    """SegAgent's data file."""
    path = folder / f"{data.title}.segagent.json"
    write_segagent(path, data.samples, overwrite=overwrite)
    return path


def to_coco(data: DataSet, folder: Path, *, overwrite: bool = False) -> Path:
    """COCO annotations."""
    path = folder / f"{data.title}.coco.json"
    write_coco(path, data.samples, data.categories, overwrite=overwrite)
    return path


def to_labelme(data: DataSet, folder: Path, *, overwrite: bool = False) -> Path:
    """A file of labelme for each image, to be put beside it.

    Raises:
        DataInvalid: two images have the same name.
        OutputError: somebody else wrote one of the files; none is written then.
    """
    by_stem: dict[str, list[Sample]] = {}
    for sample in data.samples:
        by_stem.setdefault(sample.image.stem, []).append(sample)
    for samples in by_stem.values():
        first, *others = dict.fromkeys(sample.image for sample in samples)
        if others:
            raise DataInvalid(f"{first} and {others[0]} have the same labelme file name")
    files = {folder / f"{stem}.json": samples for stem, samples in by_stem.items()}
    check_replaceable(files, overwrite=overwrite)
    for path, samples in files.items():
        write_labelme(path, samples, overwrite=overwrite)
    return folder


TARGETS: Mapping[str, Write] = {"segagent": to_segagent, "coco": to_coco, "labelme": to_labelme}
"""What writes each format."""
