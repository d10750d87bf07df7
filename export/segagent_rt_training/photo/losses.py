"""What is minimised: errors of the mask, normalised per example, and of the IoU estimate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RATING_WEIGHT = 0.3


def mask_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Normalised focal loss and soft IoU loss of each example.

    Args:
        logits: float [B, H, W].
        target: bool [B, H, W].
        counted: float [B, H, W], 0 where a pixel is ignored.

    Returns:
        float [B].
    """
    truth = target.float()
    chance = torch.sigmoid(logits)
    hard = ((chance - truth) ** 2) * counted
    total = counted.sum((1, 2))
    scale = (total / (hard.sum((1, 2)) + 1e-3)).clamp(max=20).detach()
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").clamp(max=10)
    focal = (cross * hard).sum((1, 2)) * scale / total.clamp(min=1)
    both = (chance * truth * counted).sum((1, 2))
    either = ((chance + truth - chance * truth) * counted).sum((1, 2))
    return 0.5 * focal + 1 - (both + 1) / (either + 1)


def true_iou(mask: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """IoU of bool masks [B, H, W] over the pixels that count: float [B]."""
    both = ((mask & target) * counted).sum((1, 2))
    return both / ((mask | target) * counted).sum((1, 2)).clamp(min=1)


def rating_loss(predicted: Tensor, actual: Tensor) -> Tensor:
    """Error of the IoU estimate of each example: float [B]."""
    return RATING_WEIGHT * F.smooth_l1_loss(predicted, actual, beta=0.1, reduction="none")
