"""Batches of crops, drawn in a process of their own while the net is trained."""

from __future__ import annotations

import os
import queue
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent_rt.scenes.layout import sample_layout
from segagent_rt.scenes.paint import paint
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.types import Mask
from segagent_rt_training.photo.augmentation import (
    PADDING,
    LabelledCrop,
    change_colours,
    random_crop,
)
from segagent_rt_training.photo.collage import cut_out, make_collage
from segagent_rt_training.photo.photos import (
    IGNORED,
    Bytes,
    LabelledImage,
    TrainingPhoto,
    load_photos,
)

AHEAD = 4
"""Batches that wait for the trainer."""

SCENE_SIDE = 256
GROUPS = {"facade": "repetitive", "mars": "repetitive", "coco": "coco"}
"""The group of each source; all other sources are `various`."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the draws; they sum to one. Facades and Mars are `repetitive`."""

    coco: float = 0.5
    repetitive: float = 0.09
    various: float = 0.05
    collage: float = 0.2
    scene: float = 0.16


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What decides batch number `n`: the seed, the mixture, and sizes.

    `side` is the crop's side and `longest` the range that the longer side of a source is resized
    to, both in pixels; each image gives `targets` examples.
    """

    seed: int
    side: int = 256
    images: int = 4
    targets: int = 2
    longest: tuple[float, float] = (240.0, 600.0)
    mixture: Mixture = Mixture()


@dataclass(frozen=True, slots=True)
class Batch:
    """Images uint8 [B, S, S, 3], and for each image T targets and what is ignored, both bool
    [B * T, S/2, S/2]."""

    images: Bytes
    targets: Mask
    ignored: Mask


class Sampler:
    """Draws images from photos, collages and generated scenes."""

    def __init__(self, photos: list[TrainingPhoto]) -> None:
        self._groups: dict[str, list[TrainingPhoto]] = {}
        for photo in photos:
            self._groups.setdefault(GROUPS.get(photo.source, "various"), []).append(photo)
        self._cutouts = cut_out([p for p in photos if GROUPS.get(p.source) != "repetitive"])

    def batch(self, plan: BatchPlan, number: int) -> Batch:
        """Batch `number` of a plan, always the same one."""
        rng = random.Random(f"photo-batch/{plan.seed}/{number}")
        images, targets, ignored = list[Bytes](), list[Mask](), list[Mask]()
        while len(images) < plan.images:
            crop = random_crop(self._draw(plan.mixture, rng), plan.side, plan.longest, rng)
            if crop is not None:
                image = change_colours(crop.image, rng)
                image = np.where(crop.padding[..., None], np.uint8(PADDING), image)
                images.append(image)
                chosen = _choose(crop, plan.targets, rng)
                targets += [crop.labels == value for value in chosen]
                ignored += [crop.labels == IGNORED] * plan.targets
        return Batch(np.stack(images), np.stack(targets), np.stack(ignored))

    def _draw(self, mixture: Mixture, rng: random.Random) -> LabelledImage:
        names = ("coco", "repetitive", "various", "collage", "scene")
        (kind,) = rng.choices(names, [getattr(mixture, name) for name in names])
        if kind == "scene":
            return draw_scene(rng)
        if kind == "collage":
            ground = self._groups["coco" if rng.random() < 0.7 else "various"]
            return make_collage(rng.choice(ground), self._cutouts, rng)
        return rng.choice(self._groups[kind]).content


def draw_scene(rng: random.Random) -> LabelledImage:
    """A generated scene with all its objects as targets."""
    dice = DeterministicRng("photo-scene", rng.randrange(1 << 40))
    image, labels = paint(sample_layout(dice), dice, SCENE_SIDE)
    counts = np.bincount(labels.ravel(), minlength=256)
    targets = tuple(int(v) for v in np.nonzero(counts >= 0.002 * labels.size)[0] if v > 0)
    return LabelledImage(image, labels, targets or (1,))


def _choose(crop: LabelledCrop, count: int, rng: random.Random) -> list[int]:
    """The wanted target, then others if there are any."""
    wanted, *others = crop.targets
    rest = [rng.choice(others) if others and rng.random() < 0.8 else wanted for _ in range(count)]
    return [wanted, *rest[1:]]


@contextmanager
def batches_from(
    folder: Path, plan: BatchPlan, first: int, step: int = 1
) -> Iterator[Iterator[Batch]]:
    """Batches `first`, `first + step` and so on, made by another process."""
    context = get_context("spawn")
    waiting: Any = context.Queue(AHEAD)
    process = context.Process(target=_produce, args=(folder, plan, first, step, waiting))
    process.start()

    def drawn() -> Iterator[Batch]:
        while True:
            try:
                yield waiting.get(timeout=30)
            except queue.Empty:
                if not process.is_alive():
                    raise RuntimeError("the process that draws batches ended") from None

    try:
        yield drawn()
    finally:
        process.terminate()


def _produce(folder: Path, plan: BatchPlan, first: int, step: int, waiting: Any) -> None:
    """Fill the queue until the trainer is gone."""
    cv2.setNumThreads(1)
    trainer = os.getppid()
    sampler, number = Sampler(load_photos(folder, "train")), first
    while True:
        batch = sampler.batch(plan, number)
        number += step
        while True:
            if os.getppid() != trainer:
                os._exit(1)
            try:
                waiting.put(batch, timeout=10)
                break
            except queue.Full:
                continue
