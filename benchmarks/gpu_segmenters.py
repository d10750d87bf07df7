"""Encoders of segmenters, and SimpleClick's net: in PyTorch as published, as graphs as exported.

The weights are random. transformers' classes and our own; without transformers there is SimpleClick
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from segagent_rt_export.families.simple_click import net as simple_click_net
from segagent_rt_export.graphs.sam_encoder import (
    BiasAttention,
    FoldedAttention,
    SamEncoder,
    with_attention,
)
from segagent_rt_export.graphs.tracing import trace
from segagent_rt_export.passes.weight_quant import write_variant
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.variants import SEGMENTER_VARIANTS, Device

FEATURES = ("embedding", "hi0", "hi1")
"""What the encoders of SAM 2 compute; SAM's computes the first."""

NetT = TypeVar("NetT", bound=nn.Module)


class TimedSegmenter(nn.Module):
    """A net that takes the example `inputs`, by `names`, and computes `outputs`."""

    _fused = False

    def __init__(
        self, net: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.net, self.outputs, self.names = net, tuple(outputs), tuple(example)
        self.inputs = tuple(example.values())

    def forward(self, *inputs: Tensor) -> Any:
        return self.net(*inputs)

    @property
    def fused(self) -> bool:
        """Whether PyTorch's fused attention is used."""
        return self._fused

    @fused.setter
    def fused(self, fused: bool) -> None:
        self._fused = fused
        self.turn()

    def turn(self) -> None:
        """Use the attention that `fused` says; a net of convolutions has none."""

    def feeds(self) -> dict[str, Any]:
        """The example, by the names of the graph's inputs."""
        return {name: x.numpy() for name, x in zip(self.names, self.inputs, strict=True)}

    def graph(self, device: Device) -> nn.Module:
        """What is traced for a device."""
        return self.net

    @torch.inference_mode(mode=False)
    def write(self, folder: Path, variant: VariantName) -> Path:
        """The net as a graph, traced and then stored as a segmenter's variant is."""
        kind, traced = SEGMENTER_VARIANTS[variant], folder / "encoder.onnx"
        example = dict(zip(self.names, self.inputs, strict=True))
        trace(self.graph(kind.device), example, traced, self.outputs)
        write_variant({"encoder": traced}, folder / variant, kind)
        return folder / variant / traced.name


class SamModel(TimedSegmenter):
    """SAM's encoder: windows of 14 x 14 with padding, relative positions, in the form for the
    device. `size` is what differs from transformers' `SamVisionConfig`."""

    def __init__(self, size: Mapping[str, Any]) -> None:
        from transformers import SamVisionConfig
        from transformers.models.sam import modeling_sam

        self.kinds = modeling_sam.SamVisionAttention, modeling_sam.SamVisionSdpaAttention
        config = SamVisionConfig(**size, attn_implementation="eager")
        encoder = SamEncoder(awake(modeling_sam.SamVisionEncoder(config)))
        super().__init__(encoder, picture(config.image_size), FEATURES[:1])

    def turn(self) -> None:
        retype(self.net, self.kinds, self.kinds[self.fused])

    def graph(self, device: Device) -> nn.Module:
        kind = FoldedAttention if device == "gpu" else BiasAttention
        return SamEncoder(with_attention(self.net.encoder, kind))


class Sam2(TimedSegmenter):
    """The encoder of SAM 2.1: Hiera and the pyramid. `size` is a `Sam2Config`'s content."""

    def __init__(self, size: Mapping[str, Any]) -> None:
        from transformers import Sam2Config, Sam2Model

        from segagent_rt_export.families.sam2.export import Hiera
        from segagent_rt_export.graphs.sam2 import PyramidEncoder

        net = awake(Sam2Model._from_config(Sam2Config(**size), attn_implementation="eager"))
        side = net.config.prompt_encoder_config.image_size
        self.config = net.vision_encoder.backbone.config
        with torch.no_grad():
            encoder = PyramidEncoder(Hiera(net.vision_encoder.backbone, side), net)
        super().__init__(encoder, picture(side), FEATURES)

    def turn(self) -> None:
        self.config._attn_implementation = "sdpa" if self.fused else "eager"


@dataclass(frozen=True)
class EdgeTamShape:
    """Channels and blocks of RepViT's stages, and a `Sam2Config`'s content for all else."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    config: Mapping[str, Any]


class EdgeTamEncoder(TimedSegmenter):
    """The encoder of EdgeTAM, its branches merged as the exporter merges them."""

    def __init__(self, size: EdgeTamShape) -> None:
        from transformers import Sam2Config

        from segagent_rt_export.families.edgetam.export import EdgeTam
        from segagent_rt_export.families.edgetam.repvit import RepVit, merged_branches
        from segagent_rt_export.graphs.sam2 import PyramidEncoder

        config = Sam2Config(**size.config)
        config.mask_decoder_config._attn_implementation = "eager"
        trunk = RepVit(size.widths, size.depths)
        net = awake(EdgeTam(trunk, config))
        encoder = PyramidEncoder(merged_branches(trunk), net)
        super().__init__(encoder, picture(config.prompt_encoder_config.image_size), FEATURES)


class SimpleClickModel(TimedSegmenter):
    """All of SimpleClick, for one picture: nothing of it outlives a click."""

    def __init__(self, shape: simple_click_net.NetShape) -> None:
        image = picture(shape.side)
        example = {**image, "guide": torch.rand_like(image["image"])}
        super().__init__(awake(simple_click_net.SimpleClickNet(shape)), example, ("logits",))

    def turn(self) -> None:
        kinds = simple_click_net.SimpleClickAttention, FusedAttention
        retype(self.net, kinds, kinds[self.fused])


class FusedAttention(simple_click_net.SimpleClickAttention):
    """The same by PyTorch's fused kernel."""

    def forward(self, rows: Tensor) -> Tensor:
        query, key, value = (
            part.reshape(self.layout).transpose(1, 2) for part in self.qkv(rows).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(-1, rows.shape[-1])))


def picture(side: int) -> dict[str, Tensor]:
    """A normalised one, of noise."""
    return {"image": torch.randn(1, 3, side, side)}


def retype(net: nn.Module, kinds: tuple[type[nn.Module], ...], kind: type[nn.Module]) -> None:
    """Make modules of these kinds, which have the same weights, modules of one of them."""
    for module in net.modules():
        if isinstance(module, kinds):
            module.__class__ = kind


@torch.no_grad()
def awake(net: NetT) -> NetT:
    """Weights that keep numbers of ordinary size, and make positions and biases matter.

    Without norms that are computed, what each layer adds to a sum has to be small.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(0.3)
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            wide = 100 if "pos_embed" in name else weight[0].numel()
            weight.normal_(std=wide**-0.5)
        elif name.endswith("bias"):
            weight.normal_(std=0.1)
    return net.eval().requires_grad_(False)
