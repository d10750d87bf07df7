"""Names and sizes in the original checkpoints of SAM 2 and EdgeTAM, as transformers has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources import sam_layout

SIDE = 1024
"""Of the square that every published model sees; no tensor's shape tells."""

OF_VIDEO = re.compile(
    r"(memory_|maskmem_|no_mem_pos_enc|mask_downsample\.|obj_ptr_|no_obj_|spatial_perceiver\.).*"
)
"""Tensors for tracking, which one image does without."""

RENAMES = (
    (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^image_encoder\.trunk\.body\.", "vision_encoder.backbone.timm_model."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^(vision_encoder\.backbone\.patch_embed)\.proj\.", r"\1.projection."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+|mask_decoder\.transformer\..*)\.mlp\.layers\.0\.",
     r"\1.mlp.proj_in."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+|mask_decoder\.transformer\..*)\.mlp\.layers\.1\.",
     r"\1.mlp.proj_out."),
    (r"^(mask_decoder\.transformer\..*)\.out_proj\.", r"\1.o_proj."),
)  # fmt: skip

POINT = "prompt_encoder.point_embed.%d.weight"
POINTS = "prompt_encoder.point_embed.weight"
"""One table in transformers, four in the original."""

HIERA: Mapping[tuple[int, tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]] = {
    (96, (1, 2, 7, 2)): ((8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): ((8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): ((8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): ((8, 4, 16, 8), (23, 33, 43)),
}
"""Windows by stage, and blocks that see everything, of the tiny, small, base and large trunk, by
width and blocks of each stage; no tensor's shape tells these two."""

HEADS: Mapping[int, int] = {96: 1, 112: 2, 144: 2}
"""Of the first stage's attention, by width; each stage has twice as many as the one before."""


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original checkpoint under their names in transformers, without those that
    only tracking needs.

    Args:
        tensors: by the names that SAM 2's own code gives them.
    """
    own = {}
    for name, tensor in tensors.items():
        if not OF_VIDEO.fullmatch(name):
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            own[name] = tensor
    prompted = ("prompt_encoder.", "mask_decoder.")
    shared = {name: own.pop(name) for name in list(own) if name.startswith(prompted)}
    own |= sam_layout.renamed(shared)
    points = [own.pop(POINT % at) for at in range(4) if POINT % at in own]
    return own | ({POINTS: torch.cat(points)} if points else {})


def original_sizes(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The configuration that an original checkpoint of SAM 2 does not carry, part by part.

    Args:
        tensors: by their names in transformers.

    Raises:
        CheckpointInvalid: tensors that tell sizes are missing, or no published model has them.
    """
    with sam_layout.explained(tensors):
        parts = shared_sizes(tensors)
        trunk = "vision_encoder.backbone"
        inner = sam_layout.by_layer(tensors, rf"{trunk}\.blocks\.(\d+)\.attn\.proj\.weight")
        widths = sorted({len(weight) for weight in inner})
        counts = tuple(sum(len(weight) == width for weight in inner) for width in widths)
        if (widths[0], counts) not in HIERA:
            raise CheckpointInvalid(
                f"no published SAM 2 has {counts} blocks of {widths} channels",
                hint="save it with transformers, whose folders say what the tensors do not",
            )
        windows, everywhere = HIERA[widths[0], counts]
        background = tensors[f"{trunk}.pos_embed"].shape[-2:]
        parts["vision_config"] |= {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": widths[0],
                "image_size": [SIDE, SIDE],
                "num_attention_heads": HEADS[widths[0]],
                "num_attention_heads_per_stage": [HEADS[widths[0]] << at for at in range(4)],
                "blocks_per_stage": list(counts),
                "embed_dim_per_stage": widths,
                "window_size_per_stage": list(windows),
                "global_attention_blocks": list(everywhere),
                "window_positional_embedding_background_size": list(background),
            }
        }
        return parts


def shared_sizes(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What SAM 2 and EdgeTAM have in common: all but the trunk."""
    convs = sam_layout.by_layer(tensors, r"vision_encoder\.neck\.convs\.(\d+)\.weight")
    return {
        "vision_config": {
            "backbone_channel_list": [conv.shape[1] for conv in convs],
            "backbone_feature_sizes": [[SIDE // n, SIDE // n] for n in (4, 8, 16)],
            "fpn_hidden_size": len(convs[0]),
        },
        "prompt_encoder_config": sam_layout.prompt_config(tensors, SIDE),
        "mask_decoder_config": sam_layout.decoder_config(tensors, "proj_in"),
    }
