"""Export of SAM-HQ: SAM with one more token, whose mask is added to each of SAM's.

The decoder is that of SAM-HQ's authors. transformers' (5.23) draws on the embedding as it was
before the two-way transformer, mirrored along its diagonal: its weights are used, its code is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import SamHQConfig, SamHQModel

from segagent_rt.segmenters.sam import SamSettings
from segagent_rt_export.families.sam_checkpoint import load_sam_model
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.sam_decoder import SamDecoder
from segagent_rt_export.graphs.sam_encoder import BiasAttention, FoldedAttention, with_attention
from segagent_rt_export.graphs.sam_export import Pair, export_encoder, export_pair
from segagent_rt_export.sources.segmenter import provenance

FEATURES = ("embedding", "hq")


class HqEncoder(nn.Module):
    """SAM's encoder and the finer map `hq` [1, C / 8, side / 4, side / 4].

    The map fuses the embedding with the first block that sees the whole image; the published
    decoder computes it anew for every click.
    """

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        windows = [layer.window_size for layer in encoder.layers]
        self.early = windows.index(0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder.patch_embed(image) + self.encoder.pos_embed
        early = hidden
        for at, layer in enumerate(self.encoder.layers):
            hidden = layer(hidden)
            if at == self.early:
                early = hidden
        embedding = self.encoder.neck(hidden)
        return embedding, self.fused(embedding, early.permute(0, 3, 1, 2))

    def fused(self, late: Tensor, early: Tensor) -> Tensor:
        """Both maps, four times as fine, in one."""
        net = self.decoder
        late = net.activation(net.encoder_norm(net.encoder_conv1(late)))
        early = net.activation(net.compress_vit_norm(net.compress_vit_conv1(early)))
        return cast(Tensor, net.encoder_conv2(late) + net.compress_vit_conv2(early))


class HqDecoder(SamDecoder):
    """SAM-HQ's mask decoder; scores are those of SAM's masks."""

    def first_tokens(self) -> list[Tensor]:
        return [*super().first_tokens(), self.decoder.hq_token.weight]

    def forward(  # type: ignore[override]
        self, embedding: Tensor, hq: Tensor, point_coords: Tensor, point_labels: Tensor,
        mask_input: Tensor, has_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        points = self.prompts.points(point_coords, point_labels)
        tokens, image = self.attend(embedding + self.prompts.mask(mask_input, has_mask), points)
        net, fine = self.decoder, self.upscale(image)
        sharp = net.mask_conv2(net.activation(net.mask_norm(net.mask_conv1(fine)))) + hq
        brush = net.hq_mask_mlp(tokens[:, self.score_at + 1 + self.masks])
        extra = (brush[:, None] @ sharp.flatten(2)).reshape(1, 1, *sharp.shape[2:])
        return self.draw(tokens, fine) + extra, self.scores(tokens)


def export_sam_hq(source: Path, folder: Path) -> ExportedSegmenter:
    """Write encoder.onnx and decoder.onnx from a transformers folder or a `sam_hq_vit_*.pth`.

    Raises:
        CheckpointInvalid: the source is no SAM-HQ.
    """
    net = load_sam_hq(source)
    side = net.config.vision_config.image_size
    encoder = HqEncoder(with_attention(net.vision_encoder, BiasAttention), net.mask_decoder)
    decoder = HqDecoder(net.prompt_encoder, net.mask_decoder, side)
    reference = HqEncoder(net.vision_encoder, net.mask_decoder)
    pair = Pair(encoder, decoder, side, FEATURES, reference=reference)
    graphs, checks = export_pair(pair, folder)
    settings = SamSettings(side=side, features=FEATURES)
    return ExportedSegmenter("sam_hq", settings, graphs, checks, provenance(source))


def export_sam_hq_for_gpu(source: Path, folder: Path) -> dict[str, Path]:
    """Write encoder.onnx as for SAM on GPUs.

    Raises:
        CheckpointInvalid: the source is no SAM-HQ.
    """
    net = load_sam_hq(source)
    encoder = HqEncoder(with_attention(net.vision_encoder, FoldedAttention), net.mask_decoder)
    return export_encoder(encoder, net.config.vision_config.image_size, FEATURES, folder)


def load_sam_hq(source: Path) -> Any:
    """The model with its weights, from either format."""

    def complete(sizes: dict[str, Any]) -> None:
        sizes["mask_decoder_config"]["vit_dim"] = sizes["vision_config"]["hidden_size"]

    return load_sam_model(source, SamHQModel, SamHQConfig, complete)
