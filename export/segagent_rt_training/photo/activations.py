"""Training with activations that are rounded where the export in integers rounds them.

This needs a net without batch norms: only then does a convolution make in training what it will
make in the exported graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from segagent_rt_export.families.photo_net.efficientnet import InvertedResidual
from segagent_rt_export.families.photo_net.export import SCORES
from segagent_rt_export.families.photo_net.net import PhotoResidual, PhotoSegmenterNet
from segagent_rt_export.passes.calibration import OUTLIERS
from segagent_rt_export.passes.qdq_conv import LEVELS

STEM = "encoder.stem.conv"
"""The export keeps it in fp32: it reads the picture."""

SAMPLE = 1 << 14
"""Numbers of an activation that its range is measured on."""

WIDEN, NARROW = 0.3, 0.02
"""How far a range follows a measurement beyond it, and one within it: ranges of the export hold
what several photos need."""


class _StraightThrough(torch.autograd.Function):
    """Four plain operations, which CPUs compute faster than torch's fake quantisation."""

    @staticmethod
    def forward(context: Any, x: Tensor, scale: float, zero: int) -> Tensor:
        codes = x.mul(1 / scale).round_().clamp_(-zero, LEVELS - zero)
        return codes.mul_(scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class RoundedActivations:
    """Hooks on a net that round activations to `LEVELS` steps of their ranges.

    Gradients pass as if nothing was rounded.

    Args:
        net: with its batch norms folded; it keeps the hooks.
    """

    def __init__(self, net: PhotoSegmenterNet) -> None:
        self._ranges = dict[str, tuple[float, float]]()
        self._rounds, self._measures = False, False
        bounded = set(_bounded(net))
        for name, module in net.named_modules():
            if isinstance(module, nn.Conv2d) and name != STEM:
                module.register_forward_pre_hook(partial(self._input, name))
            whole = isinstance(module, PhotoResidual) or getattr(module, "shortcut", False)
            if whole or (isinstance(module, nn.Conv2d) and name not in bounded):
                module.register_forward_hook(partial(self._output, name))

    @contextmanager
    def active(self, *, measured: bool) -> Iterator[None]:
        """Round in this block; with `measured`, ranges also follow what is seen in it. A value that
        was never measured is measured once."""
        self._rounds, self._measures = True, measured
        try:
            yield
        finally:
            self._rounds = False

    def _input(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        return (self._rounded(f"{name} reads", inputs[0]),) if self._rounds else None

    def _output(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> Any:
        return self._rounded(name, output) if self._rounds else None

    def _rounded(self, name: str, x: Tensor) -> Tensor:
        if self._measures or name not in self._ranges:
            self._measure(name, x.detach())
        least, most = self._ranges[name]
        scale = max(most - least, 1e-6) / LEVELS
        zero = min(max(round(-least / scale), 0), LEVELS)
        rounded = _StraightThrough.apply(x, scale, zero)  # type: ignore[no-untyped-call]
        return cast(Tensor, rounded)

    def _measure(self, name: str, x: Tensor) -> None:
        flat, stride = x.permute(0, 2, 3, 1).reshape(-1), max(1, x.numel() // SAMPLE)
        while math.gcd(stride, x.shape[1]) > 1:  # or some channels would never be seen
            stride += 1
        some = flat[::stride].float().sort().values
        cut = int(len(some) * OUTLIERS / 100)
        low, high = min(float(some[cut]), 0.0), max(float(some[-1 - cut]), 0.0)
        least, most = self._ranges.get(name, (low, high))
        self._ranges[name] = (
            least + (low - least) * (WIDEN if low < least else NARROW),
            most + (high - most) * (WIDEN if high > most else NARROW),
        )


def _bounded(net: nn.Module) -> Iterator[str]:
    """Convolutions whose results are not rounded, or only behind a ReLU, when they are read."""
    yield from (STEM, *(name.removesuffix(".weight") for name in SCORES))
    for name, module in net.named_modules():
        if isinstance(module, InvertedResidual):
            yield from (f"{name}.expand.conv", f"{name}.depthwise.conv")
        elif isinstance(module, nn.Sequential):
            layers = [at for at, layer in enumerate(module) if not isinstance(layer, nn.Identity)]
            for at, after in pairwise(layers):
                if isinstance(module[after], nn.ReLU):
                    yield f"{name}.{at}"
