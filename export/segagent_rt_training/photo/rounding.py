"""Training with the weights that the export in integers will store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segagent_rt_export.passes.qdq_conv import MOST


@contextmanager
def rounded_weights(net: nn.Module) -> Iterator[None]:
    """Round the weights of all convolutions in this block as the export does; afterwards they are
    exact again. Gradients computed in the block are applied to the exact weights.

    Each output channel has its own scale, so folding batch norms later changes nothing here.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight
                kept.append((weight, weight.clone()))
                scale = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / MOST
                weight.copy_((weight / scale).round() * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, exact in kept:
                weight.copy_(exact)
