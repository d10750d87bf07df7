"""The gate's states from a folder of photos, which nobody has described or outlined.

Of the pictures every other one is judged, the rest are for the ranges of values; where that would
leave nothing, the same serve both. So that large folders take no longer, `MOST` are used, spread
over the names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent_rt.data.folders import PICTURES
from segagent_rt.errors import ImageUnreadable, InputError
from segagent_rt.image import decode_image
from segagent_rt.testing import DiscSegmenter
from segagent_rt.types import Click, RgbImage, Segmenter
from segagent_rt_export.gate.inputs import CLICKS, ClickedImage, GateState

MOST = 32
"""Pictures of a folder that are used."""

LONGEST = 1024
"""Pixels of the longer side; larger pictures are shrunk to it."""

LARGEST_FILE = 100_000_000
"""Bytes."""

PLACES = ((0.5, 0.5), (0.25, 0.3), (0.75, 0.7), (0.7, 0.25), (0.3, 0.75))
"""Where photos are clicked, as shares of width and height."""

OBJECTS = 3
"""Objects that are drawn on each photo; each begins at another of the places."""

EXPRESSIONS = (
    "the object in the middle",
    "the largest thing",
    "the person on the left",
    "the thing on the right",
    "what lies in the foreground",
)
"""What MLLMs are asked for, one after another: it need not be there, both sides are asked alike."""


@dataclass(frozen=True, slots=True)
class GatePhoto:
    """A picture, uint8 [H, W, 3], and the name of its file."""

    name: str
    image: RgbImage


@dataclass(frozen=True, slots=True)
class PhotoInputs:
    """Pictures of a folder, and a hash of their files' contents, in the order of their names."""

    pictures: tuple[GatePhoto, ...]
    sha256: str

    @property
    def judged(self) -> tuple[GatePhoto, ...]:
        """Every other picture, beginning with the first."""
        return self.pictures[::2]

    def measured(self) -> Iterator[RgbImage]:
        """The others; of a single picture, that one."""
        return (photo.image for photo in self.pictures[1::2] or self.pictures)

    def drawn(self, reference: Segmenter) -> Iterator[ClickedImage]:
        """Objects begin with a click at a place; at the places after that the opposite is asked for
        of what the reference has drawn there. Its last mask is the truth."""
        for photo in self.judged:
            embedding = reference.encode(photo.image)
            for start in range(OBJECTS):
                places = [_pixel(photo, start + number) for number in range(CLICKS)]
                clicks, prediction = [Click(*places[0], True)], None
                for x, y in places[1:]:
                    prediction = reference.decode(embedding, clicks, prior=prediction)
                    clicks.append(Click(x, y, not prediction.mask()[y, x]))
                prediction = reference.decode(embedding, clicks, prior=prediction)
                yield ClickedImage(photo.image, tuple(clicks), prediction.mask())

    def states(self, segmenter: Segmenter | None) -> Iterator[GateState]:
        """Three of each photo: no mask, and those that a click at each of two places draws; discs
        if there is no segmenter."""
        for number, photo in enumerate(self.judged):
            expression = EXPRESSIONS[number % len(EXPRESSIONS)]
            disc: Segmenter = DiscSegmenter(max(1, min(photo.image.shape[:2]) // 8))
            brush = segmenter or disc
            embedding = brush.encode(photo.image)
            yield GateState(f"{photo.name}, no mask", photo.image, expression, None)
            for at, place in enumerate(PLACES[:2], 1):
                drawn = brush.decode(embedding, [Click(*_pixel(photo, at - 1), True)])
                name = f"{photo.name}, mask at {place[0]:g}, {place[1]:g}"
                yield GateState(name, photo.image, expression, drawn)

    def record(self) -> dict[str, Any]:
        """For the manifest: how many were used, and the hash."""
        return {
            "pictures": "photos",
            "judged": len(self.judged),
            "measured": len(list(self.measured())),
            "sha256": self.sha256,
        }


def open_photo_inputs(folder: Path) -> PhotoInputs:
    """Read the pictures that lie in a folder itself.

    Raises:
        InputError: no such folder, or no pictures in it.
        ImageUnreadable: one of those that are used is damaged or too large.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}", hint="--calibration takes a folder of photos"
        )
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
    if not found:
        raise InputError(
            f"{folder} holds no pictures", hint=f"{', '.join(PICTURES)} are read, not subfolders"
        )
    digest, photos = hashlib.sha256(), list[GatePhoto]()
    for at in sorted({round(at) for at in np.linspace(0, len(found) - 1, min(len(found), MOST))}):
        content = _content(found[at])
        digest.update(hashlib.sha256(content).digest())
        photos.append(GatePhoto(found[at].name, _bounded(decode_image(content, str(found[at])))))
    return PhotoInputs(tuple(photos), digest.hexdigest())


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ImageUnreadable(f"{path} has more than {LARGEST_FILE // 1_000_000} MB")
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(f"{path} cannot be read: {error.strerror}") from error


def _bounded(image: RgbImage) -> RgbImage:
    height, width = image.shape[:2]
    shrunk = LONGEST / max(height, width)
    if shrunk >= 1:
        return image
    size = max(1, round(width * shrunk)), max(1, round(height * shrunk))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _pixel(photo: GatePhoto, number: int) -> tuple[int, int]:
    """x and y of a place."""
    height, width = photo.image.shape[:2]
    across, down = PLACES[number % len(PLACES)]
    return int(across * width), int(down * height)
