"""Qwen-VL (the first) in plain torch, written from its description, as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segagent_rt.mllm.pictures import bicubic

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


class QwenVlV1:
    """Forward passes without a cache, float32."""

    def __init__(self, state: dict[str, Tensor], sizes: dict[str, Any] = SIZES) -> None:
        self._state = {k.removeprefix("transformer."): v.float() for k, v in state.items()}
        self._sizes, self._seen = sizes, dict[bytes, Tensor]()

    def _w(self, name: str) -> Tensor:
        return self._state[name]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._w(f"{name}.weight"), self._state.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self._w(f"{name}.weight"), self._w(f"{name}.bias"), 1e-6
        )

    @staticmethod
    def _stretch(table: Tensor, side: int) -> Tensor:
        old = int(len(table) ** 0.5)
        square = table.T.reshape(1, -1, old, old)
        wide = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
        return wide[0].flatten(1).T

    def pixels(self, image: np.ndarray) -> Tensor:
        side = self._sizes["visual"]["image_size"]
        scaled = torch.from_numpy(bicubic(image, (side, side)).copy()).permute(2, 0, 1) / 255
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
        return ((scaled - mean) / std)[None]

    @torch.no_grad()
    def see(self, pixels: Tensor) -> Tensor:
        """[1, 3, 448, 448] -> [256, hidden]."""
        vision = self._sizes["visual"]
        grid, heads = vision["image_size"] // vision["patch_size"], vision["heads"]
        x = F.conv2d(pixels, self._w("visual.conv1.weight"), stride=vision["patch_size"])
        x = x.flatten(2).transpose(1, 2)[0]
        x = x + self._stretch(self._w("visual.positional_embedding"), grid)
        x = self._norm(x, "visual.ln_pre")
        for n in range(vision["layers"]):
            block = f"visual.transformer.resblocks.{n}"
            mixed = self._linear(self._norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj")
            q, k, v = mixed.view(len(x), heads, 3, -1).permute(2, 1, 0, 3)
            y = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
            x = x + self._linear(y, f"{block}.attn.out_proj")
            y = F.gelu(self._linear(self._norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
            x = x + self._linear(y, f"{block}.mlp.c_proj")
        return self._norm(self._resample(x, grid), "visual.ln_post") @ self._w("visual.proj")

    def _resample(self, x: Tensor, grid: int) -> Tensor:
        pool = "visual.attn_pool"
        kept = self._norm(self._linear(x, f"{pool}.kv_proj"), f"{pool}.ln_kv")
        places = self._w(f"{pool}.pos_embed")
        query = self._norm(self._w(f"{pool}.query"), f"{pool}.ln_q") + places
        attention = torch.nn.MultiheadAttention(kept.shape[1], max(kept.shape[1] // 128, 1))
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({n: self._w(f"{pool}.attn.{n}") for n in names})
        key = kept + self._stretch(places, grid)
        return attention(query[:, None], key[:, None], kept[:, None])[0][:, 0]

    def _rms(self, x: Tensor, name: str) -> Tensor:
        size = x.pow(2).mean(-1, keepdim=True) + self._sizes["layer_norm_epsilon"]
        return x * size.rsqrt() * self._w(f"{name}.weight")

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """Embeddings [T, hidden] -> logits [T, V]."""
        heads, width = self._sizes["num_attention_heads"], self._sizes["kv_channels"]
        speed = self._sizes["rotary_emb_base"] ** -(torch.arange(0, width, 2) / width)
        angle = (torch.arange(len(x))[:, None] * speed).repeat(1, 2)

        def turn(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * angle.cos() + torch.cat([-b, a], -1) * angle.sin()

        for n in range(self._sizes["num_hidden_layers"]):
            y = self._linear(self._rms(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn")
            q, k, v = (p.view(len(x), heads, width).transpose(0, 1) for p in y.chunk(3, -1))
            y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
            x = x + self._linear(y.transpose(0, 1).flatten(1), f"h.{n}.attn.c_proj")
            y = self._rms(x, f"h.{n}.ln_2")
            gated = self._linear(y, f"h.{n}.mlp.w1") * F.silu(self._linear(y, f"h.{n}.mlp.w2"))
            x = x + self._linear(gated, f"h.{n}.mlp.c_proj")
        return F.linear(self._rms(x, "ln_f"), self._w("lm_head.weight"))

    def picture(self, image: np.ndarray) -> Tensor:
        """Embeddings of a picture; those of the last one are kept."""
        key = image.tobytes()
        if key not in self._seen:
            self._seen = {key: self.see(self.pixels(image))}
        return self._seen[key]

    def logits(self, image: np.ndarray, lead: list[int], tail: list[int]) -> np.ndarray:
        table = self._w("wte.weight")
        x = torch.cat([table[lead], self.picture(image), table[tail]])
        return self.read(x)[-len(tail) :].numpy()
