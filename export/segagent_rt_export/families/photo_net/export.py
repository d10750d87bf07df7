"""Export of the photo segmenter: two graphs with nothing left over that clicks do not change."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from segagent_rt.bundle.bundle import Part
from segagent_rt.segmenters.photo_net import MAPS, PhotoNetSettings
from segagent_rt_export.families.integer_part import write_integer_part
from segagent_rt_export.families.photo_net.net import ImageFeatures, PhotoPrompts, PhotoSegmenterNet
from segagent_rt_export.gate.inputs import GateInputs
from segagent_rt_export.graphs.conv_norm import fuse
from segagent_rt_export.graphs.exported_segmenter import Check
from segagent_rt_export.graphs.tracing import trace

SCORES = ("decoder.logits.weight",)
"""Stays in fp32: steps of a whole range of logits are too coarse round zero, where masks end."""


class PhotoEncoderGraph(nn.Module):
    """uint8 [1, side, side, 3] to `MAPS`; the two sums' parts with the channels last, as
    convolutions in integers make and read them."""

    def __init__(self, net: PhotoSegmenterNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # TensorRT cannot compute with bytes, so they become floats first.
        found = self.net.encode(image.float().permute(0, 3, 1, 2))
        coarse, fine = found.coarse.permute(0, 2, 3, 1), found.fine.permute(0, 2, 3, 1)
        return coarse, fine, found.coarse_keys, found.fine_keys


class PhotoDecoderGraph(nn.Module):
    """The decoder, with logits, not probabilities, of the mask before."""

    def __init__(self, net: PhotoSegmenterNet) -> None:
        super().__init__()
        self.decoder = net.decoder

    def forward(  # noqa: PLR0913 (a graph has as many inputs as it needs)
        self,
        coarse: Tensor,
        fine: Tensor,
        coarse_keys: Tensor,
        fine_keys: Tensor,
        points: Tensor,
        box: Tensor,
        prior_logits: Tensor,
    ) -> tuple[Tensor, Tensor]:
        still = coarse.permute(0, 3, 1, 2), fine.permute(0, 3, 1, 2)
        features = ImageFeatures(*still, coarse_keys, fine_keys)
        logits, iou = self.decoder(features, PhotoPrompts(points, box, torch.sigmoid(prior_logits)))
        return logits, iou


def export_photo_net(net: PhotoSegmenterNet, side: int, folder: Path) -> dict[str, Path]:
    """Write encoder.onnx and decoder.onnx in full precision.

    Args:
        net: with its batch norms as trained.
        side: of the square that the encoder sees, a multiple of 32.
        folder: where the graphs go.

    Returns:
        The graphs by role.
    """
    folded = fold_norms(net)
    image, prompts = example_image(side), example_prompts(side)
    with torch.no_grad():
        maps = dict(zip(MAPS, PhotoEncoderGraph(folded)(image), strict=True))
    graphs = {role: folder / f"{role}.onnx" for role in ("encoder", "decoder")}
    trace(PhotoEncoderGraph(folded), {"image": image}, graphs["encoder"], MAPS)
    trace(
        PhotoDecoderGraph(folded), {**maps, **prompts}, graphs["decoder"], ["logits", "iou"],
        {"points": 1},
    )  # fmt: skip
    fold_pads(graphs["encoder"])
    return graphs


def export_segmenter(net: PhotoSegmenterNet, side: int, folder: Path, material: GateInputs) -> Part:
    """Write a part with the net in integers, and the same weights for arithmetic in fp32.

    Args:
        net: with its batch norms as trained.
        side: of the square that the encoder sees.
        folder: of the part; must not exist.
        material: the images that ranges of integers are measured on.
    """
    folder.mkdir()
    graphs = export_photo_net(net, side, folder)
    settings = PhotoNetSettings(side)
    return write_integer_part(graphs, folder, "photo_net", settings, material, exact=SCORES)


def torch_checks(net: PhotoSegmenterNet, side: int) -> Sequence[Check]:
    """What the graphs must compute: outputs of the net as it was trained, nothing folded."""
    net = copy.deepcopy(net).eval()
    image, prompts = example_image(side), example_prompts(side)
    with torch.no_grad():
        maps = PhotoEncoderGraph(net)(image)
        logits, iou = PhotoDecoderGraph(net)(*maps, *prompts.values())
        # The graphs' sums are folded with the norms behind them, so the decoder is fed with those.
        folded = dict(zip(MAPS, PhotoEncoderGraph(fold_norms(net))(image), strict=True))
    shown = {name: value.numpy() for name, value in {**folded, **prompts}.items()}
    keys = {n: m.numpy() for n, m in zip(MAPS, maps, strict=True) if n.endswith("keys")}
    return (
        Check("encoder", {"image": image.numpy()}, keys),
        Check("decoder", shown, {"logits": logits.numpy(), "iou": iou.numpy()}),
    )


def example_image(side: int) -> Tensor:
    """Noise, always the same: uint8 [1, side, side, 3]."""
    draw = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, generator=draw)


def example_prompts(side: int) -> dict[str, Tensor]:
    """Three clicks, a box and a mask."""
    points = torch.tensor([[[0.3, 0.4, 1.0], [0.7, 0.2, 0.0], [0.5, 0.6, 1.0]]])
    points[..., :2] *= side
    box = torch.tensor([[0.2, 0.1, 0.8, 0.9]]) * side
    draw = torch.Generator().manual_seed(6)
    prior = 3 * torch.randn(1, 1, side // 2, side // 2, generator=draw)
    return {"points": points, "box": box, "prior_logits": prior}


def fold_norms(net: PhotoSegmenterNet) -> PhotoSegmenterNet:
    """A copy for inference without batch norms, those behind sums included; of a net whose norms
    are folded already, a plain copy."""
    folded = cast(PhotoSegmenterNet, fuse(net))
    decoder, pyramid = folded.decoder, folded.pyramid
    if isinstance(decoder.norm8, nn.Identity):
        return folded
    _fold_into(decoder.norm8, [pyramid.coarse, decoder.enter8, decoder.clicked])
    _fold_into(decoder.norm4, [pyramid.fine, decoder.enter4, decoder.up4])
    decoder.norm8 = decoder.norm4 = nn.Identity()  # type: ignore[assignment]
    return folded


def _fold_into(norm: nn.BatchNorm2d, summands: Sequence[nn.Conv2d | nn.Linear]) -> None:
    """Scale every summand as a norm scales their sum, and shift the first one."""
    variance, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
    with torch.no_grad():
        gain = norm.weight / torch.sqrt(variance + norm.eps)
        for layer in summands:
            layer.weight *= gain.reshape(-1, *[1] * (layer.weight.dim() - 1))
            cast(Tensor, layer.bias).mul_(gain)
        cast(Tensor, summands[0].bias).add_(norm.bias - mean * gain)


def fold_pads(path: Path) -> None:
    """Move zero padding into the convolutions that read it: ONNX's may be asymmetric, torch's may
    not, and padding between two convolutions would keep them from being fused in integers."""
    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    padded = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    for node in graph.node:
        pad = padded.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or readers[pad.output[0]] > 1 or pad.input[1] not in constants:
            continue
        whole = numpy_helper.to_array(constants[pad.input[1]]).tolist()
        own = next((list(a.ints) for a in node.attribute if a.name == "pads"), [0, 0, 0, 0])
        axes = len(whole) // 2
        added = [*whole[axes - 2 : axes], *whole[-2:]]
        kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend(kept)
        pads = [a + b for a, b in zip(own, added, strict=True)]
        node.attribute.append(helper.make_attribute("pads", pads))
        node.input[0] = pad.input[0]
        graph.node.remove(pad)
    onnx.save_model(model, str(path))
