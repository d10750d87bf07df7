"""From an expression to clicks and masks: four ways to click, corrections, and a rating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segagent_rt.types import Box, Click, Prediction, Segmenter
from segagent_rt_training.photo.evaluation import HeldOutTarget, counted_iou
from segagent_rt_training.photo.photos import IGNORED
from segagent_rt_training.words.expressions import CHOICES, EverydayExpression
from segagent_rt_training.words.features import CELLS, SIDE, STRIDE, enlarged
from segagent_rt_training.words.material import AskedPhoto
from segagent_rt_training.words.net import WordsNet, batch_of

Rated = TypeVar("Rated")

Method: TypeAlias = Literal["classes", "nouns", "selector", "rule"]
"""Where to click: the maximum of ImageNet's class logits; of the trained noun map; where there is
something to choose, of the trained selector, or a rule for the segmenter's masks at the peaks of
the noun map."""

RESTARTS = 3
"""First clicks that the loop may try."""

SUPPRESSED = 2
"""Cells round a peak that hold no other one."""

MOST_OBJECTS, LEAST_PEAK, SAME = 8, 0.35, 0.5
"""The rule looks at this many peaks, of at least this share of the highest; masks that overlap more
than `SAME` are one object."""

REGION = 0.4
"""Cells round a click belong to its object if they have at least this share of its probability."""

NUMBERS = 10
"""What a rating is made of."""

WRONG_CELLS = 3.0
"""A correction is clicked where at least this much of a map, in cells, disagrees with the mask."""


@dataclass(frozen=True, slots=True)
class ClickedMask:
    """Clicks and perhaps a box, the mask that the segmenter made of them, and the cells that it
    covers [32, 32]."""

    clicks: tuple[Click, ...]
    box: Box | None
    prediction: Prediction
    cover: Tensor

    @property
    def score(self) -> float:
        """The segmenter's own estimate of the IoU."""
        return self.prediction.score or 0.0


class PhotoLook:
    """A photo as the nets and the segmenter see it; both encode it once.

    Args:
        asked: the photo.
        nets: nets of one recipe with several seeds; their logits are averaged.
        segmenter: what makes masks of clicks.
    """

    def __init__(self, asked: AskedPhoto, nets: Sequence[WordsNet], segmenter: Segmenter) -> None:
        self.asked, self._nets, self._segmenter = asked, nets, segmenter
        self._batch = batch_of([asked.view])
        self._masks: dict[tuple[tuple[Click, ...], Box | None], ClickedMask] = {}
        self._heat: dict[tuple[int, int], Tensor] = {}
        with torch.no_grad():
            self._seen: list[tuple[Tensor, Tensor, Tensor]] = [n.nouns(self._batch) for n in nets]
        self._maps, presence = (torch.stack([s[at] for s in self._seen]).mean(0) for at in (0, 1))
        self.presence = presence[0]
        self.class_evidence = self._batch.evidence[0].amax((1, 2))

    @cached_property
    def _embedding(self) -> Any:
        return self._segmenter.encode(self.asked.photo.content.image)

    @torch.no_grad()
    def heat(self, said: EverydayExpression, method: Method) -> Tensor:
        """Logits of the first click, [32, 32]; the rule has those of the noun map."""
        inside = self._batch.places[0, 2] > 0
        if method == "classes":
            found = enlarged(self._batch.evidence[0, said.noun])
            return torch.where(inside, found, torch.full_like(found, -30.0))
        if method != "selector" or not said.choice:
            return self._maps[0, said.noun]
        key = said.noun, said.choice
        if key not in self._heat:
            noun, choice = torch.tensor([said.noun]), torch.tensor([said.choice])
            heats = [
                net.selector(maps, shared, self._batch, noun, choice)[0]
                for net, (maps, _, shared) in zip(self._nets, self._seen, strict=True)
            ]
            self._heat[key] = torch.stack(heats).mean(0)
        return self._heat[key]

    def noun_chance(self, said: EverydayExpression) -> Tensor:
        """Probability of the noun at each cell, [32, 32]."""
        return torch.sigmoid(self._maps[0, said.noun])

    @property
    def cell_size(self) -> float:
        """Pixels of the photo along a cell."""
        height, width = self.asked.photo.content.labels.shape
        return float(STRIDE / SIDE * max(height, width))

    def click_at(self, cell: tuple[int, int], positive: bool = True) -> Click:
        """The pixel at the centre of a cell (row, column)."""
        height, width = self.asked.photo.content.labels.shape
        x, y = (cell[1] + 0.5) * self.cell_size, (cell[0] + 0.5) * self.cell_size
        return Click(min(int(x), width - 1), min(int(y), height - 1), positive)

    def cell_of(self, click: Click) -> tuple[int, int]:
        """The cell (row, column) that holds a click."""
        row, column = int(click.y / self.cell_size), int(click.x / self.cell_size)
        return min(row, CELLS - 1), min(column, CELLS - 1)

    def box_of(self, cells: Tensor) -> Box:
        """The pixels that cells, bool [32, 32] with at least one true, reach to."""
        height, width = self.asked.photo.content.labels.shape
        rows, columns = (torch.nonzero(cells.any(axis))[:, 0] for axis in (1, 0))
        left, top = (int(int(each[0]) * self.cell_size) for each in (columns, rows))
        right, bottom = ((int(each[-1]) + 1) * self.cell_size for each in (columns, rows))
        return Box(left, top, min(int(right), width - 1), min(int(bottom), height - 1))

    def segment(
        self,
        clicks: tuple[Click, ...],
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> ClickedMask:
        """The segmenter's mask for clicks, or for a box with clicks."""
        key = clicks, box
        if key not in self._masks:
            prediction = self._segmenter.decode(self._embedding, list(clicks), prior=prior, box=box)
            self._masks[key] = ClickedMask(clicks, box, prediction, self._cover(prediction))
        return self._masks[key]

    def _cover(self, prediction: Prediction) -> Tensor:
        height, width = self.asked.photo.content.labels.shape
        scale = CELLS * 4 / max(height, width)
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        square = torch.zeros(1, 1, CELLS * 4, CELLS * 4)
        square[0, 0, :h, :w] = torch.from_numpy(prediction.mask((h, w)).astype(np.float32))
        return F.avg_pool2d(square, 4)[0, 0]

    def iou(self, found: ClickedMask, said: EverydayExpression) -> float:
        """True IoU with the object that the expression names."""
        labels = self.asked.photo.content.labels
        target = HeldOutTarget("", labels, labels == said.target, labels == IGNORED)
        return counted_iou(found.prediction.mask(), target)

    def hits(self, click: Click, said: EverydayExpression) -> bool:
        """Whether a click lies on the object that the expression names."""
        return bool(self.asked.photo.content.labels[click.y, click.x] == said.target)


def peaks(heat: Tensor, count: int, least: float = 0.0) -> list[tuple[int, int]]:
    """Up to `count` cells (row, column) with the highest values of a map [32, 32] of
    non-negative numbers, smoothed, apart from each other."""
    smooth = 0.5 * heat + 0.5 * F.avg_pool2d(heat[None, None], 3, 1, 1)[0, 0]
    found, highest = list[tuple[int, int]](), float(smooth.max())
    for _ in range(count):
        row, column = divmod(int(smooth.argmax()), smooth.shape[1])
        if found and float(smooth[row, column]) < max(least * highest, 1e-6):
            break
        found.append((row, column))
        window = slice(max(0, row - SUPPRESSED), row + SUPPRESSED + 1)
        smooth[window, max(0, column - SUPPRESSED) : column + SUPPRESSED + 1] = 0.0
    return found


def first_clicks(
    look: PhotoLook, said: EverydayExpression, method: Method, count: int = 1
) -> list[Click]:
    """The first click, and up to `count` - 1 others that could be it."""
    if method == "rule" and said.choice:
        return [mask.clicks[0] for mask in _by_rule(look, said)[:count]]
    chance = torch.softmax(look.heat(said, method).flatten(), 0).view(CELLS, CELLS)
    return [look.click_at(cell) for cell in peaks(chance, count)]


def _by_rule(look: PhotoLook, said: EverydayExpression) -> list[ClickedMask]:
    """Masks at the peaks of the noun map; the one that the choice names comes first."""
    found: list[ClickedMask] = []
    chance = look.noun_chance(said)
    for cell in peaks(chance, MOST_OBJECTS, LEAST_PEAK):
        mask = look.segment((look.click_at(cell),))
        overlaps = [
            float(torch.minimum(mask.cover, o.cover).sum())
            / max(float(torch.maximum(mask.cover, o.cover).sum()), 1e-3)
            for o in found
        ]
        if max(overlaps, default=0.0) < SAME:
            found.append(mask)
    words = CHOICES[said.choice].split()
    rank = {"second": 1, "third": 2}.get(words[0], 0)
    order = sorted(found, key=lambda mask: _measure(mask, words[-1]))
    if words[-1] == "middle":
        rank = len(order) // 2
    chosen = order[min(rank, len(order) - 1)]
    return [chosen, *(mask for mask in found if mask is not chosen)]


def _measure(mask: ClickedMask, word: str) -> float:
    """What masks are sorted by."""
    total = max(float(mask.cover.sum()), 1e-3)
    if word in ("biggest", "smallest"):
        return -total if word == "biggest" else total
    steps = torch.arange(CELLS, dtype=torch.float32)
    along = mask.cover.sum(0 if word in ("left", "right", "middle") else 1)
    place = float((along * steps).sum()) / total
    return -place if word in ("right", "bottom") else place


def corrections(look: PhotoLook, said: EverydayExpression, first: ClickedMask) -> list[ClickedMask]:
    """The first click with a box round what the noun map has there; and the first mask with one
    more click: where the noun map has more, and where it has less."""
    chance, at = look.noun_chance(said), look.cell_of(first.clicks[0])
    level = max(float(chance[at]), 0.2)
    steps = torch.arange(CELLS, dtype=torch.float32)
    far = ((steps[:, None] - at[0]) ** 2 + (steps[None] - at[1]) ** 2).sqrt()
    missing = (chance / level).clamp(max=1) * (1 - first.cover) * torch.exp(-far / 6)
    surplus = first.cover * (1 - chance / level).clamp(min=0)
    found = [look.segment(first.clicks, box=look.box_of(region_at(chance, at)))]
    for wrong, positive in ((missing, True), (surplus, False)):
        if float(wrong.sum()) >= WRONG_CELLS:
            (cell,) = peaks(wrong, 1)
            clicks = (*first.clicks, look.click_at(cell, positive))
            if clicks[-1] != clicks[0]:
                found.append(look.segment(clicks, first.prediction))
    return found


def region_at(chance: Tensor, at: tuple[int, int]) -> Tensor:
    """The connected cells round `at` whose probability is not much lower: bool [32, 32]."""
    high = (chance >= REGION * chance[at]).numpy().astype(np.uint8)
    _, regions = cv2.connectedComponents(high, connectivity=4)
    return torch.from_numpy(regions == regions[at])


class MaskRater(nn.Module):
    """Numbers about a mask and an expression to the IoU that the mask probably has."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(NUMBERS), nn.Linear(NUMBERS, 24), nn.ReLU(), nn.Linear(24, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(x))[:, 0]

    @torch.no_grad()
    def rate(self, numbers: Sequence[float]) -> float:
        """The rating of one mask."""
        return float(self(torch.tensor([list(numbers)]))[0])


def mask_numbers(look: PhotoLook, said: EverydayExpression, found: ClickedMask) -> list[float]:
    """What a rating is made of: plain numbers."""
    chance = look.noun_chance(said)
    heat = torch.softmax(look.heat(said, "selector").flatten(), 0).view(CELLS, CELLS)
    cover, area = found.cover, float(found.cover.sum()) + 1e-3
    inside = float((chance * cover).sum())
    return [
        math.log((found.score + 1e-3) / (1.001 - found.score)),
        float((heat * cover).sum()),
        float((heat * cover).amax() / heat.max()),
        inside / area,
        inside / (float(chance.sum()) + 1e-3),
        float((chance * cover).amax()),
        float(look.presence[said.noun]),
        math.log(area),
        float(len(found.clicks)),
        float(found.box is not None),
    ]


def masks_of(look: PhotoLook, said: EverydayExpression, method: Method) -> list[ClickedMask]:
    """The masks that the loop considers, beginning with that of the first click."""
    masks = [look.segment((click,)) for click in first_clicks(look, said, method, RESTARTS)]
    return masks + corrections(look, said, masks[0])


def considered_masks(
    look: PhotoLook, said: EverydayExpression, method: Method, rater: MaskRater
) -> list[tuple[float, ClickedMask]]:
    """The masks that the loop considers, with their ratings."""
    masks = masks_of(look, said, method)
    return [(rater.rate(mask_numbers(look, said, mask)), mask) for mask in masks]


def returned_mask(rated: Sequence[tuple[float, Rated]], gain: float) -> tuple[float, Rated]:
    """The best rated mask if it is rated better than the first one by more than `gain`, else the
    first one; masks come as (rating, anything)."""
    best = max(rated, key=lambda pair: pair[0])
    return best if best[0] > rated[0][0] + gain else rated[0]


def fit_rater(rows: Sequence[tuple[Sequence[float], float]], seed: int, steps: int) -> MaskRater:
    """Fit a rater to the numbers and true IoUs of masks."""
    rater = MaskRater(seed)
    numbers = torch.tensor([list(row) for row, _ in rows])
    truth = torch.tensor([iou for _, iou in rows])
    optimiser = torch.optim.AdamW(rater.parameters(), 1e-2, weight_decay=1e-2)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = torch.randint(len(rows), (128,), generator=draw)
        loss = F.smooth_l1_loss(rater(numbers[some]), truth[some], beta=0.1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return rater.eval()
