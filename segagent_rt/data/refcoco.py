"""RefCOCO, RefCOCO+ and RefCOCOg: their splits by name, and the folders of the REFER toolkit.

`refcoco_val` is the split `val` of `refcoco`; `refcoco` alone stands for all of its splits. Below
the root lies either SegAgent's `refcoco_val.json` or REFER's folder `refcoco` with
`refs(unc).p` (or `.json`) and `instances.json`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt.data.coco import by_id
from segagent_rt.data.images import ImageFolders
from segagent_rt.data.reading import (
    captions,
    field,
    image_size,
    read_bytes,
    read_json,
    segmentation,
)
from segagent_rt.data.record import Sample
from segagent_rt.data.segagent import image_name
from segagent_rt.errors import DataInvalid

SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}
PARTITIONS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}


@dataclass(frozen=True, slots=True)
class Split:
    """A part of a benchmark that figures are published for."""

    benchmark: str
    name: str

    @property
    def title(self) -> str:
        return f"{self.benchmark}_{self.name}"


def splits_named(text: str) -> list[Split]:
    """The splits that a name stands for; none if it is no name of a split."""
    benchmark, _, name = text.partition("_")
    known = SPLITS.get(benchmark, ())
    if not name:
        return [Split(benchmark, each) for each in known]
    return [Split(benchmark, name)] if name in (*known, *(("train",) if known else ())) else []


def check_split(text: str) -> None:
    """Raise `DataInvalid` if a name is a benchmark's, with a split that it does not have."""
    benchmark, _, name = text.partition("_")
    if benchmark in SPLITS and not splits_named(text):
        raise DataInvalid(
            f"{benchmark} has no split {name}", hint=f"it has {', '.join(SPLITS[benchmark])}, train"
        )


def refer_folder(root: Path, benchmark: str) -> Path | None:
    """REFER's folder of a benchmark below the root, if it is there."""
    for folder in (root / benchmark, root / "refer_seg" / benchmark):
        if (folder / "instances.json").is_file():
            return folder
    return None


def read_refer(folder: Path, split: Split, images: ImageFolders) -> list[Sample]:
    """The references of a split, one sample for each.

    Raises:
        DataInvalid: a file is missing or damaged, or the split is empty.
    """
    document = read_json(folder / "instances.json")
    name = f"{split.benchmark}/instances.json"
    pictures, objects = by_id(document, "images", name), by_id(document, "annotations", name)
    samples = []
    for where, reference in _references(folder, split):
        number = field(reference, "ann_id", int, where)
        if number not in objects:
            raise DataInvalid(f"{where}: {name} lists no annotation {number}")
        picture = pictures.get(field(reference, "image_id", int, where))
        if picture is None:
            raise DataInvalid(f"{where}: {name} lists no image {reference['image_id']}")
        place = f"{name}, annotation {number}"
        file = image_name(picture, "file_name", f"{name}, image {reference['image_id']}")
        outline = field(objects[number], "segmentation", object, place)
        sentences = field(reference, "sentences", list, where)
        said = [field(sentence, "sent", str, where) for sentence in sentences]
        samples.append(
            Sample(
                id=number,
                name=file,
                image=images.find(file),
                mask=segmentation(outline, image_size(picture, place), place),
                expressions=captions(said, f"{where}: `sentences`"),
                source=where,
            )
        )
    if not samples:
        raise DataInvalid(f"{folder} holds nothing of the split {split.name}")
    return samples


def _references(folder: Path, split: Split) -> Iterator[tuple[str, Any]]:
    stem = f"refs({PARTITIONS[split.benchmark]})"
    plain = folder / f"{stem}.json"
    path = plain if plain.is_file() else folder / f"{stem}.p"
    listed = read_json(path) if path == plain else _unpickle(path)
    if not isinstance(listed, list):
        raise DataInvalid(f"{path} is not a list of references")
    for number, reference in enumerate(listed, 1):
        where = f"{split.benchmark}/{path.name}, reference {number}"
        if field(reference, "split", str, where) == split.name:
            yield where, reference


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of lists, dictionaries, texts and numbers; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(path: Path) -> Any:
    """A pickle of plain data, written by Python 2 or 3."""
    try:
        return _PlainUnpickler(io.BytesIO(read_bytes(path)), encoding="latin1").load()
    except DataInvalid:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise DataInvalid(
            f"{path} is not a pickle of plain data: {error}",
            hint="REFER's own files hold lists, dictionaries, texts and numbers only",
        ) from None
