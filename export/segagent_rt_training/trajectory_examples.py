"""Training examples from trajectories: the mask that was shown, and the click that was right.

What SegAgent itself learns from (section 4.2 of the paper, and StaR+ in 4.3). Pictures may show
anything: nothing has to be known of them but the object's mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segagent_rt.data.canvas_cache import check_size
from segagent_rt.data.record import RunLengths
from segagent_rt.data.sources import Places, open_trajectories
from segagent_rt.data.trajectories import Demonstration
from segagent_rt.errors import DataInvalid
from segagent_rt.image import load_image, overlay, resize_mask, squash
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.types import Click
from segagent_rt_export.families.demo_mllm.net import SIDE
from segagent_rt_training.example_packing import LabelledExpression
from segagent_rt_training.states import TrainingState


@dataclass(frozen=True, slots=True)
class TrajectoryExample:
    """One click of a trajectory; masks and click in pixels of the picture."""

    picture: Path
    expressions: tuple[str, ...]
    target: RunLengths
    shown: RunLengths
    iou: float
    click: Click

    def state(self) -> TrainingState:
        """What the MLLM is shown, at SIDE x SIDE; the only object is the one that is meant.

        Raises:
            ImageUnreadable: the picture is not there, or cannot be read.
            DataInvalid: it is not of its mask's size.
        """
        image = load_image(self.picture)
        check_size(image.shape, self.target.size, self.picture)
        image, small = squash(image, SIDE), (SIDE, SIDE)
        mask = resize_mask(self.shown.mask(), small)
        target = resize_mask(self.target.mask(), small).astype(np.uint8)
        painted = overlay(image, mask) if mask.any() else image
        return TrainingState(painted, target, (), [True], mask, 0)

    def asked(self, rng: DeterministicRng) -> LabelledExpression:
        """One of the expressions, with the click and the rating that are wanted."""
        size, words = self.target.size, rng.pick(self.expressions)
        return LabelledExpression(words, 0, self.click, size, self.iou)


def examples_of(demonstrations: Sequence[Demonstration]) -> Iterator[TrajectoryExample]:
    """One for each click; objects too small to be seen at SIDE x SIDE teach nothing."""
    for each in demonstrations:
        sample = each.sample
        if not resize_mask(sample.mask.mask(), (SIDE, SIDE)).any():
            continue
        for (shown, value), made in zip(each.shown, each.clicks, strict=True):
            yield TrajectoryExample(
                sample.image, sample.expressions, sample.mask, shown, value, made.click
            )


def read_trajectory_examples(files: Sequence[Path], images: Path | None) -> list[TrajectoryExample]:
    """The examples of files of trajectories; pictures lie in `images`, or beside their file.

    Raises:
        DataInvalid: a file holds no trajectories, all together hold no click, or a picture is
            missing.
    """
    places = Places(images=images)
    found = [each for file in files for each in open_trajectories(str(file), places)]
    examples = list(examples_of(found))
    missing = next((e.picture for e in examples if not e.picture.is_file()), None)
    if missing is not None:
        raise DataInvalid(
            f"the picture {missing} is not there", hint="name the folder of pictures with --images"
        )
    if not examples:
        raise DataInvalid("the trajectories hold no click to learn from")
    return examples
