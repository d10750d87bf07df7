"""Export of SAM 3's tracker: SAM 2's decoder on a vision transformer with rotary positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Sam3TrackerConfig, Sam3TrackerModel
from transformers.models.sam3.modeling_sam3 import Sam3ViTLayer, Sam3ViTRotaryEmbedding

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.sam3.processing import HALF
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.sam2 import OF_VIDEO, PyramidEncoder, export_pyramid, image_parts
from segagent_rt_export.sources.sam_layout import tied
from segagent_rt_export.sources.segmenter import build, configuration, read_config, read_weights

LEVELS = 3
"""Feature maps that the decoder takes. The neck has a fourth one, half as fine, for the detector:
transformers' `Sam3TrackerModel` adds the embedding of the first frame to that one and loses it;
`Sam3TrackerVideoModel` and the authors add it to the third, as here."""

RENAMES = (
    (r"^tracker_model\.", ""),
    (r"^detector_model\.vision_encoder\.backbone\.", "vision_encoder.backbone."),
    (r"^tracker_neck\.", "vision_encoder.neck."),
)
"""From the names in published folders, which hold the detector too, to `Sam3TrackerModel`'s."""

DETECTOR = "detector_model."


class RotaryAttention(nn.Module):
    """Attention with rotary positions, for positions that are known at export.

    The published one turns pairs of neighbouring channels. Here the channels of queries and keys
    are sorted, the even ones first, so that halves are turned instead; their products are the same.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, attention: Any, cos: Tensor, sin: Tensor) -> None:
        """`cos` and `sin` are float32 [1, tokens, head_dim], equal for both channels of a pair."""
        super().__init__()
        self.heads, self.scale = attention.num_attention_heads, attention.scaling
        self.q_proj, self.k_proj = (self._sorted(attention, name) for name in ("q_proj", "k_proj"))
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.register_buffer("cos", cos[0, :, 0::2].contiguous())
        self.register_buffer("sin", sin[0, :, 0::2].contiguous())

    def _sorted(self, attention: Any, name: str) -> nn.Linear:
        given: nn.Linear = getattr(attention, name)
        width = given.out_features
        order = torch.arange(width).reshape(self.heads, -1, 2).transpose(1, 2).flatten()
        made = nn.Linear(given.in_features, width, device="meta")
        made.weight = nn.Parameter(given.weight[order], requires_grad=False)
        made.bias = nn.Parameter(given.bias[order], requires_grad=False)
        return made

    def forward(self, hidden_states: Tensor, _: Any) -> tuple[Tensor, None]:
        """[windows, rows, columns, C] to the same; transformers' layer expects a pair."""
        windows, rows, columns, width = hidden_states.shape
        tokens = hidden_states.reshape(windows, rows * columns, width)
        query, key = (self._turned(self._split(p(tokens))) for p in (self.q_proj, self.k_proj))
        scores = (query * self.scale) @ key.transpose(2, 3)
        mixed = scores.softmax(-1) @ self._split(self.v_proj(tokens))
        merged = mixed.transpose(1, 2).reshape(hidden_states.shape)
        return cast(Tensor, self.o_proj(merged)), None

    def _split(self, tokens: Tensor) -> Tensor:
        """[windows, T, C] to [windows, heads, T, head_dim]."""
        windows, count, width = tokens.shape
        return tokens.reshape(windows, count, self.heads, width // self.heads).transpose(1, 2)

    def _turned(self, split: Tensor) -> Tensor:
        first, second = split.chunk(2, -1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return torch.cat(turned, -1)


class _NoRotary(nn.Module):
    """In the place of a layer's own, because the attention here knows its angles."""

    def forward(self, *_: Any) -> None:
        return None


class Sam3Trunk(nn.Module):
    """SAM 3's vision transformer; its position embedding is tiled once, here."""

    positions: Tensor

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        config, embeddings = trunk.config, trunk.embeddings
        self.grid = config.image_size // config.patch_size
        self.project = embeddings.patch_embeddings.projection
        table = embeddings.position_embeddings
        side = int(table.shape[1] ** 0.5)
        self.register_buffer("positions", _tiled(table.reshape(side, side, -1), self.grid))
        self.layer_norm, self.layers = trunk.layer_norm, trunk.layers
        rotary = Sam3ViTRotaryEmbedding(config)
        for layer in self.layers:
            ids = Sam3ViTLayer.precompute_positions(config, layer.window_size)
            layer.attention = RotaryAttention(layer.attention, *rotary(ids, ids))
            layer.rotary_emb = _NoRotary()

    def forward(self, image: Tensor) -> list[Tensor]:
        """float32 [1, 3, side, side] to one map [1, C, side / patch, side / patch]."""
        hidden = self.project(image).permute(0, 2, 3, 1) + self.positions
        hidden = self.layer_norm(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        return [hidden.permute(0, 3, 1, 2)]


def _tiled(table: Tensor, grid: int) -> Tensor:
    """[side, side, C] to [1, grid, grid, C], repeated and cut off."""
    times = -(-grid // len(table))
    return table.repeat(times, times, 1)[None, :grid, :grid].contiguous()


class Sam3Encoder(PyramidEncoder):
    """The trunk, and SAM 3's neck on it: every map is made of the trunk's only one."""

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        return [layer(maps[0]) for layer in self.neck.fpn_layers]


def export_sam3(source: Path, folder: Path) -> ExportedSegmenter:
    """Write encoder.onnx and decoder.onnx from a transformers folder of SAM 3 or of its tracker.

    Raises:
        CheckpointInvalid: the source is no SAM 3.
    """
    net = load_sam3(source)
    encoder = Sam3Encoder(Sam3Trunk(net.vision_encoder.backbone), net)
    exported = export_pyramid("sam3", encoder, net, source, folder)
    settings = replace(exported.settings, mean=HALF, std=HALF)
    return replace(exported, settings=settings)


def load_sam3(source: Path) -> Any:
    """The image model with its weights and the three levels of its neck that it uses."""
    if not source.is_dir():
        raise CheckpointInvalid(
            f"{source} is a file, and SAM 3 is read from a folder in transformers' format",
            hint="name the folder with config.json and model.safetensors, as facebook/sam3 has it",
        )
    described = read_config(source, "sam3_tracker", "sam3_tracker_video", "sam3_video")
    parts = image_parts(described.get("tracker_config") or described)
    net = build(
        Sam3TrackerModel,
        configuration(Sam3TrackerConfig, parts),
        tied(renamed(read_weights(source))),
        unused=(DETECTOR, *OF_VIDEO),
    )
    neck = net.vision_encoder.neck
    if len(neck.fpn_layers) < LEVELS:
        raise CheckpointInvalid(f"{source}: the neck has fewer than {LEVELS} levels")
    neck.fpn_layers = neck.fpn_layers[:LEVELS]
    return net


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `Sam3TrackerModel`; the detector's keep theirs."""

    def own(name: str) -> str:
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        return name

    return {own(name): tensor for name, tensor in tensors.items()}
