"""Inputs of the linear layers of the shipped model's vision encoder, over generated scenes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segagent_rt.image import overlay
from segagent_rt.types import RgbImage
from segagent_rt_export.families.demo_mllm.net import SIDE, TinyMllm
from segagent_rt_export.gate.inputs import MEASURED_SEED, scenes

Moments = npt.NDArray[np.float64]

SCENES = 24


def block_layers(net: TinyMllm) -> dict[str, nn.Linear]:
    """The linear layers of the vision encoder's blocks by the whole names of their weights."""
    return {
        f"model.visual.blocks.{name}.weight": module
        for name, module in net.vision.blocks.named_modules()
        if isinstance(module, nn.Linear)
    }


def observed_moments(net: TinyMllm) -> dict[str, Moments]:
    """Sum of x x^T, [K, K], over the inputs x of each of `block_layers`, by its weight's name."""
    found: dict[str, Moments] = defaultdict(lambda: np.zeros(()))

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            found[name] = found[name] + (x.T @ x).numpy()

        return add

    hooks = [
        module.register_forward_pre_hook(watch(name)) for name, module in block_layers(net).items()
    ]
    with torch.inference_mode():
        for picture in _pictures():
            net.see(torch.from_numpy(picture)[None])
    for hook in hooks:
        hook.remove()
    return dict(found)


def _pictures() -> Iterator[RgbImage]:
    """Each scene with no mask, with one of the object meant, and with one of another."""
    for scene in scenes(SCENES, SIDE, MEASURED_SEED):
        meant = scene.expressions[0].target
        yield scene.image
        for painted in (meant, (meant + 1) % len(scene.objects)):
            yield overlay(scene.image, scene.mask(painted))
