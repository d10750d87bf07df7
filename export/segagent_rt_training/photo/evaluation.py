"""How good a segmenter's masks and its IoU estimates are, with an annotator who knows the truth."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.annotators.oracle import next_click
from segagent_rt.image import load_image
from segagent_rt.io import parse_json
from segagent_rt.scenes import make_scene
from segagent_rt.types import Box, Click, Mask, Prediction, RgbImage, Segmenter
from segagent_rt_training.photo.photos import IGNORED, load_photos

Floats = npt.NDArray[np.float64]

CLICKS = 7
SHOWN = (1, 3, 5, 7)
"""Numbers of clicks that tables show."""

SCENE_SIDE = 512
"""As `segagent-rt eval` draws its scenes."""

LEAST_SHARE = 0.01
"""Share of a validation photo that its object covers at least."""


@dataclass(frozen=True, slots=True)
class HeldOutTarget:
    """An object in an image: its mask and the pixels that count neither way, bool [H, W]."""

    name: str
    image: RgbImage
    mask: Mask
    ignored: Mask


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """What a segmenter made of targets.

    `ious` and `scores` [targets, CLICKS] are the true and the estimated IoU after each click;
    `box_ious` [targets] is the true IoU from the box of the true mask, without a click.
    """

    names: tuple[str, ...]
    ious: Floats
    scores: Floats
    box_ious: Floats

    def figures(self) -> dict[str, Any]:
        """Means over the targets, and each target's own, rounded."""
        per_photo = {
            name: [round(float(row[n - 1]), 3) for n in SHOWN]
            for name, row in zip(self.names, self.ious, strict=True)
        }
        return {
            "targets": len(self.names),
            "miou_by_click": [round(float(v), 4) for v in self.ious.mean(0)],
            "box_miou": round(float(self.box_ious.mean()), 4),
            "iou_estimate_error": round(float(np.abs(self.ious - self.scores).mean()), 4),
            "iou_at_1_3_5_7_by_photo": per_photo,
        }


def evaluate(
    segmenter: Segmenter,
    targets: Sequence[HeldOutTarget],
    report_progress: Callable[[int], None] | None = None,
) -> HeldOutResult:
    """Click and box every target as the oracle annotator does; `report_progress` hears how many are
    done."""
    ious, scores, boxed = [], [], []
    for number, target in enumerate(targets, 1):
        embedding = segmenter.encode(target.image)
        row = _clicked(segmenter, embedding, target)
        ious.append([iou for iou, _ in row])
        scores.append([score for _, score in row])
        x, y, width, height = cv2.boundingRect(target.mask.view(np.uint8))
        box = Box(x, y, x + width - 1, y + height - 1)
        boxed.append(counted_iou(segmenter.decode(embedding, [], box=box).mask(), target))
        if report_progress is not None:
            report_progress(number)
    names = tuple(target.name for target in targets)
    return HeldOutResult(names, np.array(ious), np.array(scores), np.array(boxed))


def _clicked(
    segmenter: Segmenter, embedding: Any, target: HeldOutTarget
) -> list[tuple[float, float]]:
    """IoU and its estimate after each click; a mask without errors stays as it is."""
    prediction: Prediction | None = None
    mask, clicks, found = np.zeros_like(target.mask), list[Click](), list[tuple[float, float]]()
    for _ in range(CLICKS):
        click = next_click(target.mask, mask, ignored=target.ignored)
        if click is not None:
            clicks.append(click)
            prediction = segmenter.decode(embedding, clicks, prior=prediction)
            mask = prediction.mask()
        score = 0.0 if prediction is None or prediction.score is None else prediction.score
        found.append((counted_iou(mask, target), score))
    return found


def counted_iou(mask: Mask, target: HeldOutTarget) -> float:
    """IoU of a mask over the pixels that count."""
    counted = ~target.ignored
    both, either = mask & target.mask & counted, (mask | target.mask) & counted
    return float(both.sum() / max(1, either.sum()))


def evaluation_photos(folder: Path) -> list[HeldOutTarget]:
    """The photos of a folder whose `index.json` is a list with one mask each."""
    found = []
    for entry in parse_json((folder / "index.json").read_bytes()):
        image = load_image(folder / entry["image"])
        mask = load_image(folder / entry["mask"])[..., 0] > 127
        found.append(HeldOutTarget(entry["name"], image, mask, np.zeros_like(mask)))
    return found


def validation_photos(folder: Path, *, share_alike: bool = True) -> list[HeldOutTarget]:
    """One object, always the same, of each validation photo that has a large enough one."""
    rng, found = random.Random(0), []
    photos = load_photos(folder, "val", share_alike=share_alike, least_share=LEAST_SHARE)
    for photo in photos:
        labels, wanted = photo.content.labels, rng.choice(photo.content.targets)
        name = f"{photo.entry['name']}/{wanted}"
        found.append(HeldOutTarget(name, photo.content.image, labels == wanted, labels == IGNORED))
    return found


def scenes(count: int, seed: int = 1000) -> list[HeldOutTarget]:
    """The first object that each held-out scene has an expression for."""
    found = []
    for number in range(seed, seed + count):
        scene = make_scene(number, SCENE_SIDE)
        mask = scene.mask(scene.expressions[0].target)
        found.append(HeldOutTarget(f"scene {number}", scene.image, mask, np.zeros_like(mask)))
    return found


def calibrate(outcome: HeldOutResult) -> tuple[float, float]:
    """Scale and offset of the IoU estimate's logit that minimise its mean absolute error."""
    scores = outcome.scores.clip(1e-3, 1 - 1e-3)
    logits = np.log(scores / (1 - scores))

    def error(scale: float, offset: float) -> float:
        return float(np.abs(1 / (1 + np.exp(-scale * logits - offset)) - outcome.ious).mean())

    grid = [(s, o) for s in np.linspace(0.3, 2.0, 35) for o in np.linspace(-2, 2, 81)]
    scale, offset = min(grid, key=lambda pair: error(*pair))
    return round(float(scale), 3), round(float(offset), 3)
