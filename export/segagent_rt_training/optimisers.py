"""Muon for the matrices inside a model, AdamW for everything else."""

from typing import Any

import torch
from torch import nn


class Optimisers:
    """Both optimisers as one: a step, a state."""

    def __init__(self, parts: nn.Module, adam_rate: float, muon_rate: float) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, weight in parts.named_parameters():
            inner = weight.ndim == 2 and name.startswith("net.") and "embed" not in name
            (matrices if inner else rest).append(weight)
        self.rates = (adam_rate, muon_rate)
        self.weights = [*rest, *matrices]
        self.each: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.02),
            torch.optim.Muon(
                matrices,
                lr=muon_rate,
                momentum=0.95,
                weight_decay=0.02,
                adjust_lr_fn="match_rms_adamw",
                ns_steps=4,
            ),
        )

    def step(self, factor: float) -> None:
        """Clip, update with learning rates times `factor`, forget the gradients."""
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimiser, rate in zip(self.each, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): optimiser.state_dict() for i, optimiser in enumerate(self.each)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, optimiser in enumerate(self.each):
            optimiser.load_state_dict(state[str(i)])
