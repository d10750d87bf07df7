"""The views that the study trains on, chooses with, and measures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segagent_rt_training.photo.photos import TrainingPhoto, load_photos
from segagent_rt_training.words.expressions import (
    EverydayExpression,
    absent_expressions,
    fully_labelled,
    make_expressions,
    outlines,
)
from segagent_rt_training.words.features import (
    COLLAGES_IN_A_FILE,
    CollageMaker,
    FrozenEncoder,
    PhotoView,
    cached_views,
    photo_views,
)
from segagent_rt_training.words.vocabulary import INDEX

ABSENT = 6
"""Absent nouns asked of a photo whose objects are all labelled."""


@dataclass(frozen=True, slots=True)
class MaterialPlan:
    """How many variants of each photo are encoded, how many photos that are labelled partly, and
    how many collages."""

    full: int = 8
    facade: int = 1
    partly: int = 1
    most_partly: int = 150
    collages: int = 200


@dataclass(frozen=True, slots=True)
class AskedPhoto:
    """A photo that is measured: its view, and what is asked about it."""

    photo: TrainingPhoto
    view: PhotoView
    expressions: tuple[EverydayExpression, ...]
    absent: tuple[EverydayExpression, ...]


class StudyMaterial:
    """The photos of a folder, and the views of them that lie in a cache.

    Args:
        photos: the folder of the training photos.
        cache: where encoded views are kept.
        plan: how many views.
        report_progress: hears what has been done.
    """

    def __init__(
        self, photos: Path, cache: Path, plan: MaterialPlan, report_progress: Callable[[str], None]
    ) -> None:
        self._cache, self._plan, self._report = cache, plan, report_progress
        self._encoder: FrozenEncoder | None = None
        self._train = load_photos(photos, "train", least_share=0.0)
        everything = load_photos(photos, "train", share_alike=True, least_share=0.0)
        groups = {p.entry.get("group", p.entry["name"]) for p in self._train}
        self._choosing = [
            p for p in everything
            if "-SA" in p.entry["licence"]
            and p.entry.get("group", p.entry["name"]) not in groups
        ]  # fmt: skip
        self._validation = load_photos(photos, "val", share_alike=True, least_share=0.0)

    def training(self) -> dict[str, list[PhotoView]]:
        """Views to train on, by where they come from; none of a ShareAlike photo."""
        found: dict[str, list[PhotoView]] = {"full": [], "facade": [], "partly": []}
        for number, photo in enumerate(self._train):
            group = _group(photo)
            if group == "partly" and len(found[group]) >= self._plan.most_partly:
                continue
            if group is not None:
                found[group] += self._views(photo, getattr(self._plan, group))
            if number % 100 == 99:
                self._report(f"encoded {number + 1} of {len(self._train)} training photos")
        return found

    def collages(self) -> list[PhotoView]:
        """Collages of the training photos' objects."""
        maker, found = CollageMaker(self._train), list[PhotoView]()
        for first in range(0, self._plan.collages, COLLAGES_IN_A_FILE):
            numbers = range(first, min(first + COLLAGES_IN_A_FILE, self._plan.collages))
            path = self._cache / f"collage-{first}-{len(numbers)}.pt"
            found += cached_views(path, partial(self._draw, maker, numbers))
            self._report(f"{len(found)} of {self._plan.collages} collages")
        return found

    def choosing(self) -> list[AskedPhoto]:
        """Photos of the training split that are used for choices only: those under ShareAlike."""
        return self._asked(self._choosing)

    def validation(self) -> list[AskedPhoto]:
        """The validation photos of which some category is fully labelled."""
        return self._asked(self._validation)

    def measured(self) -> list[AskedPhoto]:
        """The fully labelled photos that are trained on, as they are."""
        return self._asked([p for p in self._train if _group(p) == "full"])

    def _asked(self, photos: Sequence[TrainingPhoto]) -> list[AskedPhoto]:
        found = []
        for photo in photos:
            labelled = fully_labelled(photo.entry)
            if labelled:
                rng = random.Random(f"words-asked/{photo.entry['name']}")
                objects = outlines(photo.content.labels, photo.category)
                expressions, _ = make_expressions(objects, labelled, rng)
                absent = absent_expressions(objects, labelled, ABSENT, rng)
                if expressions or len(labelled) > 1:
                    (view,) = self._views(photo, 1)
                    found.append(AskedPhoto(photo, view, tuple(expressions), tuple(absent)))
        return found

    def _views(self, photo: TrainingPhoto, count: int) -> list[PhotoView]:
        path = self._cache / f"{photo.entry['name']}-{count}.pt"
        return cached_views(path, lambda: photo_views(photo, count, self._encode()))

    def _draw(self, maker: CollageMaker, numbers: range) -> Iterator[PhotoView]:
        return (maker.draw(number, self._encode()) for number in numbers)

    def _encode(self) -> FrozenEncoder:
        if self._encoder is None:
            self._encoder = FrozenEncoder()
        return self._encoder


def _group(photo: TrainingPhoto) -> str | None:
    """Which share of the training a photo belongs to, if to any."""
    labelled = fully_labelled(photo.entry)
    shown = set(photo.category.values()) & INDEX.keys()
    if len(labelled) > 1:
        return "full"
    if labelled:
        return "facade" if shown & labelled else None
    return "partly" if shown else None
