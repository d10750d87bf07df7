"""Qwen-VL, the first, which SegAgent's released checkpoints are."""

from __future__ import annotations

from segagent_rt.mllm.pictures import Squash
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt.mllm.vision import VisionSettings
from segagent_rt_export.mllm.attention import Heads
from segagent_rt_export.mllm.families.model import Given, Model, settings_of
from segagent_rt_export.mllm.language import LanguageShape
from segagent_rt_export.mllm.towers.patches import CLIP_PIXELS
from segagent_rt_export.mllm.towers.qwen_v1 import QwenV1Shape

TABLE_SIDE = 16
"""The stored table of positions has 16 x 16 entries, whatever the picture's size."""


def qwen_vl(given: Given) -> Model:
    """Qwen-VL and Qwen-VL-Chat."""
    config, vision = given.config, given.config.section("visual")
    if config.number("rotary_pct", 1.0) != 1.0:
        raise config.refuse("rotary_pct", "only whole heads are rotated here")
    hidden, heads = config.size("hidden_size", 4096), config.size("num_attention_heads", 32)
    width, patch = vision.size("width", 1664), vision.size("patch_size", 14)
    language = LanguageShape(
        layers=config.size("num_hidden_layers", 32),
        hidden=hidden,
        inner=config.size("intermediate_size", 22016) // 2,
        heads=Heads(heads, heads, config.size("kv_channels", 128)),
        epsilon=config.number("layer_norm_epsilon", 1e-6),
    )
    tower = QwenV1Shape(
        depth=vision.size("layers", 48),
        width=width,
        inner=int(width * vision.number("mlp_ratio", 4.9231)),
        heads=vision.size("heads", 16),
        output=vision.size("output_dim", hidden),
        pixels=CLIP_PIXELS,
        grid=vision.size("image_size", 448) // patch,
        queries=round(vision.size("n_queries", TABLE_SIDE**2) ** 0.5),
        patch=patch,
    )
    rope = RopeSettings(language.heads.width, config.number("rotary_emb_base", 10000.0))
    # longer sequences would need logarithmic scaling of queries, and another base
    context = config.size("seq_length", 2048)
    seen = VisionSettings(patch, Squash(tower.grid * patch), grid=(tower.queries, tower.queries))
    settings = settings_of(language, rope, context)
    return Model("qwen_vl", tower, language, seen, settings, given.tied)
