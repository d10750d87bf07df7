"""Small checkpoints with random weights, in the formats in which real ones are published."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Sam2Config,
    Sam2Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

from benchmarks.random_weights import awaken
from segagent_rt_export.families.edgetam.export import EdgeTam
from segagent_rt_export.families.edgetam.repvit import RepVit
from segagent_rt_export.families.mobile_sam.tiny_vit import TinyVit, TinyVitShape
from segagent_rt_export.sources import sam_layout
from tests.export.mllm import small_models
from tests.export.mllm.conftest import v1_ranks
from tests.export.mllm.qwen_vl_v1 import SIZES, make_state
from tests.export.simple_click import made_up

SAM_SIZES: dict[str, dict[str, Any]] = {
    "vision_config": {
        "image_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "global_attn_indexes": [1], "window_size": 4, "output_channels": 32, "num_pos_feats": 16,
        "mlp_dim": 64,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 96},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
}  # fmt: skip
SAM2_SIZES: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model", "hidden_size": 16, "image_size": [128, 128],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [16, 32, 64, 128], "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 4, 4], "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [7, 7],
        },
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
}  # fmt: skip
SAM3_SIZES: dict[str, Any] = {
    "vision_config": {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model", "image_size": 224, "hidden_size": 48,
            "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2,
            "pretrain_image_size": 84, "window_size": 8, "global_attn_indexes": [1],
        },
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 224},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
}  # fmt: skip
EDGETAM_SIZES: dict[str, Any] = SAM2_SIZES | {
    "vision_config": {
        "backbone_config": {"model_type": "sam2_hiera_det_model"},
        "backbone_channel_list": [48, 32, 24, 16],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    },
}
TINY_VIT = TinyVitShape((8, 16, 16, 32), (1, 1, 2, 1), (0, 2, 2, 4), (0, 7, 14, 7), outputs=32)
NAMES = Path(__file__).parents[2] / "golden" / "sam_original_names.txt"


def save(family: str, root: Path) -> Path:
    """A checkpoint of a family below `root`, a folder or a file."""
    place = root / family
    place.mkdir()
    return MADE[family](place)


def save_sam(place: Path) -> Path:
    awaken(SamModel(SamConfig(**SAM_SIZES))).save_pretrained(place)
    return place


def save_sam_hq(place: Path) -> Path:
    sizes = SAM_SIZES | {"mask_decoder_config": SAM_SIZES["mask_decoder_config"] | {"vit_dim": 32}}
    awaken(SamHQModel(SamHQConfig(**sizes))).save_pretrained(place)
    return place


def save_sam2(place: Path) -> Path:
    awaken(Sam2Model(Sam2Config(**SAM2_SIZES))).save_pretrained(place)
    return place


def save_sam3(place: Path, sizes: dict[str, Any] = SAM3_SIZES) -> Path:
    config = Sam3TrackerConfig(**copy.deepcopy(sizes))  # transformers takes it apart
    awaken(Sam3TrackerModel(config)).save_pretrained(place)
    return place


def save_edgetam(place: Path) -> Path:
    """As published: the video model, its trunk from timm."""
    config = Sam2Config(**EDGETAM_SIZES)
    config.mask_decoder_config._attn_implementation = "eager"
    net = awaken(EdgeTam(RepVit((16, 24, 32, 48), (2, 2, 3, 1)), config))
    save_file(net.state_dict() | {"memory_encoder.x": torch.zeros(2)}, place / "model.safetensors")
    described = json.loads(config.to_json_string(use_diff=False)) | {"model_type": "edgetam_video"}
    described["vision_config"]["backbone_config"] = {"model_type": "timm_wrapper"}
    (place / "config.json").write_text(json.dumps(described))
    return place


def save_mobile_sam(
    place: Path, sizes: dict[str, dict[str, Any]] = SAM_SIZES, shape: TinyVitShape = TINY_VIT
) -> Path:
    """Under the names of `mobile_sam.pt`; its square is always 1024."""
    prompts = sizes.get("prompt_encoder_config", {}) | {"image_size": 1024}
    lender = awaken(SamModel(SamConfig(**sizes | {"prompt_encoder_config": prompts})))
    names = [n for n in NAMES.read_text("utf-8").split() if not n.startswith("image_encoder.")]
    renamed = sam_layout.renamed(dict.fromkeys(names, torch.zeros(1)))
    tensors = {old: lender.state_dict()[new] for old, new in zip(names, renamed, strict=True)}
    encoder = awaken(TinyVit(shape)).state_dict()
    tensors |= {f"image_encoder.{name}": tensor for name, tensor in encoder.items()}
    torch.save(tensors, place / "mobile_sam.pt")
    return place / "mobile_sam.pt"


def save_simple_click(place: Path) -> Path:
    return made_up.save(place / "xtiny.pth", made_up.content(made_up.Sizes()))


def save_mllm(family: str, place: Path) -> Path:
    tokenizer = small_models.train_tokenizer()
    small_models.save_family(small_models.FAMILIES[family], place, tokenizer)
    return place


def save_qwen_vl(place: Path, sizes: dict[str, Any] = SIZES) -> Path:
    torch.save(make_state(sizes), place / "pytorch_model.bin")
    (place / "config.json").write_text(json.dumps(sizes))
    (place / "qwen.tiktoken").write_bytes(v1_ranks(small_models.train_tokenizer()))
    return place


MADE: dict[str, Callable[[Path], Path]] = {
    "simple_click": save_simple_click, "sam": save_sam, "sam_hq": save_sam_hq, "sam2": save_sam2,
    "sam3": save_sam3, "edgetam": save_edgetam, "mobile_sam": save_mobile_sam,
    "qwen_vl": save_qwen_vl,
    "qwen2_vl": partial(save_mllm, "qwen2_vl"), "qwen2_5_vl": partial(save_mllm, "qwen2_5_vl"),
    "qwen3_vl": partial(save_mllm, "qwen3_vl"), "llava": partial(save_mllm, "llava"),
}  # fmt: skip
"""How the checkpoint of each family is made in an empty folder."""
