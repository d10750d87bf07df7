"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segagent_rt.mllm.patch_layout import VisionRope2D
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt.mllm.vision_encoder import VisionSettings
from segagent_rt_export.families.mllm_model import Given, Model, activation_of, settings_of
from segagent_rt_export.families.qwen_vl.vision_qwen2 import Qwen2Shape
from segagent_rt_export.families.qwen_vl.vision_qwen2_5 import Qwen25Shape
from segagent_rt_export.families.qwen_vl.vision_qwen3 import Qwen3Shape
from segagent_rt_export.graphs.language_model import LanguageShape
from segagent_rt_export.graphs.patch_embedding import CLIP_PIXELS, HALF_PIXELS

CONTEXT = {"qwen2_vl": 32768, "qwen2_5_vl": 32768, "qwen3_vl": 128000}
"""Tokens of the context, where a checkpoint does not say."""


def qwen2_vl(given: Given) -> Model:
    """Qwen2-VL."""
    vision, language = given.vision, given.language({}, 1e-5)
    width = vision.size("embed_dim", 1280)
    encoder = Qwen2Shape(
        depth=vision.size("depth", 32),
        width=width,
        inner=int(width * vision.number("mlp_ratio", 4)),
        heads=vision.size("num_heads", 16),
        output=language.hidden,
        pixels=given.pixels(CLIP_PIXELS),
        patch=vision.size("patch_size", 14),
        merge=vision.size("spatial_merge_size", 2),
        activation=activation_of(vision, "quick_gelu"),
    )
    rope = given.rope(language.heads.width, 1e6, "chunked")
    return _model("qwen2_vl", given, encoder, language, rope)


def qwen2_5_vl(given: Given) -> Model:
    """Qwen2.5-VL."""
    vision, language = given.vision, given.language({}, 1e-5)
    if activation_of(vision, "silu") != "silu":
        raise vision.refuse("hidden_act", "this vision encoder is built with silu")
    patch, merge = vision.size("patch_size", 14), vision.size("spatial_merge_size", 2)
    encoder = Qwen25Shape(
        depth=vision.size("depth", 32),
        width=vision.size("hidden_size", 3584),
        inner=vision.size("intermediate_size", 3420),
        heads=vision.size("num_heads", 16),
        output=language.hidden,
        pixels=given.pixels(CLIP_PIXELS),
        window=vision.size("window_size", 112) // patch // merge,
        full=vision.sizes("fullatt_block_indexes", (7, 15, 23, 31)),
        patch=patch,
        merge=merge,
    )
    rope = given.rope(language.heads.width, 1e6, "chunked")
    return _model("qwen2_5_vl", given, encoder, language, rope, window=encoder.window)


def qwen3_vl(given: Given) -> Model:
    """Qwen3-VL."""
    vision = given.vision
    stacked = vision.sizes("deepstack_visual_indexes", (8, 16, 24))
    language = replace(
        given.language({"head_dim": 128}, 1e-6), head_norms=True, deepstack=len(stacked)
    )
    encoder = Qwen3Shape(
        depth=vision.size("depth", 27),
        width=vision.size("hidden_size", 1152),
        inner=vision.size("intermediate_size", 4304),
        heads=vision.size("num_heads", 16),
        output=language.hidden,
        pixels=given.pixels(HALF_PIXELS),
        table=vision.size("num_position_embeddings", 2304),
        deepstack=stacked,
        patch=vision.size("patch_size", 16),
        merge=vision.size("spatial_merge_size", 2),
        activation=activation_of(vision, "gelu_pytorch_tanh"),
    )
    rope = given.rope(language.heads.width, 5e5, "interleaved")
    side = round(encoder.table**0.5)
    return _model("qwen3_vl", given, encoder, language, rope, table=side, deepstack=len(stacked))


def _model(
    family: str,
    given: Given,
    encoder: Qwen2Shape | Qwen25Shape | Qwen3Shape,
    language: LanguageShape,
    rope: RopeSettings,
    **geometry: Any,
) -> Model:
    """`geometry` are further fields of the vision settings."""
    context = given.text.size("max_position_embeddings", CONTEXT[family])
    unit = encoder.patch * encoder.merge
    cap = given.cap(unit, context)
    theta = given.vision.section("rope_parameters").number("rope_theta", 10000.0)
    vision = VisionSettings(
        encoder.patch,
        given.smart(unit, cap),
        encoder.merge,
        rope=VisionRope2D(encoder.width // encoder.heads, theta),
        **geometry,
    )
    settings = settings_of(language, rope, context)
    return Model(family, encoder, language, vision, settings, given.tied, cap)
