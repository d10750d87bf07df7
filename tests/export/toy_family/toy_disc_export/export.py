"""From a checkpoint of the toy family to its graph, and what its authors would do with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from toy_disc import ToySettings

from segagent_rt.types import Click, Mask, RgbImage, Size
from segagent_rt_export.families.authors_processing import STD, Floats, normalised, planes_of
from segagent_rt_export.graphs.exported_segmenter import Check, ExportedSegmenter
from segagent_rt_export.graphs.tracing import trace
from segagent_rt_export.sources.segmenter import fill, provenance, read_original

SIDE = 64


class ToyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.radius, self.gain = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        """[1, 3, side, side] and [1, N, 3] to logits [1, 1, side, side]."""
        along = torch.arange(SIDE, dtype=torch.float32)
        dx = along - points[0, :, 0, None]  # [N, side]
        dy = along - points[0, :, 1, None]
        squares = dx[:, None, :] ** 2 + dy[:, :, None] ** 2  # [N, side, side]
        discs = (self.radius**2 - squares) * points[0, :, 2, None, None]
        return discs.amax(0)[None, None] + self.gain * image.mean(1, keepdim=True)


def export_toy(source: Path, folder: Path) -> ExportedSegmenter:
    net, path = fill(ToyNet(), read_original(source)), folder / "net.onnx"
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[10.0, 20.0, 1.0], [40.0, 30.0, 0.0], [50.0, 50.0, 1.0]]])
    trace(net, {"image": image, "points": points}, path, ["logits"], {"points": 1})
    feeds = {"image": image.numpy(), "points": points.numpy()}
    check = Check("net", feeds, {"logits": net(image, points).numpy()})
    return ExportedSegmenter(
        "toy_disc", ToySettings(SIDE), {"net": path}, [check], provenance(source)
    )


class ToyProcessing:
    role, std = "net", STD

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.side = settings["side"]

    def picture(self, image: RgbImage) -> Floats:
        planes = interpolate(planes_of(image).float(), (self.side, self.side), mode="nearest-exact")
        return np.asarray(normalised(planes[0]).numpy())

    def prompt(self, click: Click, size: Size) -> dict[str, Floats]:
        place = click.x * self.side / size[1], click.y * self.side / size[0]
        return {"points": np.array([[[*place, float(click.positive)]]], np.float32)}

    def mask(self, outputs: Mapping[str, Any], size: Size) -> Mask:
        logits = torch.from_numpy(np.array(outputs["logits"]))
        return np.asarray(interpolate(logits, size, mode="bilinear")[0, 0].numpy() > 0)
