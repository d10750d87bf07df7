"""A small Qwen-VL (the first) with random weights, laid out as its checkpoint is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SIZES: dict[str, Any] = {
    "model_type": "qwen", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "kv_channels": 64, "intermediate_size": 192, "layer_norm_epsilon": 1e-6, "rotary_pct": 1.0,
    "rotary_emb_base": 10000, "seq_length": 2048, "vocab_size": 1024, "no_bias": True,
    "tie_word_embeddings": False,
    "visual": {
        "image_size": 448, "patch_size": 14, "width": 48, "layers": 2, "heads": 2,
        "mlp_ratio": 4.9231, "output_dim": 128, "image_start_id": 500,
    },
}  # fmt: skip


def make_state(sizes: dict[str, Any] = SIZES, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the checkpoint's own names."""
    generator = torch.Generator().manual_seed(seed)
    hidden, vision = sizes["hidden_size"], sizes["visual"]
    inner, width = sizes["intermediate_size"] // 2, vision["width"]
    wide, out = int(width * vision["mlp_ratio"]), vision["output_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (sizes["vocab_size"], hidden),
        "transformer.ln_f.weight": (hidden,),
        "lm_head.weight": (sizes["vocab_size"], hidden),
    }
    for n in range(sizes["num_hidden_layers"]):
        layer = f"transformer.h.{n}."
        shapes |= {
            f"{layer}ln_1.weight": (hidden,), f"{layer}ln_2.weight": (hidden,),
            f"{layer}attn.c_attn.weight": (3 * hidden, hidden),
            f"{layer}attn.c_attn.bias": (3 * hidden,),
            f"{layer}attn.c_proj.weight": (hidden, hidden),
            f"{layer}mlp.w1.weight": (inner, hidden), f"{layer}mlp.w2.weight": (inner, hidden),
            f"{layer}mlp.c_proj.weight": (hidden, inner),
        }  # fmt: skip
    see = "transformer.visual."
    shapes |= {
        f"{see}positional_embedding": (256, width), f"{see}proj": (out, out),
        f"{see}conv1.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
        f"{see}attn_pool.pos_embed": (256, out), f"{see}attn_pool.query": (256, out),
        f"{see}attn_pool.kv_proj.weight": (out, width),
        f"{see}attn_pool.attn.in_proj_weight": (3 * out, out),
        f"{see}attn_pool.attn.in_proj_bias": (3 * out,),
        f"{see}attn_pool.attn.out_proj.weight": (out, out),
        f"{see}attn_pool.attn.out_proj.bias": (out,),
    }  # fmt: skip
    norms = {"ln_pre": width, "ln_post": out, "attn_pool.ln_q": out, "attn_pool.ln_kv": out}
    for n in range(vision["layers"]):
        block = f"transformer.resblocks.{n}."
        norms |= {f"{block}ln_1": width, f"{block}ln_2": width}
        for name, rows, columns in (
            ("attn.in_proj", 3 * width, width), ("attn.out_proj", width, width),
            ("mlp.c_fc", wide, width), ("mlp.c_proj", width, wide),
        ):  # fmt: skip
            shapes[f"{see}{block}{name}.weight"] = (rows, columns)
            shapes[f"{see}{block}{name}.bias"] = (rows,)
    for name, size in norms.items():
        shapes |= {f"{see}{name}.weight": (size,), f"{see}{name}.bias": (size,)}
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1 and not name.endswith(("wte.weight", "embed", "embedding", "query")):
            noise *= noise[0].numel() ** -0.5 * (2 if "c_attn" in name or "in_proj" in name else 1)
        elif len(shape) == 1:
            noise = 0.2 * noise + ("ln_" in name and name.endswith("weight"))
        state[name] = noise
    return state
