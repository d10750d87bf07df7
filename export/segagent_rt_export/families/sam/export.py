"""Export of SAM ViT-B, L and H, and of SlimSAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import SamConfig, SamModel

from segagent_rt.segmenters.sam import SamSettings
from segagent_rt_export.families.sam_checkpoint import load_sam_model
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.sam_decoder import SamDecoder
from segagent_rt_export.graphs.sam_encoder import (
    BiasAttention,
    FoldedAttention,
    SamEncoder,
    with_attention,
)
from segagent_rt_export.graphs.sam_export import Pair, export_encoder, export_pair
from segagent_rt_export.sources.segmenter import provenance

FEATURES = ("embedding",)


def export_sam(source: Path, folder: Path) -> ExportedSegmenter:
    """Write encoder.onnx and decoder.onnx from a transformers folder or a `sam_vit_*.pth`.

    Raises:
        CheckpointInvalid: the source is no SAM.
    """
    net = load_sam(source)
    side = net.config.vision_config.image_size
    encoder = SamEncoder(with_attention(net.vision_encoder, BiasAttention))
    decoder = SamDecoder(net.prompt_encoder, net.mask_decoder, side)
    reference = SamEncoder(net.vision_encoder)
    graphs, checks = export_pair(
        Pair(encoder, decoder, side, FEATURES, reference=reference), folder
    )
    return ExportedSegmenter("sam", SamSettings(side=side), graphs, checks, provenance(source))


def export_sam_for_gpu(source: Path, folder: Path) -> dict[str, Path]:
    """Write encoder.onnx with relative positions as part of queries and keys: plain attention,
    which GPUs fuse, and CPUs compute more slowly.

    Raises:
        CheckpointInvalid: the source is no SAM.
    """
    net = load_sam(source)
    encoder = SamEncoder(with_attention(net.vision_encoder, FoldedAttention))
    return export_encoder(encoder, net.config.vision_config.image_size, FEATURES, folder)


def load_sam(source: Path) -> Any:
    """The model with its weights, from either format."""
    return load_sam_model(source, SamModel, SamConfig)
