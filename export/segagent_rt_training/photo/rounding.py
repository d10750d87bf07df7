"""Training with the weights that the export in integers will store."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segagent_rt_export.graphs.integer_product import MOST


def with_rounded_weights(net: nn.Module) -> nn.Module:
    """A copy whose convolutions have the weights that the export stores: what training with
    `rounded_weights` has measured its losses on."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(_rounded(module.weight))
    return net


def _rounded(weight: Tensor) -> Tensor:
    scale = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / MOST
    return (weight / scale).round() * scale


@contextmanager
def rounded_weights(net: nn.Module) -> Iterator[None]:
    """Round the weights of all convolutions in this block as the export does; afterwards they are
    exact again. Gradients computed in the block are applied to the exact weights.

    Each output channel has its own scale, so folding batch norms later changes nothing here.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight
                kept.append((weight, weight.clone()))
                weight.copy_(_rounded(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, exact in kept:
                weight.copy_(exact)
