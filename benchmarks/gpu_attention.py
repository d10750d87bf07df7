"""Attention and layers as PyTorch users write them, spelt out or fused."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from segagent_rt.mllm.patch_layout import MASKED


def mix(q: Tensor, k: Tensor, v: Tensor, *, fused: bool, causal: bool = False) -> Tensor:
    """Attention over [..., N, width]; with `causal` no query sees a key behind its own."""
    if fused:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if causal:
        scores = scores + torch.full_like(scores[0, 0], MASKED).triu(1)
    return scores.softmax(-1) @ v


def linears(bias: bool, **sizes: tuple[int, int]) -> nn.ModuleDict:
    """Linear layers by name, (in, out) each."""
    return nn.ModuleDict({name: nn.Linear(*size, bias=bias) for name, size in sizes.items()})
