"""Names and sizes in the original checkpoints of SAM and SAM-HQ, said as transformers says them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.registry import family_hint

SHARED = "shared_image_embedding.positional_embedding"
TIED = "prompt_encoder.shared_embedding.positional_embedding"
"""One tensor under two names; a checkpoint may have either or both."""

RENAMES = (
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", SHARED),
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.blocks\.", ".layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.hf_token\.", ".hq_token."),
    (r"\.hf_mlp\.", ".hq_mask_mlp."),
    (r"\.compress_vit_feat\.0\.", ".compress_vit_conv1."),
    (r"\.compress_vit_feat\.1\.", ".compress_vit_norm."),
    (r"\.compress_vit_feat\.3\.", ".compress_vit_conv2."),
    (r"\.embedding_encoder\.0\.", ".encoder_conv1."),
    (r"\.embedding_encoder\.1\.", ".encoder_norm."),
    (r"\.embedding_encoder\.3\.", ".encoder_conv2."),
    (r"\.embedding_maskfeature\.0\.", ".mask_conv1."),
    (r"\.embedding_maskfeature\.1\.", ".mask_norm."),
    (r"\.embedding_maskfeature\.3\.", ".mask_conv2."),
)

HEAD = re.compile(
    r"^(.*(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|hf_mlp)\.)"
    r"layers\.(\d+)\."
)
HEADS = 8
"""Of the mask decoder's attention; no tensor's shape tells, and every published model has 8."""


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original checkpoint under their names in transformers."""
    depths: dict[str, int] = {}
    for name in tensors:
        if head := HEAD.match(name):
            depths[head[1]] = max(depths.get(head[1], 0), int(head[2]))
    return {_renamed(name, depths): tensor for name, tensor in tensors.items()}


def _renamed(name: str, depths: Mapping[str, int]) -> str:
    if head := HEAD.match(name):
        at, last = int(head[2]), depths[head[1]]
        layer = "proj_in" if at == 0 else "proj_out" if at == last else f"layers.{at - 1}"
        name = f"{head[1]}{layer}.{name[head.end() :]}"
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def tied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, the shared one under both of its names.

    Raises:
        CheckpointInvalid: it is there twice, and the two differ.
    """
    found = [tensors[name] for name in (SHARED, TIED) if name in tensors]
    if len(found) == 2 and not torch.equal(*found):
        raise CheckpointInvalid(f"{SHARED} and {TIED} differ, which no published model has")
    return tensors | dict.fromkeys((SHARED, TIED), found[0]) if found else tensors


def original_sizes(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The configuration that an original checkpoint does not carry, part by part.

    Raises:
        CheckpointInvalid: tensors that tell sizes are missing.
    """
    with explained(tensors):
        vision = vision_config(tensors)
        return {
            "vision_config": vision,
            "prompt_encoder_config": prompt_config(tensors, vision["image_size"]),
            "mask_decoder_config": decoder_config(tensors),
        }


@contextmanager
def explained(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Reading sizes off a checkpoint of another kind fails in one sentence, which names its family.

    Args:
        tensors: of the checkpoint, by any of its names.
    """
    try:
        yield
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        what = f"it has no tensor {error}" if isinstance(error, KeyError) else "sizes do not fit"
        raise CheckpointInvalid(
            f"the checkpoint is of another family: {what}", hint=family_hint(tensors)
        ) from error


def vision_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the vision transformer, read off its tensors, as transformers' configuration."""
    width, _, patch, _ = tensors["vision_encoder.patch_embed.projection.weight"].shape
    grid = tensors["vision_encoder.pos_embed"].shape[1]
    spans = by_layer(tensors, r"vision_encoder\.layers\.(\d+)\.attn\.rel_pos_h")
    windows = [(len(span) + 1) // 2 for span in spans]
    everywhere = [at for at, window in enumerate(windows) if window == grid]
    return {
        "hidden_size": width,
        "image_size": grid * patch,
        "patch_size": patch,
        "num_hidden_layers": len(spans),
        "num_attention_heads": width // spans[0].shape[1],
        "global_attn_indexes": everywhere,
        "window_size": min(windows),
        "mlp_dim": len(tensors["vision_encoder.layers.0.mlp.lin1.weight"]),
        "output_channels": len(tensors["vision_encoder.neck.conv1.weight"]),
        "num_pos_feats": tensors[SHARED].shape[1],
    }


def decoder_config(tensors: Mapping[str, Tensor], first: str = "lin1") -> dict[str, Any]:
    """Sizes of the mask decoder, likewise; `first` names the first half of its layers' MLP."""
    width = tensors["mask_decoder.iou_token.weight"].shape[1]
    layer = "mask_decoder.transformer.layers.0"
    inner = len(tensors[f"{layer}.cross_attn_token_to_image.q_proj.weight"])
    score = "mask_decoder.iou_prediction_head"
    return {
        "hidden_size": width,
        "mlp_dim": len(tensors[f"{layer}.mlp.{first}.weight"]),
        "num_hidden_layers": len(
            by_layer(tensors, r"mask_decoder\.transformer\.layers\.(\d+)\.layer_norm1\.weight")
        ),
        "num_attention_heads": HEADS,
        "attention_downsample_rate": width // inner,
        "num_multimask_outputs": len(tensors["mask_decoder.mask_tokens.weight"]) - 1,
        "iou_head_depth": 2 + len(by_layer(tensors, rf"{re.escape(score)}\.layers\.(\d+)\.weight")),
        "iou_head_hidden_dim": len(tensors[f"{score}.proj_in.weight"]),
    }


def prompt_config(tensors: Mapping[str, Tensor], side: int) -> dict[str, Any]:
    """Sizes of the prompt encoder, likewise."""
    return {
        "hidden_size": tensors["prompt_encoder.no_mask_embed.weight"].shape[1],
        "image_size": side,
        "mask_input_channels": len(tensors["prompt_encoder.mask_embed.conv2.weight"]),
    }


def by_layer(tensors: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    """Tensors whose name has a layer's number in it, in order."""
    found = {int(m[1]): tensors[m[0]] for name in tensors if (m := re.fullmatch(pattern, name))}
    return [found[at] for at in sorted(found)]
