"""Qwen-VL, the first, which SegAgent's released checkpoints are."""

from __future__ import annotations

from segagent_rt.mllm.preprocess import SquareResize
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt.mllm.vision_encoder import VisionSettings
from segagent_rt_export.families.mllm_model import Given, Model, settings_of
from segagent_rt_export.families.qwen_vl_v1.vision import QwenV1Shape
from segagent_rt_export.graphs.attention import Heads
from segagent_rt_export.graphs.language_model import LanguageShape
from segagent_rt_export.graphs.patch_embedding import CLIP_PIXELS

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
    encoder = QwenV1Shape(
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
    seen = VisionSettings(
        patch, SquareResize(encoder.grid * patch), grid=(encoder.queries, encoder.queries)
    )
    settings = settings_of(language, rope, context)
    return Model("qwen_vl", encoder, language, seen, settings, given.tied)
