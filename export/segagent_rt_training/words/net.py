"""Small nets over frozen features: where each noun is, and which of several objects is meant."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segagent_rt_export.families.photo_net.efficientnet import (
    TAPPED,
    EfficientNetLite0,
    load_imagenet_weights,
)
from segagent_rt_training.words.expressions import CHOICES, EverydayExpression
from segagent_rt_training.words.features import CELLS, FEATURES, PhotoView, enlarged, place_maps
from segagent_rt_training.words.vocabulary import INDEX, NOUNS

WIDTH, NARROW = 64, 32
"""Channels of the noun net and of the selector."""

SHARED = 16
"""Channels of the noun net that the selector reads."""

OUTSIDE = -30.0
"""Logit of a cell beside the photo."""


class ViewBatch(NamedTuple):
    """Views side by side; fields as of `PhotoView`, and of every noun where it is, float
    [B, N, 32, 32], and where that is known, float [B, N, 32, 32]; `asked` says of which nouns
    presence is known, bool [B, N]."""

    x16: Tensor
    x32: Tensor
    evidence: Tensor
    overall: Tensor
    places: Tensor
    truth: Tensor
    counted: Tensor
    asked: Tensor


def batch_of(views: Sequence[PhotoView]) -> ViewBatch:
    """Stack views, and draw where their nouns are."""
    truth = torch.zeros(len(views), len(NOUNS), CELLS, CELLS)
    asked = torch.zeros(len(views), len(NOUNS), dtype=torch.bool)
    for at, view in enumerate(views):
        for item, cover in zip(view.objects, view.cover, strict=True):
            if item.category in INDEX:
                place = truth[at, INDEX[item.category]]
                torch.maximum(place, cover.float() / 255, out=place)
        asked[at, [INDEX[name] for name in sorted(view.labelled)]] = True
    places = place_maps(torch.tensor([view.extent for view in views]))
    known = torch.stack([view.known for view in views])[:, None]
    counted = (asked[..., None, None] | known).float() * places[:, 2:3]
    x16, x32, evidence, overall = (
        torch.stack([getattr(view, name) for view in views]).float()
        for name in ("x16", "x32", "evidence", "overall")
    )
    return ViewBatch(x16, x32, evidence, overall, places, truth, counted, asked)


def late_stages() -> nn.Sequential:
    """The encoder's stages from stride 16 to stride 32, with ImageNet weights; their depthwise
    convolutions stay frozen."""
    encoder = EfficientNetLite0()
    load_imagenet_weights(encoder)
    encoder.freeze(0)
    return nn.Sequential(*encoder.stages[TAPPED[-2] + 1 :])


class NounNet(nn.Module):
    """Frozen features to logits of every noun at every cell, and of its presence.

    The evidence of ImageNet's classes is where it begins; everything learned is added to it.

    Args:
        trained_stages: whether the encoder's stages at stride 32 are trained too, from their
            ImageNet weights.
    """

    def __init__(self, *, trained_stages: bool = False) -> None:
        super().__init__()
        self.late = late_stages() if trained_stages else None
        self.enter16, self.enter32 = (nn.Conv2d(width, WIDTH, 1) for width in FEATURES)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.context = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()
        )
        self.drop = nn.Dropout2d(0.2)
        self.score, self.shared = nn.Conv2d(WIDTH, len(NOUNS), 1), nn.Conv2d(WIDTH, SHARED, 1)
        self.gain = nn.Parameter(torch.tensor([0.8, 0.5, 0.5]))
        self.offset = nn.Parameter(torch.zeros(len(NOUNS)))
        self.pooled = nn.Linear(2 * WIDTH, len(NOUNS))
        for layer in (self.score, self.pooled):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, batch: ViewBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, N, 32, 32] and [B, N], and features [B, 16, 32, 32] for the selector."""
        inside = batch.places[:, 2:3]
        x32 = batch.x32 if self.late is None else self.late(batch.x16)
        x = F.relu(self.norm(self.enter16(batch.x16) + enlarged(self.enter32(x32))))
        x = self.drop(x + self.context(x)) * inside
        maps = self.gain[0] * enlarged(batch.evidence) + self.score(x)
        maps = torch.where(inside > 0, maps, torch.full_like(maps, OUTSIDE))
        pooled = torch.cat([x.amax((2, 3)), x.sum((2, 3)) / inside.sum((2, 3))], 1)
        presence = self.gain[1] * maps.amax((2, 3)) + self.gain[2] * batch.overall
        return maps, presence + self.pooled(pooled) + self.offset, self.shared(x)


class _Conditioned(nn.Module):
    """A residual convolution and attention at stride 32, both steered by the choice."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(NARROW, NARROW, 3, padding=dilation, dilation=dilation)
        self.steer = nn.Embedding(len(CHOICES), 4 * NARROW)
        self.norm, self.query = nn.GroupNorm(4, NARROW), nn.Linear(NARROW, NARROW)
        self.key_value, self.out = nn.Linear(NARROW, 2 * NARROW), nn.Linear(NARROW, NARROW)
        nn.init.normal_(self.steer.weight, std=0.3)

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        gain, shift, gain2, shift2 = self.steer(choice)[..., None, None].chunk(4, 1)
        x = x + F.relu(self.conv(x) * (1 + gain) + shift)
        small = self.norm(x) * (1 + gain2) + shift2
        tokens = small.flatten(2).transpose(1, 2)  # [B, 256, 32]
        key, value = self.key_value(tokens).chunk(2, 2)
        query, key, value = (
            t.unflatten(2, (2, -1)).transpose(1, 2) for t in (self.query(tokens), key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2)
        return x + F.relu(mixed.unflatten(2, x.shape[2:]))


class Selector(nn.Module):
    """A noun's map and a choice among its objects to logits of the first click, [B, 32, 32].

    What is added to the noun's map is computed at stride 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(SHARED + 3 + 5, NARROW, 3, padding=1)
        self.blocks = nn.ModuleList([_Conditioned(1), _Conditioned(2), _Conditioned(1)])
        self.leave, self.gain = nn.Conv2d(NARROW, 1, 3, padding=1), nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.leave.weight)

    def forward(
        self, maps: Tensor, shared: Tensor, batch: ViewBatch, noun: Tensor, choice: Tensor
    ) -> Tensor:
        at = torch.arange(len(noun))
        own = maps[at, noun][:, None]
        evidence = enlarged(batch.evidence[at, noun][:, None])
        seen = [shared, own.clamp(-8, 8) / 4, torch.sigmoid(own), evidence / 4, batch.places]
        x = F.relu(self.enter(F.avg_pool2d(torch.cat(seen, 1), 2)))
        for block in self.blocks:
            x = block(x, choice)
        inside = batch.places[:, 2] > 0
        heat = self.gain * own[:, 0] + enlarged(self.leave(x))[:, 0]
        return torch.where(inside, heat, torch.full_like(heat, OUTSIDE))


class WordsNet(nn.Module):
    """Both nets; training and measuring go through it."""

    def __init__(self, *, trained_stages: bool = False) -> None:
        super().__init__()
        self.nouns, self.selector = NounNet(trained_stages=trained_stages), Selector()

    def losses(
        self,
        batch: ViewBatch,
        rows: Sequence[int],
        expressions: Sequence[EverydayExpression],
        covers: Tensor,
    ) -> dict[str, Tensor]:
        """What is minimised: maps, presence, and first clicks of expressions.

        Args:
            batch: B views.
            rows: the view of each of E expressions.
            expressions: what is said.
            covers: how far the target fills each cell, float [E, 32, 32].
        """
        maps, presence, shared = self.nouns(batch)
        losses = {
            "maps": map_loss(maps, batch.truth, batch.counted),
            "presence": presence_loss(presence, batch.truth, batch.asked),
            "spread": spread_loss(maps, batch.truth, batch.asked),
        }
        if rows:
            at = list(rows)
            some = ViewBatch(*(field[at] for field in batch))
            noun = torch.tensor([e.noun for e in expressions])
            choice = torch.tensor([e.choice for e in expressions])
            heat = self.selector(maps[at].detach(), shared[at], some, noun, choice)
            losses["click"] = click_loss(heat, covers).mean()
        return losses


def map_loss(maps: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Focal loss over the cells that count, in units of positive cells."""
    cross = F.binary_cross_entropy_with_logits(maps, truth, reduction="none")
    hard = (torch.sigmoid(maps) - truth).abs() ** 2
    return (cross * hard * counted).sum() / (truth * counted).sum().clamp(min=8.0)


def presence_loss(presence: Tensor, truth: Tensor, asked: Tensor) -> Tensor:
    """Cross entropy of the nouns whose presence is known, present ones weighted four times."""
    there = (truth.amax((2, 3)) > 0.2).float()
    cross = F.binary_cross_entropy_with_logits(presence, there, reduction="none")
    weight = asked.float() * (1 + 3 * there)
    return (cross * weight).sum() / weight.sum().clamp(min=1.0) * 5


def spread_loss(maps: Tensor, truth: Tensor, asked: Tensor) -> Tensor:
    """Click loss of each present noun's map, over all its objects."""
    chosen = (truth.amax((2, 3)) > 0.5) & asked
    return click_loss(maps[chosen], truth[chosen]).mean() if chosen.any() else maps.sum() * 0


def click_loss(heat: Tensor, cover: Tensor) -> Tensor:
    """How improbable a click on the target is: heat and cover [E, 32, 32] to [E]."""
    chance = torch.softmax(heat.flatten(1), 1)
    return -torch.log((chance * cover.flatten(1)).sum(1) + 1e-4)


def draw_expression(
    expressions: Sequence[EverydayExpression], rng: random.Random
) -> EverydayExpression:
    """One of a view's expressions; the kinds that there are, alike often."""
    kind = rng.choice(sorted({e.kind for e in expressions}))
    return rng.choice([e for e in expressions if e.kind == kind])
