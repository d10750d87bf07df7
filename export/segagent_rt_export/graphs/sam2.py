"""The image part of SAM 2, which EdgeTAM shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from segagent_rt.segmenters.sam import SamSettings
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.sam_decoder import SamDecoder
from segagent_rt_export.graphs.sam_export import Pair, export_pair
from segagent_rt_export.sources.segmenter import provenance

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


def image_parts(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that an image needs; the video model calls them otherwise."""
    parts = {}
    for name in ("prompt_encoder_config", "mask_decoder_config"):
        parts[name] = {k: v for k, v in config.get(name, {}).items() if k != "model_type"}
    return parts | {"vision_config": config.get("vision_config", {})}


def export_pyramid(
    family: str, encoder: PyramidEncoder, net: Any, source: Path, folder: Path
) -> ExportedSegmenter:
    """Write the graphs of a net that is built as SAM 2 is."""
    side = net.prompt_encoder.input_image_size
    graph = Sam2Decoder(net.prompt_encoder, net.mask_decoder, side)
    graphs, checks = export_pair(Pair(encoder, graph, side, FEATURES, RESULTS), folder)
    decoder = net.mask_decoder
    settings = SamSettings(
        side=side,
        mask_side=graph.mask_side,
        resize="squash",
        features=FEATURES,
        pads_with_box=True,
        stability_delta=decoder.dynamic_multimask_stability_delta,
        stability_threshold=decoder.dynamic_multimask_stability_thresh,
        feedback_limit=32.0,
    )
    return ExportedSegmenter(family, settings, graphs, checks, provenance(source))
