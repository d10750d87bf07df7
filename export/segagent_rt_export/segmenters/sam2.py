"""Export of SAM 2 and 2.1, whose decoder also looks at two finer maps of the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model

from segagent_rt.segmenters.sam import SamSettings
from segagent_rt_export.segmenters import sam2_layout, sam_layout
from segagent_rt_export.segmenters.exported import ExportedSegmenter
from segagent_rt_export.segmenters.pretrained import (
    build,
    configuration,
    provenance,
    read_config,
    read_original,
    read_weights,
)
from segagent_rt_export.segmenters.sam_decoder import SamDecoder
from segagent_rt_export.segmenters.sam_graphs import Pair, export_pair

FEATURES = ("embedding", "hi0", "hi1")
RESULTS = ("masks", "scores", "obj_score")

OF_VIDEO = (
    "memory_",
    "mask_downsample.",
    "spatial_perceiver.",
    "object_pointer_proj.",
    "temporal_positional_encoding_projection_layer.",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
)
"""Tensors for tracking, which one image does without."""


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


class PyramidEncoder(nn.Module):
    """A trunk, the feature pyramid on it, and the decoder's work that needs no click.

    The embedding carries what SAM 2 adds to the first frame of a video, which an image is.
    """

    no_memory: Tensor

    def __init__(self, trunk: nn.Module, net: Any) -> None:
        super().__init__()
        self.trunk, self.neck = trunk, net.vision_encoder.neck
        self.conv_s0, self.conv_s1 = net.mask_decoder.conv_s0, net.mask_decoder.conv_s1
        self.register_buffer("no_memory", net.no_memory_embedding.reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.pyramid(self.trunk(image))[:3]
        return coarse + self.no_memory, self.conv_s0(fine), self.conv_s1(middle)

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        """Every map in the same width, the coarser ones added to some of the finer ones."""
        levels: list[Tensor] = []
        for at, conv in zip(reversed(range(len(maps))), self.neck.convs, strict=True):
            level = conv(maps[at])
            if levels and at in self.neck.fpn_top_down_levels:
                level = level + nn.functional.interpolate(levels[0], scale_factor=2.0)
            levels.insert(0, level)
        return levels


class Sam2Decoder(SamDecoder):
    """SAM 2's mask decoder: the finer maps are added while upscaling; it rates presence, too."""

    score_at = 1

    def first_tokens(self) -> list[Tensor]:
        return [self.decoder.obj_score_token.weight, *super().first_tokens()]

    def forward(  # type: ignore[override]  # noqa: PLR0913
        self, embedding: Tensor, hi0: Tensor, hi1: Tensor, point_coords: Tensor,
        point_labels: Tensor, mask_input: Tensor, has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        points = self.prompts.points(point_coords, point_labels)
        tokens, image = self.attend(embedding + self.prompts.mask(mask_input, has_mask), points)
        net = self.decoder
        fine = net.activation(net.upscale_layer_norm(net.upscale_conv1(image) + hi1))
        fine = net.activation(net.upscale_conv2(fine) + hi0)
        present = cast(Tensor, net.pred_obj_score_head(tokens[:, 0]))
        return self.draw(tokens, fine), self.scores(tokens), present


def export_sam2(source: Path, folder: Path) -> ExportedSegmenter:
    """Write encoder.onnx and decoder.onnx from a transformers folder of SAM 2 or 2.1, or from a
    `sam2*_hiera_*.pt`.

    Raises:
        CheckpointInvalid: the source is no SAM 2.
    """
    net = load_sam2(source)
    side = net.config.prompt_encoder_config.image_size
    return export_pyramid("sam2", Hiera(net.vision_encoder.backbone, side), net, source, folder)


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


def image_parts(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that an image needs; the video model calls them otherwise."""
    parts = {}
    for name in ("prompt_encoder_config", "mask_decoder_config"):
        parts[name] = {k: v for k, v in config.get(name, {}).items() if k != "model_type"}
    return parts | {"vision_config": config.get("vision_config", {})}


def export_pyramid(
    family: str, trunk: nn.Module, net: Any, source: Path, folder: Path
) -> ExportedSegmenter:
    """Write the graphs of a net that is built as SAM 2 is."""
    side = net.prompt_encoder.input_image_size
    pair = Pair(
        PyramidEncoder(trunk, net),
        Sam2Decoder(net.prompt_encoder, net.mask_decoder, side),
        side, FEATURES, RESULTS,
    )  # fmt: skip
    graphs, checks = export_pair(pair, folder)
    decoder = net.mask_decoder
    settings = SamSettings(
        side=side,
        resize="squash",
        features=FEATURES,
        pads_with_box=True,
        stability_delta=decoder.dynamic_multimask_stability_delta,
        stability_threshold=decoder.dynamic_multimask_stability_thresh,
        feedback_limit=32.0,
    )
    return ExportedSegmenter(family, settings, graphs, checks, provenance(source))
