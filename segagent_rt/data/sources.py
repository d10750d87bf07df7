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
from segagent_rt.data.reading import read_bytes, read_json
from segagent_rt.data.record import Sample
from segagent_rt.data.refcoco import Split, check_split, read_refer, refer_folder, splits_named
from segagent_rt.data.segagent import looks_like_segagent, read_segagent
from segagent_rt.data.trajectories import (
    Demonstration,
    looks_like_trajectories,
    read_trajectories,
)
from segagent_rt.errors import DataInvalid

Reader: TypeAlias = Callable[[Any, str, ImageFolders], list[Sample]]

FORMATS: tuple[tuple[Callable[[Any], bool], Reader], ...] = (
    (looks_like_segagent, read_segagent),
    (looks_like_coco, read_coco),
    (looks_like_labelme, read_labelme),
)


@dataclass(frozen=True, slots=True)
class DataSet:
    """Samples under a title, which result files are named after."""

    title: str
    samples: list[Sample]

    @property
    def digest(self) -> str:
        """Names the content: images, masks and expressions, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            parts = (sample.name, sample.size, sample.mask.counts, sample.expressions)
            digest.update(repr(parts).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie.

    Attributes:
        root: of data sets that are named, not given by their path.
        images: of their pictures; None if they lie beside the file that names them.
    """

    root: Path = Path()
    images: Path | None = None

    def beside(self, folder: Path) -> ImageFolders:
        """Where to look for pictures that a file in this folder names."""
        return ImageFolders((folder,) if self.images is None else (self.images, folder))


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
        return [DataSet(path.resolve().name, _read_folder(path, places))]
    splits = [] if path.exists() else splits_named(name)
    if splits:
        return [DataSet(split.title, _read_split(split, places)) for split in splits]
    if not path.exists():
        check_split(name)
    return [DataSet(path.stem, read_file(path, places))]


def read_file(path: Path, places: Places) -> list[Sample]:
    """The samples of one JSON file.

    Raises:
        DataInvalid: no such file, or of no known format.
    """
    document = read_json(path)
    for fits, read in FORMATS:
        if fits(document):
            return read(document, path.name, places.beside(path.parent))
    raise DataInvalid(
        f"{path} is of no known format",
        hint="SegAgent's data files, COCO instances, labelme, or a folder of pictures and masks",
    )


def recordings_in(name: str) -> list[Recording] | None:
    """The recordings of a predictions file; None if the name stands for anything else.

    Raises:
        DataInvalid: it is a predictions file, but not what its format says.
    """
    path = Path(name)
    if not path.is_file() or not read_bytes(path).lstrip().startswith(b"["):
        return None
    document = read_json(path)
    return read_predictions(document, path.name) if looks_like_predictions(document) else None


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
    return read_trajectories(document, path.name, places.beside(path.parent))


def _read_split(split: Split, places: Places) -> list[Sample]:
    path = places.root / f"{split.title}.json"
    if path.is_file():
        return read_file(path, places)
    folder = refer_folder(places.root, split.benchmark)
    if folder is None:
        raise DataInvalid(
            f"{places.root} holds neither {split.title}.json nor a folder {split.benchmark}",
            hint="name the folder that holds them with --root",
        )
    return read_refer(folder, split, places.beside(places.root))


def _read_folder(folder: Path, places: Places) -> list[Sample]:
    """Pictures and masks, or a file of labelme for each picture."""
    if looks_like_folder(folder):
        return read_folder(folder)
    samples: list[Sample] = []
    for path in sorted(folder.glob("*.json")):
        document = read_json(path)
        if looks_like_labelme(document):
            samples += read_labelme(document, path.name, places.beside(folder))
    return samples or read_folder(folder)
