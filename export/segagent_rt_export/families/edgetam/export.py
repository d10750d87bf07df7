"""Export of EdgeTAM: SAM 2's decoder and pyramid on RepViT, all convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2Config
from transformers.models.sam2 import modeling_sam2

from segagent_rt_export.families.edgetam.repvit import RepVit, merged_branches
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.sam2 import OF_VIDEO, PyramidEncoder, export_pyramid, image_parts
from segagent_rt_export.sources import sam2_layout
from segagent_rt_export.sources.sam_layout import SHARED, explained, tied
from segagent_rt_export.sources.segmenter import (
    configuration,
    fill,
    read_config,
    read_original,
    read_weights,
)

TRUNK = "vision_encoder.backbone.timm_model"


class EdgeTam(nn.Module):
    """The image model under the names of transformers' `EdgeTamModel`.

    That class builds its trunk with timm, which needs torchvision; its other parts are SAM 2's.
    """

    def __init__(self, trunk: RepVit, config: Sam2Config) -> None:
        super().__init__()
        self.vision_encoder = nn.Module()
        self.vision_encoder.backbone = nn.ModuleDict({"timm_model": trunk})
        self.vision_encoder.neck = modeling_sam2.Sam2VisionNeck(config.vision_config)
        self.prompt_encoder = modeling_sam2.Sam2PromptEncoder(config.prompt_encoder_config)
        self.mask_decoder = modeling_sam2.Sam2MaskDecoder(config.mask_decoder_config)
        width = config.vision_config.fpn_hidden_size
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, width))


def export_edgetam(source: Path, folder: Path) -> ExportedSegmenter:
    """Write encoder.onnx and decoder.onnx from a transformers folder or an `edgetam.pt`.

    Raises:
        CheckpointInvalid: the source is no EdgeTAM.
    """
    net = load_edgetam(source)
    trunk = merged_branches(net.vision_encoder.backbone["timm_model"])
    return export_pyramid("edgetam", PyramidEncoder(trunk, net), net, source, folder)


def load_edgetam(source: Path) -> Any:
    """The image model with its weights, from either format; most published folders hold the video
    model."""
    if source.is_dir():
        parts = image_parts(read_config(source, "edgetam", "edgetam_video"))
        tensors = tied(read_weights(source))
    else:
        tensors = tied(sam2_layout.renamed(read_original(source)))
        with explained(tensors):
            parts = sam2_layout.shared_sizes(tensors)
    parts["vision_config"] = {
        name: value
        for name, value in parts["vision_config"].items()
        if name not in ("backbone_config", "model_type")
    }
    settings = configuration(Sam2Config, parts)
    settings.mask_decoder_config._attn_implementation = "eager"
    widths = settings.vision_config.backbone_channel_list[::-1]
    with explained(tensors), torch.device("meta"):
        net = EdgeTam(RepVit(widths, _depths(tensors, len(widths))), settings)
    return fill(net, tensors, unused=(*OF_VIDEO, SHARED))


def _depths(tensors: Mapping[str, Tensor], stages: int) -> list[int]:
    """How many blocks each stage has."""
    names = "\n".join(tensors)
    block = rf"{re.escape(TRUNK)}\.stages_%d\.blocks\.(\d+)\."
    return [len(set(re.findall(block % stage, names))) for stage in range(stages)]
