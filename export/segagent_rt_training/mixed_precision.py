"""The number format that training computes in: bfloat16 where the CPU has it, fp32 elsewhere."""

from __future__ import annotations

import torch


def bfloat16_is_fast() -> bool:
    """Whether this CPU computes in bfloat16 itself; emulation is several times as slow as fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(*, enabled: bool = True) -> torch.autocast:
    """A context in which layers compute in bfloat16 if that is fast here, and if it is enabled."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled and bfloat16_is_fast())
