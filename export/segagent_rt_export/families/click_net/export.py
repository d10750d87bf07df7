"""Export of our own promptable net."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from segagent_rt.segmenters.click_net import MAPS, ClickNetSettings
from segagent_rt_export.families.click_net.net import SIDE, Begun, Joint, SegmenterNet
from segagent_rt_export.families.integer_part import write_integer_part
from segagent_rt_export.gate.inputs import MEASURED, SceneInputs
from segagent_rt_export.graphs.conv_norm import fuse
from segagent_rt_export.graphs.tracing import trace


class ClickEncoderGraph(nn.Module):
    """uint8 [1, SIDE, SIDE, 3] to `MAPS`: the encoder, and what of the decoder needs no clicks.

    What will be added goes from graph to graph with the channels last: that is how convolutions in
    integers make and read it, so nothing is turned round in between.
    """

    def __init__(self, net: SegmenterNet) -> None:
        super().__init__()
        self.encoder, self.decoder = net.encoder, net.decoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # TensorRT can do nothing with bytes but make numbers of them, so that comes first.
        maps = self.encoder(image.float().permute(0, 3, 1, 2))
        keys, coarse, fine = self.decoder.begin(*maps)
        return keys, coarse.permute(0, 2, 3, 1), fine.permute(0, 2, 3, 1)


class ClickDecoderGraph(nn.Module):
    """What is left of the decoder, with logits, not probabilities, of the mask so far."""

    def __init__(self, net: SegmenterNet) -> None:
        super().__init__()
        self.decoder = net.decoder

    def forward(
        self, keys: Tensor, coarse: Tensor, fine: Tensor, points: Tensor, prior_logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        begun = keys, coarse.permute(0, 3, 1, 2), fine.permute(0, 3, 1, 2)
        return self.decoder.click(*begun, points, torch.sigmoid(prior_logits))


def part(net: nn.Module) -> nn.Module:
    """Part, in a fused net, what depends on clicks from what does not; in place."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Joint):
                setattr(module, name, Begun(child))
    return net


def export_click_net(net: SegmenterNet, folder: Path) -> dict[str, Path]:
    """Write encoder.onnx and decoder.onnx in full precision; returns role to file."""
    fused = cast(SegmenterNet, part(fuse(net)))
    image = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    with torch.no_grad():
        maps = dict(zip(MAPS, ClickEncoderGraph(fused)(image), strict=True))
    points = torch.rand(1, 3, 3).round(decimals=2)
    prior = torch.zeros(1, 1, SIDE, SIDE)
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    trace(ClickEncoderGraph(fused), {"image": image}, encoder, MAPS)
    example = {**maps, "points": points, "prior_logits": prior}
    trace(ClickDecoderGraph(fused), example, decoder, ["logits", "iou"], {"points": 1})
    return {"encoder": encoder, "decoder": decoder}


def export_segmenter(net: SegmenterNet, folder: Path) -> None:
    """The segmenter's part of the demo bundle."""
    folder.mkdir()
    graphs = export_click_net(net, folder)
    settings, material = ClickNetSettings(side=SIDE), SceneInputs(MEASURED)
    write_integer_part(graphs, folder, "click_net", settings, material)
