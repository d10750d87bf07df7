"""Train the promptable segmenter on collages and scenes, with a simulated annotator's clicks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from segagent_rt.annotators.oracle import deepest
from segagent_rt.scenes.layout import sample_layout
from segagent_rt.scenes.paint import Bytes, paint
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.types import Mask
from segagent_rt_export.families.click_net.net import SIDE, SegmenterNet
from segagent_rt_training.collage import make_collage
from segagent_rt_training.mixed_precision import autocast
from segagent_rt_training.progress import StageProgress, one_cycle

TARGETS = 2
MOST_CLICKS = 6

ASTRAY = 0.1
"""Share of the examples whose first click selects another object, which the next ones are to undo.
"""


@dataclass(frozen=True, slots=True)
class SegmenterTrainingConfig:
    """What decides the weights."""

    seed: int = 0
    images: int = 90_000
    small_share: float = 0.65
    """Share of the images at half the resolution, first."""
    learning_rate: float = 2e-3
    scenes_share: float = 0.4


def train_segmenter(
    recipe: SegmenterTrainingConfig, folder: Path, *, init: SegmenterNet | None = None
) -> SegmenterNet:
    """Train to the end of the recipe, or continue where an earlier call stopped."""
    torch.manual_seed(recipe.seed)
    net = init or SegmenterNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    progress = StageProgress(folder, "segmenter", recipe.images)
    progress.resume(net=net, optimiser=optimiser)
    net.train()
    while not progress.done:
        small = progress.seen < recipe.small_share * recipe.images
        side, batch = (SIDE // 2, 16) if small else (SIDE, 8)
        factor = one_cycle(progress.seen, recipe.images, warm_up=1600)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * factor
        losses = _step(net, recipe, progress.seen, batch, side)
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        progress.advance(batch, {name: value.detach() for name, value in losses.items()})
        progress.save_now_and_then(net=net, optimiser=optimiser)
    progress.save(net=net, optimiser=optimiser)
    return net


def _step(
    net: SegmenterNet, recipe: SegmenterTrainingConfig, first: int, batch: int, side: int
) -> dict[str, Tensor]:
    rng = DeterministicRng("segmenter-step", recipe.seed, first)
    images, targets = _examples(recipe, first, batch, side)
    many = len(targets)
    clicks = rng.weighted(range(1, MOST_CLICKS + 1), (4, 5, 4, 3, 2, 2))
    points = np.full((many, MOST_CLICKS, 3), -1, np.float32)
    masks = np.zeros_like(targets)
    begins = [rng.chance(0.2) for _ in range(many)]
    astray = [i for i in range(many) if not begins[i] and rng.chance(ASTRAY)]
    for i in range(many):
        if begins[i]:
            masks[i] = spoil(targets[i], targets[i ^ 1], rng)
    prior = torch.from_numpy(masks).float()[:, None]
    totals: dict[str, Tensor] = {}
    with autocast():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        features, fine = net.encoder(pixels.contiguous(memory_format=torch.channels_last))
        features = features.repeat_interleave(TARGETS, 0)
        fine = fine.repeat_interleave(TARGETS, 0)
        for turn in range(clicks):
            aims = _aims(targets, masks, astray, turn)
            for i in range(many):
                point = sample_click(aims[i], masks[i], rng, first=turn == 0 and not begins[i])
                if point is not None:
                    points[i, turn] = point
            logits, iou = net.decoder(features, fine, torch.from_numpy(points.copy()), prior)
            logits = logits.float()
            prior = torch.sigmoid(logits.detach())
            masks = (logits.detach()[:, 0] > 0).numpy()
            weight = 1.0 if turn < 3 else 0.7
            for name, value in _losses(logits, iou.float(), masks, aims).items():
                totals[name] = totals.get(name, torch.zeros(())) + value * (weight / clicks)
    return totals


def _aims(targets: Mask, masks: Mask, astray: Sequence[int], turn: int) -> Mask:
    """What the click of a turn is to bring about: the target. Of those astray it first selects
    another one; a second click takes away what is wrong, and all others are as they should be."""
    aims = targets.copy()
    for i in astray:
        if turn == 0:
            aims[i] = targets[i ^ 1]
        elif turn == 1:
            aims[i] &= masks[i]
    return aims


def _losses(logits: Tensor, iou: Tensor, masks: Mask, targets: Mask) -> dict[str, Tensor]:
    truth = torch.from_numpy(targets).float()[:, None]
    chance = torch.sigmoid(logits)
    right = chance * truth + (1 - chance) * (1 - truth)
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = 4 * ((1 - right) * cross).mean()
    overlap = 2 * (chance * truth).sum((1, 2, 3)) + 1
    rng = (1 - overlap / (chance.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)).mean()
    actual = torch.from_numpy(_ious(masks, targets))
    rating = F.smooth_l1_loss(iou, actual, beta=0.1)
    loss = focal + rng + 0.5 * rating
    return {
        "loss": loss,
        "focal": focal,
        "dice": rng,
        "iou": actual.mean(),
        "rating": (iou - actual).abs().mean(),
    }


def _ious(masks: Mask, targets: Mask) -> npt.NDArray[np.float32]:
    both = (masks & targets).sum((1, 2))
    return np.asarray(both / np.maximum((masks | targets).sum((1, 2)), 1), np.float32)


def _examples(
    recipe: SegmenterTrainingConfig, first: int, batch: int, side: int
) -> tuple[Bytes, Mask]:
    """Images uint8 [batch, side, side, 3] and TARGETS masks for each, bool [batch * TARGETS, side,
    side]."""
    images: list[Bytes] = []
    masks: list[Mask] = []
    number = 0
    least = 120 * (side / SIDE) ** 2
    while len(images) < batch:
        rng = DeterministicRng("segmenter", recipe.seed, first, number)
        number += 1
        image, labels = example(rng, recipe.scenes_share, side)
        seen = [v for v in range(1, int(labels.max()) + 1) if (labels == v).sum() >= least]
        if seen:
            images.append(image)
            masks += [labels == rng.pick(seen) for _ in range(TARGETS)]
    return np.stack(images), np.stack(masks)


def example(rng: DeterministicRng, scenes_share: float, side: int) -> tuple[Bytes, Bytes]:
    """A picture and its labels, painted at the size asked for or, as often in use, at another and
    resized."""
    if not rng.chance(scenes_share):
        return make_collage(rng, side)
    larger = rng.chance(0.3)
    image, labels = paint(sample_layout(rng), rng, 2 * side if larger else side)
    if larger:
        image = np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
        labels = np.ascontiguousarray(labels[::2, ::2])
    return image, labels


def sample_click(
    target: Mask, mask: Mask, rng: DeterministicRng, *, first: bool
) -> tuple[float, float, float] | None:
    """A click such as an annotator or an imperfect model gives: (x, y) in 0..1 and label 1 or 0."""
    side = target.shape[0]
    missing, surplus = target & ~mask, mask & ~target
    m, mx, my = deepest(missing)
    s, sx, sy = deepest(surplus)
    if m == s == 0:
        return None
    positive = m > s
    x, y = (mx, my) if positive else (sx, sy)
    manner = rng.weighted(
        ("deepest", "anywhere", "near", "wrong"), (35, 35, 22, 8) if first else (42, 20, 33, 5)
    )
    if manner == "anywhere":
        rows, columns = np.nonzero(missing if positive else surplus)
        at = rng.integer(0, len(rows))
        x, y = int(columns[at]), int(rows[at])
    elif manner == "near":
        reach = side * 0.03
        x = min(side - 1, max(0, round(x + rng.normal(reach))))
        y = min(side - 1, max(0, round(y + rng.normal(reach))))
    elif manner == "wrong" and first:
        x, y = rng.integer(0, side), rng.integer(0, side)
    return (x + 0.5) / side, (y + 0.5) / side, float(positive)


def spoil(target: Mask, other: Mask, rng: DeterministicRng) -> Mask:
    """A mask that went wrong: a part missing, a neighbour covered, shifted, grown or worn."""
    manner = rng.pick(("part", "leak", "shift", "morph", "patch"))
    side = target.shape[0]
    if manner == "leak":
        return target | other
    if manner == "shift":
        step = (rng.integer(-side // 12, side // 12), rng.integer(-side // 12, side // 12))
        return np.asarray(np.roll(target, step, (0, 1)))
    if manner == "morph":
        size = rng.integer(2, max(3, side // 16))
        change = cv2.dilate if rng.chance(0.5) else cv2.erode
        return np.asarray(change(target.astype(np.uint8), np.ones((size, size), np.uint8))).astype(
            bool
        )
    rows, columns = np.nonzero(target)
    if manner == "part":
        a, b = rng.uniform(-1, 1), rng.uniform(-1, 1)
        along = columns * a + rows * b
        keep = along < np.quantile(along, rng.uniform(0.2, 0.9))
        out = np.zeros_like(target)
        out[rows[keep], columns[keep]] = True
        return out
    patch = np.zeros(target.shape, np.uint8)
    at = rng.integer(0, len(rows))
    cv2.circle(patch, (int(columns[at]), int(rows[at])), rng.integer(side // 32, side // 6), 1, -1)
    spot = patch.astype(np.bool_)
    return np.asarray(target ^ spot if rng.chance(0.5) else target | spot)
