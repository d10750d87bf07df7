"""Export of SAM 2 and 2.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model

from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.sam2 import OF_VIDEO, PyramidEncoder, export_pyramid, image_parts
from segagent_rt_export.sources import sam2_layout, sam_layout
from segagent_rt_export.sources.segmenter import (
    build,
    configuration,
    read_config,
    read_original,
    read_weights,
)


class Hiera(nn.Module):
    """SAM 2's trunk; its position embedding is interpolated once, here."""

    positions: Tensor

    def __init__(self, trunk: Any, side: int) -> None:
        super().__init__()
        self.trunk = trunk
        grid = side // trunk.config.patch_stride[0]
        self.register_buffer("positions", trunk._get_pos_embed((grid, grid)))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Four maps [1, C, H, W], each half the size of the one before."""
        hidden, maps = self.trunk.patch_embed(image) + self.positions, []
        for at, block in enumerate(self.trunk.blocks):
            hidden = block(hidden)
            if at in self.trunk.stage_ends:
                maps.append(hidden.permute(0, 3, 1, 2))
        return maps


def export_sam2(source: Path, folder: Path) -> ExportedSegmenter:
    """Write encoder.onnx and decoder.onnx from a transformers folder of SAM 2 or 2.1, or from a
    `sam2*_hiera_*.pt`.

    Raises:
        CheckpointInvalid: the source is no SAM 2.
    """
    net = load_sam2(source)
    side = net.config.prompt_encoder_config.image_size
    encoder = PyramidEncoder(Hiera(net.vision_encoder.backbone, side), net)
    return export_pyramid("sam2", encoder, net, source, folder)


def load_sam2(source: Path) -> Any:
    """The image model with its weights, from either format; most published folders hold the video
    model."""
    if source.is_dir():
        parts = image_parts(read_config(source, "sam2", "sam2_video"))
        tensors = read_weights(source)
    else:
        tensors = sam2_layout.renamed(read_original(source))
        parts = sam2_layout.original_sizes(tensors)
    settings = configuration(Sam2Config, parts)
    return build(Sam2Model, settings, sam_layout.tied(tensors), unused=OF_VIDEO)
