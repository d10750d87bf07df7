"""Crops at random scales, and colours as other cameras and other light would give them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import cv2
import numpy as np

from segagent_rt.types import Mask
from segagent_rt_training.photo.photos import Bytes, LabelledImage

PADDING = 127
"""Grey beside the image, in training as in use; it normalises to zero."""

LEAST_VISIBLE = 0.003
"""Share of a crop that a target must cover."""


@dataclass(frozen=True, slots=True)
class LabelledCrop:
    """A square crop: image uint8 [S, S, 3], labels uint8 [S/2, S/2], the visible targets, of which
    the first one is what the crop was made for, and where padding is, bool [S, S]."""

    image: Bytes
    labels: Bytes
    targets: tuple[int, ...]
    padding: Mask


def random_crop(
    source: LabelledImage, side: int, longest: tuple[float, float], rng: random.Random
) -> LabelledCrop | None:
    """A crop round a random target, or None if too little of it is visible.

    Args:
        source: what to crop.
        side: S, in pixels.
        longest: least and most of the longer side, in pixels, that the source is resized to.
        rng: the source of randomness.
    """
    wanted = rng.choice(source.targets)
    rows, columns = np.nonzero(source.labels == wanted)
    if len(rows) == 0:
        return None
    height, width = source.labels.shape
    # 1. Scale, rotate and mirror; then shift so that a random pixel of the target is inside.
    scale = longest[0] * (longest[1] / longest[0]) ** rng.random() / max(height, width)
    angle = rng.gauss(0, 12) if rng.random() < 0.3 else 0.0
    squeeze = rng.uniform(0.85, 1.18) if rng.random() < 0.4 else 1.0
    linear = cv2.getRotationMatrix2D((0, 0), angle, scale)[:, :2] @ np.diag([squeeze, 1.0])
    if rng.random() < 0.5:
        linear = linear @ np.diag([-1.0, 1.0])
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ linear.T
    low, high = corners.min(0), corners.max(0)
    at = rng.randrange(len(rows))
    place = linear @ np.array([columns[at], rows[at]])
    shift = [_shift(place[i], low[i], high[i], side, rng) for i in range(2)]
    matrix = np.hstack([linear, np.reshape(shift, (2, 1))])
    # 2. Resample; labels at half the size, each at the centre of its 2 x 2 pixels.
    image = cv2.warpAffine(
        _smoothed(source.image, scale), matrix, (side, side), borderValue=(PADDING,) * 3
    )
    half = matrix * 0.5
    half[:, 2] -= 0.25
    labels = cv2.warpAffine(source.labels, half, (side // 2, side // 2), flags=cv2.INTER_NEAREST)
    inside = cv2.warpAffine(np.ones((height, width), np.uint8), matrix, (side, side), flags=0)
    # 3. Keep the targets of which enough is visible.
    counts = np.bincount(labels.ravel(), minlength=256)
    visible = [v for v in source.targets if counts[v] >= LEAST_VISIBLE * labels.size]
    if wanted not in visible:
        return None
    others = tuple(v for v in visible if v != wanted)
    return LabelledCrop(np.asarray(image), np.asarray(labels), (wanted, *others), inside == 0)


def _shift(place: float, low: float, high: float, side: int, rng: random.Random) -> float:
    """Where the source begins along one axis: at a random place if it fits, or so that `place` is
    inside and no side of the crop is left empty."""
    if high - low <= side:
        return rng.uniform(0, side - (high - low)) - low
    begin = place - side * rng.uniform(0.15, 0.85)
    return -min(max(begin, low), high - side)


def _smoothed(image: Bytes, scale: float) -> Bytes:
    """Blurred as much as a reduction needs."""
    if scale >= 0.7:
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.35 / scale))


def change_colours(image: Bytes, rng: random.Random) -> Bytes:
    """Light, contrast, colour, blur, noise and compression, in varying strength."""
    if rng.random() < 0.15:
        return image
    # 1. A curve for each channel: gain, contrast and gamma.
    gain, gamma = rng.uniform(0.65, 1.4), rng.uniform(0.7, 1.4)
    contrast, mean = rng.uniform(0.65, 1.4), float(image.mean())
    levels = np.arange(256, dtype=np.float32)
    curves = []
    for _ in range(3):
        curve = 255 * (levels / 255) ** gamma * gain * rng.uniform(0.88, 1.14)
        curves.append((curve - mean) * contrast + mean + rng.uniform(-10, 10))
    table = np.clip(np.stack(curves, 1), 0, 255).astype(np.uint8)[None]
    image = np.asarray(cv2.LUT(image, table))
    # 2. Saturation and hue.
    kind = rng.random()
    if kind < 0.06:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))
    elif kind < 0.5:
        hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
        hue = np.arange(256) + rng.randint(-10, 10)
        saturation = np.clip(levels * rng.uniform(0.5, 1.5), 0, 255)
        table = np.stack([np.mod(hue, 180), saturation, levels], 1).astype(np.uint8)[None]
        image = np.asarray(cv2.cvtColor(np.asarray(cv2.LUT(hsv, table)), cv2.COLOR_HSV2RGB))
    # 3. What lens, sensor and storage do.
    if rng.random() < 0.12:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.8)))
    if rng.random() < 0.12:
        noise = np.random.default_rng(rng.randrange(1 << 30)).normal(size=image.shape)
        image = np.clip(image + noise * rng.uniform(2, 10), 0, 255).astype(np.uint8)
    if rng.random() < 0.12:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, rng.randint(25, 80)])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))
    return image
