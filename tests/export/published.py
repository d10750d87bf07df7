"""Configurations as published, and checkpoints of random weights with fewer layers of them.

Widths, heads, windows, vocabularies and picture sizes are those of the published `config.json`
files. Only the numbers of layers are reduced; the indices of special layers follow them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

from tests.export.command.checkpoints import awaken
from tests.export.mllm import small_models


@dataclass(frozen=True)
class PublishedSegmenter:
    """A published segmenter: its family, and how its model is made whole or with fewer layers."""

    family: str
    make: Callable[[bool], PreTrainedModel]

    def whole(self) -> PreTrainedModel:
        """With all layers, without memory for its weights."""
        with torch.device("meta"):
            return self.make(True)

    def save(self, folder: Path) -> Path:
        """A checkpoint with fewer layers."""
        folder.mkdir()
        awaken(self.make(False)).save_pretrained(folder)
        return folder


def sam(width: int, layers: int, heads: int, seen: list[int], inner: int) -> PublishedSegmenter:
    def make(whole: bool) -> PreTrainedModel:
        vision = {
            "hidden_size": width, "num_attention_heads": heads, "mlp_dim": inner,
            "num_hidden_layers": layers if whole else 2,
            "global_attn_indexes": seen if whole else [1],
        }  # fmt: skip
        return SamModel(SamConfig(vision_config=vision))

    return PublishedSegmenter("sam", make)


def sam_hq(whole: bool) -> PreTrainedModel:
    vision = {} if whole else {"num_hidden_layers": 2, "global_attn_indexes": [1]}
    return SamHQModel(SamHQConfig(vision_config=vision, mask_decoder_config={"vit_dim": 768}))


def hiera(
    width: int, layers: list[int], heads: int, seen: list[int], windows: list[int], table: int
) -> PublishedSegmenter:
    """SAM 2.1 on a Hiera trunk, with the first stage's number of heads, which each next doubles."""

    def make(whole: bool) -> PreTrainedModel:
        widths = [width * 2**stage for stage in range(4)]
        trunk = {
            "model_type": "sam2_hiera_det_model", "hidden_size": width,
            "blocks_per_stage": layers if whole else [1, 2, 2, 1], "embed_dim_per_stage": widths,
            "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
            "window_size_per_stage": windows,
            "global_attention_blocks": seen if whole else [4],
            "window_positional_embedding_background_size": [table, table],
        }  # fmt: skip
        vision = {"backbone_config": trunk, "backbone_channel_list": widths[::-1]}
        return Sam2Model(Sam2Config(vision_config=vision))

    return PublishedSegmenter("sam2", make)


SEGMENTERS = {
    "facebook/sam-vit-base": sam(768, 12, 12, [2, 5, 8, 11], 3072),
    "facebook/sam-vit-large": sam(1024, 24, 16, [5, 11, 17, 23], 4096),
    "facebook/sam-vit-huge": sam(1280, 32, 16, [7, 15, 23, 31], 5120),
    "syscv-community/sam-hq-vit-base": PublishedSegmenter("sam_hq", sam_hq),
    "facebook/sam2.1-hiera-tiny": hiera(96, [1, 2, 7, 2], 1, [5, 7, 9], [8, 4, 14, 7], 7),
    "facebook/sam2.1-hiera-small": hiera(96, [1, 2, 11, 2], 1, [7, 10, 13], [8, 4, 14, 7], 7),
    "facebook/sam2.1-hiera-base-plus": hiera(
        112, [2, 3, 16, 3], 2, [12, 16, 20], [8, 4, 14, 7], 14
    ),
    "facebook/sam2.1-hiera-large": hiera(144, [2, 6, 36, 4], 2, [23, 33, 43], [8, 4, 16, 8], 7),
}


@dataclass(frozen=True)
class PublishedMllm:
    """A published MLLM: text and vision of its configuration."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool = False

    def whole(self) -> PreTrainedModel:
        """With all layers, without memory for its weights."""
        with torch.device("meta"):
            return self.make({})

    def make(self, tokens: dict[str, int]) -> PreTrainedModel:
        image = {"image_token_id": tokens["<|image_pad|>"]} if tokens else {}
        text = self.text | {"bos_token_id": None, "eos_token_id": None}
        if self.family == "llava":
            image = {"image_token_index": tokens["<image>"]} if tokens else {}
            config = LlavaConfig(
                vision_config=CLIPVisionConfig(**self.vision),
                text_config=LlamaConfig(**text),
                **image,
            )
            return LlavaForConditionalGeneration(config)
        kinds: dict[str, tuple[Any, Any]] = {
            "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
            "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
            "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
        }
        configuration, model = kinds[self.family]
        config = configuration(
            text_config=text | {"tie_word_embeddings": self.tied}, vision_config=self.vision,
            tie_word_embeddings=self.tied, **image,
        )  # fmt: skip
        return model(config)

    def save(self, folder: Path) -> Path:
        """A checkpoint with fewer layers, and a tokenizer of few words."""
        folder.mkdir()
        fewer: dict[str, dict[str, Any]] = {
            "qwen2_vl": {"depth": 2},
            "qwen2_5_vl": {"depth": 2, "fullatt_block_indexes": [1]},
            "qwen3_vl": {"depth": 4, "deepstack_visual_indexes": [0, 1, 2]},
            "llava": {"num_hidden_layers": 3},
        }
        text = self.text | {"num_hidden_layers": 4 if self.family == "qwen3_vl" else 2}
        small = replace(self, text=text, vision=self.vision | fewer[self.family])
        template = small_models.FAMILIES[self.family]
        preprocessing = template.preprocessing
        if self.family == "llava":
            side = self.vision["image_size"]
            crop = {"height": side, "width": side}
            preprocessing = preprocessing | {"size": {"shortest_edge": side}, "crop_size": crop}
        family = replace(template, make=small.make, preprocessing=preprocessing)
        small_models.save_family(family, folder, small_models.train_tokenizer())
        return folder


def _qwen(
    width: int, inner: int, layers: int, heads: int, groups: int, words: int
) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": words,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    }  # fmt: skip


_CHUNKED = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_MIXED = {
    "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
    "mrope_interleaved": True,
}  # fmt: skip


def qwen2(width: int, inner: int, heads: int, groups: int, words: int) -> PublishedMllm:
    text = _qwen(width, inner, 28, heads, groups, words) | {"rope_parameters": _CHUNKED}
    vision = {
        "depth": 32,
        "embed_dim": 1280,
        "num_heads": 16,
        "hidden_size": width,
        "patch_size": 14,
    }
    return PublishedMllm("qwen2_vl", text, vision, tied=width < 2000)


def qwen2_5(text: dict[str, Any], *, tied: bool) -> PublishedMllm:
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "out_hidden_size": text["hidden_size"], "patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return PublishedMllm("qwen2_5_vl", text | {"rope_parameters": _CHUNKED}, vision, tied)


def qwen3(text: dict[str, Any], *, tied: bool, large: bool = False) -> PublishedMllm:
    vision: dict[str, Any] = {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096,
        "deepstack_visual_indexes": [5, 11, 17],
    }  # fmt: skip
    if large:
        vision = {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304,
            "deepstack_visual_indexes": [8, 16, 24],
        }  # fmt: skip
    vision |= {
        "num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304,
        "out_hidden_size": text["hidden_size"],
    }  # fmt: skip
    whole = text | {"head_dim": 128, "rope_parameters": _MIXED}
    return PublishedMllm("qwen3_vl", whole, vision, tied)


MLLMS = {
    "Qwen/Qwen2-VL-2B-Instruct": qwen2(1536, 8960, 12, 2, 151936),
    "Qwen/Qwen2-VL-7B-Instruct": qwen2(3584, 18944, 28, 4, 152064),
    "Qwen/Qwen2.5-VL-3B-Instruct": qwen2_5(_qwen(2048, 11008, 36, 16, 2, 151936), tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": qwen2_5(_qwen(3584, 18944, 28, 28, 4, 152064), tied=False),
    "Qwen/Qwen3-VL-2B-Instruct": qwen3(_qwen(2048, 6144, 28, 16, 8, 151936), tied=True),
    "nvidia/EGM-4B": qwen3(_qwen(2560, 9728, 36, 32, 8, 151936), tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": qwen3(
        _qwen(4096, 12288, 36, 32, 8, 151936), tied=False, large=True
    ),
    "llava-hf/llava-1.5-7b-hf": PublishedMllm(
        "llava",
        {
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        },
        {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
        },
    ),
}  # fmt: skip


def save_edgetam(folder: Path) -> Path:
    """EdgeTAM at its published size: RepViT-M1, which is small enough to keep every layer."""
    from segagent_rt_export.families.edgetam.export import EdgeTam
    from segagent_rt_export.families.edgetam.repvit import RepVit

    config = Sam2Config(
        vision_config={
            "backbone_config": {"model_type": "sam2_hiera_det_model"},
            "backbone_channel_list": [384, 192, 96, 48],
        }
    )
    config.mask_decoder_config._attn_implementation = "eager"
    net = awaken(EdgeTam(RepVit((48, 96, 192, 384), (2, 2, 14, 2)), config))
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    described = config.to_json_string(use_diff=False)
    trunk = '"model_type": "sam2_hiera_det_model"'
    described = described.replace(trunk, '"model_type": "timm_wrapper"')
    described = described.replace('"model_type": "sam2"', '"model_type": "edgetam_video"')
    (folder / "config.json").write_text(described)
    return folder
