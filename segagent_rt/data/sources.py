"""Opens any data set: a file of a known format, a folder, or a split by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from segagent_rt.data.coco import looks_like_coco, read_coco
from segagent_rt.data.folders import looks_like_folder, read_folder
from segagent_rt.data.images import ImageFolders
from segagent_rt.data.labelme import looks_like_labelme, read_labelme
from segagent_rt.data.predictions import Recording, looks_like_predictions, read_predictions
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import read_bytes, read_json
from segagent_rt.data.record import Category, Sample
from segagent_rt.data.refcoco import Split, check_split, read_refer, refer_folder, splits_named
from segagent_rt.data.segagent import looks_like_segagent, read_segagent
from segagent_rt.data.trajectories import Demonstration, looks_like_trajectories, read_trajectories
from segagent_rt.errors import DataInvalid

Reader: TypeAlias = Callable[[Any, str, ReadContext], list[Sample]]

FORMATS: tuple[tuple[Callable[[Any], bool], Reader], ...] = (
    (looks_like_segagent, read_segagent),
    (looks_like_coco, read_coco),
    (looks_like_labelme, read_labelme),
)


@dataclass(frozen=True, slots=True)
class DataSet:
    """Samples under a title, which result files are named after.

    Attributes:
        title: of the results.
        samples: all objects.
        categories: every category that the file lists, used or not.
        skipped: a sentence about each bad entry that was left out.
    """

    title: str
    samples: list[Sample]
    categories: tuple[Category, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Names the content: images, masks and expressions, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            parts = (sample.name, sample.size, sample.mask.counts, sample.expressions)
            digest.update(repr(parts).encode() + b"crowd" * sample.crowd)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie.

    Attributes:
        root: of data sets that are named, not given by their path.
        images: of their pictures; None if they lie beside the file that names them.
        skip_bad: whether entries that are not as their format says are left out.
        mask_label: the value that is the object, in masks that are label maps.
    """

    root: Path = Path()
    images: Path | None = None
    skip_bad: bool = False
    mask_label: int | None = None

    def context(self, folder: Path, file: Path | None = None) -> ReadContext:
        """How a file in this folder is read; its pictures may lie beside it."""
        images = ImageFolders((folder,) if self.images is None else (self.images, folder))
        return ReadContext(images, self.skip_bad, self.mask_label, file)


def open_all(names: list[str], places: Places) -> list[DataSet]:
    """Every data set that is named, in order.

    Raises:
        DataInvalid: one cannot be read, or two have the same title.
    """
    opened = [found for name in names for found in open_data(name, places)]
    check_titles([found.title for found in opened])
    return opened


def check_titles(titles: list[str]) -> None:
    """Raise `DataInvalid` if two are the same: results are named after them."""
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise DataInvalid(
            f"two data sets are called {twice}, and so would their results be",
            hint="run them one after the other, each with its own -o",
        )


def open_data(name: str, places: Places) -> list[DataSet]:
    """The data set at a path, or the splits of that name below the root.

    Raises:
        DataInvalid: there is none, or it is not what its format says.
    """
    path = Path(name)
    if path.is_dir():
        return [_read(path.resolve().name, _read_folder, path, places.context(path))]
    splits = [] if path.exists() else splits_named(name)
    if splits:
        return [_read_split(split, places) for split in splits]
    if not path.exists():
        check_split(name)
    return [_read(path.stem, _read_file, path, places.context(path.parent, path))]


def _read(
    title: str, read: Callable[[Path, ReadContext], list[Sample]], path: Path, context: ReadContext
) -> DataSet:
    samples = read(path, context)
    context.report_progress(title, len(samples), sum(sample.crowd for sample in samples))
    return DataSet(title, samples, tuple(context.categories), tuple(context.skipped))


def _read_file(path: Path, context: ReadContext) -> list[Sample]:
    document = read_json(path)
    for fits, read in FORMATS:
        if fits(document):
            samples = read(document, path.name, context)
            if not samples and not context.skipped:
                raise DataInvalid(f"{path.name} holds no object")
            return samples
    raise DataInvalid(
        f"{path} has no known format",
        hint="SegAgent's data files, COCO instances, labelme, or a folder of pictures and masks",
    )


def recordings_in(name: str, places: Places) -> list[Recording] | None:
    """The recordings of a predictions file; None if the name stands for anything else.

    Raises:
        DataInvalid: it is a predictions file, but not what its format says.
    """
    path = Path(name)
    if not path.is_file() or not read_bytes(path).lstrip().startswith(b"["):
        return None
    document = read_json(path)
    if not looks_like_predictions(document):
        return None
    context = places.context(path.parent)
    recordings = read_predictions(document, path.name, context)
    context.report_progress(path.name, len(recordings))
    return recordings


def open_trajectories(name: str, places: Places) -> list[Demonstration]:
    """The demonstrations of a file of trajectories.

    Raises:
        DataInvalid: it is none.
    """
    path = Path(name)
    document = read_json(path)
    if not looks_like_trajectories(document):
        raise DataInvalid(
            f"{path} holds no trajectories", hint="make some: segagent-rt trajectories --help"
        )
    context = places.context(path.parent)
    found = read_trajectories(document, path.name, context)
    context.report_progress(path.name, len(found))
    return found


def _read_split(split: Split, places: Places) -> DataSet:
    path = places.root / f"{split.title}.json"
    if path.is_file():
        return _read(split.title, _read_file, path, places.context(places.root, path))
    folder = refer_folder(places.root, split.benchmark)
    if folder is None:
        raise DataInvalid(
            f"{places.root} holds neither {split.title}.json nor a folder {split.benchmark}",
            hint="name the folder that holds them with --root",
        )
    context = places.context(places.root)
    return _read(split.title, lambda at, how: read_refer(at, split, how), folder, context)


def _read_folder(folder: Path, context: ReadContext) -> list[Sample]:
    """Pictures and masks, or a file of labelme for each picture."""
    if looks_like_folder(folder):
        return read_folder(folder, context)
    samples: list[Sample] = []
    for path in sorted(folder.glob("*.json")):
        with context.entry():
            document = read_json(path)
            if looks_like_labelme(document):
                context.file = path
                samples += read_labelme(document, path.name, context)
    return samples or ([] if context.skipped else read_folder(folder, context))
