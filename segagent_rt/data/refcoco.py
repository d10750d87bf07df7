"""RefCOCO, RefCOCO+ and RefCOCOg: their splits by name, and the folders of the REFER toolkit.

`refcoco_val` is the split `val` of `refcoco`; `refcoco` alone stands for all of its splits. Below
the root lies either SegAgent's `refcoco_val.json` or REFER's folder `refcoco` with
`refs(unc).p` (or `.json`) and `instances.json`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt.data.coco import Instances
from segagent_rt.data.pickles import BoundedUnpickler
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import captions, field, identifier, read_bytes, read_json
from segagent_rt.data.record import Sample
from segagent_rt.errors import DataInvalid

SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}
MOST_BYTES = 100_000_000
"""Size of the largest pickle that is read; REFER's have some fifty million bytes."""

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


def read_refer(folder: Path, split: Split, context: ReadContext) -> list[Sample]:
    """The references of a split, one sample for each.

    Raises:
        DataInvalid: a file is missing or damaged, or the split is empty.
    """
    document = read_json(folder / "instances.json")
    instances = Instances.read(document, f"{split.benchmark}/instances.json", context)
    samples = []
    for where, reference in _references(folder, split, context):
        with context.entry():
            number, image = (
                identifier(field(reference, key, object, where), f"{where}: `{key}`")
                for key in ("ann_id", "image_id")
            )
            sentences = field(reference, "sentences", list, where)
            said = [field(sentence, "sent", str, where) for sentence in sentences]
            expressions = captions(said, f"{where}: `sentences`")
            samples.append(instances.sample(number, image, expressions, where, context))
    if not samples and not context.skipped:
        raise DataInvalid(f"{folder} holds nothing of the split {split.name}")
    return samples


def _references(folder: Path, split: Split, context: ReadContext) -> Iterator[tuple[str, Any]]:
    stem = f"refs({PARTITIONS[split.benchmark]})"
    plain = folder / f"{stem}.json"
    path = plain if plain.is_file() else folder / f"{stem}.p"
    listed = read_json(path) if path == plain else _unpickle(path)
    if not isinstance(listed, list):
        raise DataInvalid(f"{path} is not a list of references")
    for number, reference in enumerate(listed, 1):
        where = f"{split.benchmark}/{path.name}, reference {number}"
        of_it = False
        with context.entry():
            of_it = field(reference, "split", str, where) == split.name
        if of_it:
            yield where, reference


def _unpickle(path: Path) -> Any:
    """A pickle of plain data, written by Python 2 or 3."""
    try:
        content = read_bytes(path, MOST_BYTES)
        return BoundedUnpickler(io.BytesIO(content), encoding="latin1").load()
    except DataInvalid:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise DataInvalid(
            f"{path} is not a pickle of plain data: {error}",
            hint="REFER's own files hold lists, dictionaries, texts and numbers only",
        ) from None
