"""Checkpoints of real size with random weights in bfloat16: shards of safetensors, an index, a
configuration, and a small tokenizer, as if they had been downloaded.

Residual branches are scaled by depth, as models are initialised, so that activations stay of
ordinary size down to the logits. Such weights have no outliers and no meaning: what can be
measured with them is time, memory, disk, and the distance of graphs from torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from segagent_rt.mllm.prompts import PRESETS
from segagent_rt_export.families.demo_mllm.tokenizer import train_byte_level_bpe
from segagent_rt_export.families.qwen_vl_v1.tiktoken import SPLIT

SHARD = 2_000_000_000
"""Bytes of a shard, about."""

POOL = 50_000_017
"""Random numbers that are drawn; larger tensors repeat them, each begins at another place."""

Shapes = Mapping[str, tuple[int, ...]]

SPECIALS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>",
    "<|vision_end|>", "<ref>", "</ref>", "<img>", "</img>", "<imgpad>",
)  # fmt: skip

QWEN2_5_VL_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}  # fmt: skip
QWEN_VL: dict[str, Any] = {
    "model_type": "qwen", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "kv_channels": 128, "intermediate_size": 22016, "layer_norm_epsilon": 1e-6, "rotary_pct": 1.0,
    "rotary_emb_base": 10000, "seq_length": 2048, "vocab_size": 151936, "no_bias": True,
    "tie_word_embeddings": False,
    "visual": {
        "image_size": 448, "patch_size": 14, "width": 1664, "layers": 48, "heads": 16,
        "mlp_ratio": 4.9231, "output_dim": 4096, "image_start_id": 151857,
    },
}  # fmt: skip
QWEN2_5_VL_HALF_B: dict[str, Any] = QWEN2_5_VL_3B | {
    "text_config": QWEN2_5_VL_3B["text_config"] | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12],
        },
    },
    "vision_config": QWEN2_5_VL_3B["vision_config"] | {"out_hidden_size": 896},
}  # fmt: skip
"""Qwen2.5-VL's vision encoder in front of a language model of the size of Qwen2.5-0.5B."""

QWEN3_VL_2B: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 262144, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2,
        "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 2304,
    },
}  # fmt: skip
QWEN3_VL_PICTURES = {
    "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}  # fmt: skip


def _smaller(config: dict[str, Any]) -> dict[str, Any]:
    """A model of the same architecture for tests."""
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2048,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    rope = config["text_config"]["rope_parameters"] | {"mrope_section": [2, 3, 3]}
    vision: dict[str, Any] = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": 64,
    }  # fmt: skip
    if "deepstack_visual_indexes" in config["vision_config"]:
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    else:
        vision["fullatt_block_indexes"] = [1]
    return config | {
        "text_config": config["text_config"] | text | {"rope_parameters": rope},
        "vision_config": config["vision_config"] | vision,
    }


CONFIGS = {
    "qwen2.5-vl-3b": QWEN2_5_VL_3B,
    "qwen-vl": QWEN_VL,
    "qwen2.5-vl-0.5b": QWEN2_5_VL_HALF_B,
    "qwen3-vl-2b": QWEN3_VL_2B,
    "qwen2.5-vl-small": _smaller(QWEN2_5_VL_HALF_B),
    "qwen3-vl-small": _smaller(QWEN3_VL_2B),
}


def write_checkpoint(name: str, folder: Path) -> int:
    """Write the checkpoint of one of `CONFIGS`; returns its number of weights."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = CONFIGS[name]
    if config["model_type"] == "qwen":
        shapes, depth = _qwen_vl_shapes(config), config["num_hidden_layers"]
    else:
        config = config | {"image_token_id": tokenizer.token_to_id("<|image_pad|>")}
        shapes, depth = _transformers_shapes(config), config["text_config"]["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if config["model_type"] == "qwen3_vl":  # its patches are not those that the processor assumes
        (folder / "preprocessor_config.json").write_text(json.dumps(QWEN3_VL_PICTURES), "utf-8")
    _write_shards(folder, _fill(shapes, depth))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    shard, places, count = dict[str, Tensor](), dict[str, str](), 0

    def flush() -> None:
        nonlocal shard, count
        count += 1
        file = f"model-{count:05d}.safetensors"
        save_file(shard, folder / file)
        places.update(dict.fromkeys(shard, file))
        shard = {}

    for name, tensor in tensors:
        shard[name] = tensor
        if sum(held.nbytes for held in shard.values()) > SHARD:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def _fill(shapes: Shapes, depth: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=generator)
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        start = int(torch.randint(max(POOL - count, 1), (1,), generator=generator))
        long = pool if start + count <= POOL else pool.repeat(1 + (start + count) // POOL)
        values = long[start : start + count].reshape(shape)
        yield name, _scaled(name, values, depth).to(torch.bfloat16)


def _scaled(name: str, noise: Tensor, depth: int) -> Tensor:
    """Norms about 1, biases small, matrices by what they take in, residual branches by depth."""
    if noise.ndim == 1:
        norm = "norm" in name or "ln_" in name
        return 0.02 * noise + float(norm and name.endswith("weight"))
    if name.endswith(("embed_tokens.weight", "wte.weight", "embed", "embedding", "query")):
        return noise
    into = ("o_proj", "down_proj", "c_proj", "out_proj", "attn.proj")
    branch = (2 * depth) ** -0.5 if any(part in name for part in into) else 1.0
    return noise * float(branch * noise[0].numel() ** -0.5)


def _transformers_shapes(config: dict[str, Any]) -> Shapes:
    """As transformers itself names and sizes them."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        known = AutoConfig.for_model(**config)
        model = AutoModelForImageTextToText.from_config(known)
    return {name: tuple(held.shape) for name, held in model.named_parameters()}


def _qwen_vl_shapes(config: dict[str, Any]) -> Shapes:
    """By the names of Qwen-VL's checkpoint, 853 tensors."""
    hidden, inner, vision = (
        config["hidden_size"],
        config["intermediate_size"] // 2,
        config["visual"],
    )
    table = (config["vocab_size"], hidden)
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": table, "lm_head.weight": table}
    shapes["transformer.ln_f.weight"] = (hidden,)
    for number in range(config["num_hidden_layers"]):
        for name, shape in {
            "ln_1.weight": (hidden,), "ln_2.weight": (hidden,),
            "attn.c_attn.weight": (3 * hidden, hidden), "attn.c_attn.bias": (3 * hidden,),
            "attn.c_proj.weight": (hidden, hidden), "mlp.w1.weight": (inner, hidden),
            "mlp.w2.weight": (inner, hidden), "mlp.c_proj.weight": (hidden, inner),
        }.items():  # fmt: skip
            shapes[f"transformer.h.{number}.{name}"] = shape
    seen = _qwen_vl_vision(vision)
    return shapes | {f"transformer.visual.{name}": shape for name, shape in seen.items()}


def _qwen_vl_vision(vision: dict[str, Any]) -> Shapes:
    width, out, patch = vision["width"], vision["output_dim"], vision["patch_size"]
    wide = int(width * vision["mlp_ratio"])
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 3, patch, patch), "positional_embedding": (256, width),
        "proj": (out, out), "attn_pool.pos_embed": (256, out), "attn_pool.query": (256, out),
        "attn_pool.kv_proj.weight": (out, width), "attn_pool.attn.in_proj_weight": (3 * out, out),
        "attn_pool.attn.in_proj_bias": (3 * out,), "attn_pool.attn.out_proj.weight": (out, out),
        "attn_pool.attn.out_proj.bias": (out,),
    }  # fmt: skip
    norms = {"ln_pre": width, "ln_post": out, "attn_pool.ln_q": out, "attn_pool.ln_kv": out}
    linear = {
        "attn.in_proj": (3 * width, width), "attn.out_proj": (width, width),
        "mlp.c_fc": (wide, width), "mlp.c_proj": (width, wide),
    }  # fmt: skip
    for number in range(vision["layers"]):
        block = f"transformer.resblocks.{number}"
        norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
        for name, (rows, columns) in linear.items():
            shapes[f"{block}.{name}.weight"] = (rows, columns)
            shapes[f"{block}.{name}.bias"] = (rows,)
    for name, size in norms.items():
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)
    return shapes


def _tokenizer() -> Tokenizer:
    """Byte-level, digits alone, with the prompt's words: prompts are about as long as in life."""
    texts = [preset.instruction for preset in PRESETS.values()]
    corpus = [*texts, " Current IOU: Positive point: Negative point"] * 3
    return train_byte_level_bpe(SPLIT, 2000, corpus, SPECIALS)
