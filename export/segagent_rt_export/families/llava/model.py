"""LLaVA-1.5: CLIP, a projector of two layers, and LLaMA."""

from __future__ import annotations

from segagent_rt.mllm.preprocess import CenterCrop, PadToSquare, SquareResize
from segagent_rt.mllm.vision_encoder import VisionSettings
from segagent_rt_export.families.llava.clip import ClipShape
from segagent_rt_export.families.mllm_model import Given, Model, activation_of, settings_of
from segagent_rt_export.graphs.patch_embedding import CLIP_PIXELS, Pixels

CLIP = "clip_vision_model"
VICUNA = {"hidden": 4096, "heads": 32, "layers": 32, "inner": 11008}
"""Sizes that configurations leave out."""


def llava(given: Given) -> Model:
    """LLaVA."""
    config, vision, text = given.config, given.vision, given.text
    if text.text("model_type", "llama") not in ("llama", "vicuna"):
        raise text.refuse("model_type", "LLaVA is exported with LLaMA only")
    if vision.text("model_type", CLIP) not in (CLIP, ""):
        raise vision.refuse("model_type", "LLaVA is exported with CLIP only")
    if config.text("vision_feature_select_strategy", "default") != "default":
        raise config.refuse("vision_feature_select_strategy", "the class token is not put out")
    language = given.language(VICUNA, 1e-6)
    patch, side = vision.size("patch_size", 14), vision.size("image_size", 336)
    encoder = ClipShape(
        depth=_depth(given),
        width=vision.size("hidden_size", 1024),
        inner=vision.size("intermediate_size", 4096),
        heads=vision.size("num_attention_heads", 16),
        output=language.hidden,
        pixels=given.pixels(CLIP_PIXELS),
        grid=side // patch,
        patch=patch,
        epsilon=vision.number("layer_norm_eps", 1e-5),
        activation=activation_of(vision, "quick_gelu"),
        projector=activation_of(config, "gelu", "projector_hidden_act"),
    )
    rope = given.rope(language.heads.width, 1e4, "plain")
    seen = VisionSettings(patch, _resize(given, side, encoder.pixels))
    settings = settings_of(language, rope, text.size("max_position_embeddings", 2048))
    return Model("llava", encoder, language, seen, settings, given.tied)


def _depth(given: Given) -> int:
    """Layers of CLIP below the features; -2 stands for all but the last."""
    layers = given.vision.size("num_hidden_layers", 24)
    layer = given.config.number("vision_feature_layer", -2)
    depth = int(layer) if layer >= 0 else int(layers + 1 + layer)
    if not 0 < depth <= layers:
        raise given.config.refuse("vision_feature_layer", f"the vision encoder has {layers} layers")
    return depth


def _resize(given: Given, side: int, pixels: Pixels) -> CenterCrop | PadToSquare | SquareResize:
    """LLaVA's own processor may pad; CLIP's crops, unless it is told to squash."""
    processor = given.processor
    if processor.flag("do_pad"):
        red, green, blue = (int(value * 255) for value in pixels.mean)
        return PadToSquare(side, (red, green, blue))
    size = processor.section("size")
    if "height" in size.fields:
        return SquareResize(side)
    if not processor.flag("do_center_crop", default=True):
        raise processor.refuse("do_center_crop", "the picture would not be a square")
    return CenterCrop(size.size("shortest_edge", side), side)
