"""Export of MobileSAM: SAM's decoder on TinyViT, from its own `mobile_sam.pt`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import SamConfig
from transformers.models.sam import modeling_sam

from segagent_rt.segmenters.sam import SamSettings
from segagent_rt_export.families.mobile_sam.tiny_vit import TinyVit, TinyVitShape
from segagent_rt_export.graphs.conv_norm import fuse
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.sam_decoder import SamDecoder
from segagent_rt_export.graphs.sam_export import Pair, export_pair
from segagent_rt_export.sources import sam_layout
from segagent_rt_export.sources.segmenter import fill, provenance, read_original

SIDE = 1024
ENCODER = "image_encoder."
CLASSIFIER = (f"{ENCODER}norm_head.", f"{ENCODER}head.")
"""Tensors of TinyViT's training on ImageNet, left in the checkpoint."""


class MobileSam(nn.Module):
    """TinyViT under MobileSAM's name, the rest under those of transformers' `SamModel`."""

    def __init__(self, encoder: TinyVit, config: Any) -> None:
        super().__init__()
        self.image_encoder = encoder
        self.prompt_encoder = modeling_sam.SamPromptEncoder(config)
        self.mask_decoder = modeling_sam.SamMaskDecoder(config.mask_decoder_config)


def export_mobile_sam(source: Path, folder: Path) -> ExportedSegmenter:
    """Write encoder.onnx and decoder.onnx from `mobile_sam.pt`.

    Raises:
        CheckpointInvalid: the source is no MobileSAM.
    """
    net = load_mobile_sam(source)
    decoder = SamDecoder(net.prompt_encoder, net.mask_decoder, SIDE)
    graphs, checks = export_pair(Pair(fuse(net.image_encoder), decoder, SIDE), folder)
    settings = SamSettings(side=SIDE)
    return ExportedSegmenter("mobile_sam", settings, graphs, checks, provenance(source))


def load_mobile_sam(source: Path) -> MobileSam:
    """The model with its weights."""
    original = read_original(source)
    encoder = {name: original[name] for name in original if name.startswith(ENCODER)}
    rest = {name: original[name] for name in original if not name.startswith(ENCODER)}
    tensors = sam_layout.tied(encoder | sam_layout.renamed(rest))
    with sam_layout.explained(original):
        shape = encoder_shape(encoder)
        config = SamConfig(
            vision_config={"num_pos_feats": tensors[sam_layout.SHARED].shape[1]},
            prompt_encoder_config=sam_layout.prompt_config(tensors, SIDE),
            mask_decoder_config=sam_layout.decoder_config(tensors),
        )
    config.mask_decoder_config._attn_implementation = "eager"
    net = MobileSam(TinyVit(shape), config)
    return fill(net, tensors, unused=(*CLASSIFIER, sam_layout.SHARED))


def encoder_shape(tensors: Mapping[str, Tensor]) -> TinyVitShape:
    """Sizes of TinyViT, read off its tensors."""
    found = re.findall(r"layers\.(\d+)\.blocks\.(\d+)\.", "\n".join(tensors))
    depths = [len({b for s, b in found if s == stage}) for stage in sorted({s for s, _ in found})]
    stages = [f"{ENCODER}layers.{at}.blocks.0." for at in range(len(depths))]
    biases = [tensors[f"{stage}attn.attention_biases"] for stage in stages[1:]]
    convs = [tensors[f"{stage}local_conv.c.weight"] for stage in stages[1:]]
    first = tensors[f"{stages[0]}conv1.c.weight"].shape[1]
    return TinyVitShape(
        widths=(first, *(len(conv) for conv in convs)),
        depths=tuple(depths),
        heads=(0, *(len(bias) for bias in biases)),
        windows=(0, *(math.isqrt(bias.shape[1]) for bias in biases)),
        outputs=len(tensors[f"{ENCODER}neck.0.weight"]),
    )
