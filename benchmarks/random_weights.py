"""Random weights that make every part of a model matter."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def awaken(model: Any, seed: int = 0) -> Any:
    """The model with weights of ordinary size, for inference; fresh ones are in part zero."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=rng)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim < 2 and name.endswith("weight"):
            tensor.copy_(1 + 0.2 * noise)
        elif tensor.ndim >= 2 and name.endswith("weight") and "embed." not in name:
            tensor.copy_(noise * tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.copy_(0.5 * noise)
    if hasattr(model, "shared_image_embedding"):  # one tensor in every published checkpoint
        shared = model.shared_image_embedding.positional_embedding
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    return model.eval().requires_grad_(False)
