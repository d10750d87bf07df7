"""Export of our own promptable net."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segagent_rt_export.segmenters.tracing import trace
from segagent_rt_export.train.segmenter_net import SIDE, SegmenterNet


class EncoderGraph(nn.Module):
    """uint8 [1, SIDE, SIDE, 3] to the two feature maps."""

    def __init__(self, net: SegmenterNet) -> None:
        super().__init__()
        self.encoder = net.encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        # TensorRT can do nothing with bytes but make numbers of them, so that comes first.
        return cast(tuple[Tensor, Tensor], self.encoder(image.float().permute(0, 3, 1, 2)))


class DecoderGraph(nn.Module):
    """The decoder with logits, not probabilities, of the mask so far."""

    def __init__(self, net: SegmenterNet) -> None:
        super().__init__()
        self.decoder = net.decoder

    def forward(
        self, features: Tensor, fine: Tensor, points: Tensor, prior_logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        prior = torch.sigmoid(prior_logits)
        return cast(tuple[Tensor, Tensor], self.decoder(features, fine, points, prior))


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


def export_click_net(net: SegmenterNet, folder: Path) -> dict[str, Path]:
    """Write encoder.onnx and decoder.onnx in full precision; returns role to file."""
    fused = cast(SegmenterNet, fuse(net))
    image = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    with torch.no_grad():
        features, fine = EncoderGraph(fused)(image)
    points = torch.rand(1, 3, 3).round(decimals=2)
    prior = torch.zeros(1, 1, SIDE, SIDE)
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    trace(EncoderGraph(fused), {"image": image}, encoder, ["features", "fine"])
    example = {"features": features, "fine": fine, "points": points, "prior_logits": prior}
    trace(DecoderGraph(fused), example, decoder, ["logits", "iou"], {"points": 1})
    return {"encoder": encoder, "decoder": decoder}
