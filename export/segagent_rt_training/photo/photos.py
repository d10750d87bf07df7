"""The photos that the segmenter is trained on and measured on, with their label maps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt_export.errors import CheckpointInvalid

Bytes: TypeAlias = npt.NDArray[np.uint8]
Split: TypeAlias = Literal["train", "val"]

IGNORED = 255
"""The label of pixels that belong to no object for sure; they count neither way."""

LEAST_SHARE = 0.004
"""Share of the photo that an object must cover to be a target."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image uint8 [H, W, 3] RGB, its labels uint8 [H, W] (0 background, `IGNORED` ignored), and
    the labels that may be targets."""

    image: Bytes
    labels: Bytes
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainingPhoto:
    """A labelled photo and its entry in the index, with licence and attribution."""

    content: LabelledImage
    entry: Mapping[str, Any]

    @property
    def source(self) -> str:
        """The data set, as the photo's name begins."""
        return str(self.entry["name"]).split("_")[0]

    @property
    def category(self) -> dict[int, str]:
        """The category of each label."""
        return {item["id"]: item["category"] for item in self.entry["instances"]}


def read_index(folder: Path, split: Split, *, share_alike: bool = False) -> list[dict[str, Any]]:
    """The entries of a split; those under a ShareAlike licence only if asked for.

    Raises:
        CheckpointInvalid: the folder holds no index of photos.
    """
    try:
        entries = json.loads((folder / "index.json").read_text("utf-8"))["photos"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointInvalid(f"{folder} holds no index of training photos: {error}") from error
    return [
        entry
        for entry in entries
        if entry["split"] == split and (share_alike or "-SA" not in entry["licence"])
    ]


def load_photos(
    folder: Path, split: Split, *, share_alike: bool = False, least_share: float = LEAST_SHARE
) -> list[TrainingPhoto]:
    """Read the photos of a split that have a target into memory."""
    found = []
    for entry in read_index(folder, split, share_alike=share_alike):
        large = [i["id"] for i in entry["instances"] if i["area_share"] >= least_share]
        if large:
            image = cv2.imread(str(folder / entry["image"]), cv2.IMREAD_COLOR)
            labels = cv2.imread(str(folder / entry["mask"]), cv2.IMREAD_UNCHANGED)
            if image is None or labels is None:
                raise CheckpointInvalid(f"{folder / entry['image']} or its labels cannot be read")
            rgb = np.ascontiguousarray(image[..., ::-1], np.uint8)
            found.append(
                TrainingPhoto(LabelledImage(rgb, np.asarray(labels, np.uint8), tuple(large)), entry)
            )
    return found
