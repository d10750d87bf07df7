"""Export of our own promptable net."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segagent_rt.segmenters.click_net import MAPS
from segagent_rt_export.segmenters.tracing import trace
from segagent_rt_export.train.segmenter_net import SIDE, Begun, Joint, SegmenterNet


class EncoderGraph(nn.Module):
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


class DecoderGraph(nn.Module):
    """What is left of the decoder, with logits, not probabilities, of the mask so far."""

    def __init__(self, net: SegmenterNet) -> None:
        super().__init__()
        self.decoder = net.decoder

    def forward(
        self, keys: Tensor, coarse: Tensor, fine: Tensor, points: Tensor, prior_logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        begun = keys, coarse.permute(0, 3, 1, 2), fine.permute(0, 3, 1, 2)
        return self.decoder.click(*begun, points, torch.sigmoid(prior_logits))


def fuse(net: nn.Module) -> nn.Module:
    """A copy for inference: every batch norm folded into the convolution before it."""
    net = copy.deepcopy(net).eval()
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential):
            for at in range(len(module) - 1):
                if isinstance(module[at], nn.Conv2d) and isinstance(module[at + 1], nn.BatchNorm2d):
                    module[at] = fuse_conv_bn_eval(
                        cast(nn.Conv2d, module[at]), cast(nn.BatchNorm2d, module[at + 1])
                    )
                    module[at + 1] = nn.Identity()
    return net


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
        maps = dict(zip(MAPS, EncoderGraph(fused)(image), strict=True))
    points = torch.rand(1, 3, 3).round(decimals=2)
    prior = torch.zeros(1, 1, SIDE, SIDE)
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    trace(EncoderGraph(fused), {"image": image}, encoder, MAPS)
    example = {**maps, "points": points, "prior_logits": prior}
    trace(DecoderGraph(fused), example, decoder, ["logits", "iou"], {"points": 1})
    return {"encoder": encoder, "decoder": decoder}
