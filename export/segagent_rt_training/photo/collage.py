"""Collages: objects cut out of photos, pasted over other photos."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segagent_rt_training.photo.augmentation import change_colours
from segagent_rt_training.photo.photos import Bytes, LabelledImage, TrainingPhoto

CUT_SHARE = (0.01, 0.5)
"""Least and most share of its photo that an object must cover to be cut out."""

MOST_PASTED = 4
FIRST_LABEL = 200
"""Pasted objects have labels from here on; photos have fewer objects than this."""


@dataclass(frozen=True, slots=True)
class Cutout:
    """An object: image uint8 [h, w, 3] and its mask uint8 [h, w], 255 where the object is."""

    image: Bytes
    mask: Bytes


def cut_out(photos: Sequence[TrainingPhoto]) -> list[Cutout]:
    """The objects of photos that are large enough."""
    found = []
    for photo in photos:
        for item in photo.entry["instances"]:
            if CUT_SHARE[0] <= item["area_share"] <= CUT_SHARE[1]:
                mask = (photo.content.labels == item["id"]).astype(np.uint8) * np.uint8(255)
                x, y, width, height = cv2.boundingRect(mask)
                window = (slice(y, y + height), slice(x, x + width))
                found.append(Cutout(photo.content.image[window], mask[window]))
    return found


def make_collage(
    ground: TrainingPhoto, cutouts: Sequence[Cutout], rng: random.Random
) -> LabelledImage:
    """A photo with one to `MOST_PASTED` objects over it; only the pasted ones are targets."""
    image, labels = ground.content.image.copy(), ground.content.labels.copy()
    count = rng.randint(1, MOST_PASTED)
    for label in range(FIRST_LABEL, FIRST_LABEL + count):
        paste(image, labels, label, rng.choice(cutouts), rng)
    visible = np.bincount(labels.ravel(), minlength=256) >= 0.004 * labels.size
    targets = tuple(v for v in range(FIRST_LABEL, FIRST_LABEL + count) if visible[v])
    return LabelledImage(image, labels, targets or ground.content.targets)


def paste(image: Bytes, labels: Bytes, label: int, cutout: Cutout, rng: random.Random) -> None:
    """Draw a cutout, resized and sometimes mirrored, at a random place; in place."""
    height, width = labels.shape
    size = max(height, width) * 0.1 * 7.0 ** rng.random()
    scale = min(size / max(cutout.mask.shape), 2.5)
    h, w = (max(8, round(side * scale)) for side in cutout.mask.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = np.asarray(cv2.resize(change_colours(cutout.image, rng), (w, h), interpolation=method))
    alpha = np.asarray(cv2.resize(cutout.mask, (w, h), interpolation=cv2.INTER_LINEAR))
    if rng.random() < 0.5:
        pixels, alpha = pixels[:, ::-1], alpha[:, ::-1]
    top, left = rng.randrange(-h // 3, height - h // 2), rng.randrange(-w // 3, width - w // 2)
    rows, columns = slice(max(0, top), top + h), slice(max(0, left), left + w)
    target = image[rows, columns]
    inside = (slice(max(0, -top), max(0, -top) + target.shape[0]),
              slice(max(0, -left), max(0, -left) + target.shape[1]))  # fmt: skip
    if target.size == 0:
        return
    alpha = np.ascontiguousarray(alpha[inside])
    soft = np.asarray(cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.4, 1.2)))[..., None] / 255.0
    target[:] = (target * (1 - soft) + pixels[inside] * soft).astype(np.uint8)
    labels[rows, columns][alpha > 127] = label
