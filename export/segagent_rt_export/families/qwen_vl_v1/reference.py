"""Qwen-VL (the first) in plain torch, written from its description: what its graphs are compared
with. transformers has no such model; its authors' own code is not run.

Weights are read when they are needed, so that the largest of them is what lies in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segagent_rt.mllm.preprocess import bicubic
from segagent_rt.types import Size


class QwenVlV1:
    """Forward passes without a cache, float32.

    `state` holds tensors by the checkpoint's own names, `sizes` is its configuration.
    """

    def __init__(self, state: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
        self._state, self._sizes = state, sizes
        self._seen: dict[bytes, Tensor] = {}

    def _w(self, name: str) -> Tensor:
        tensor = self._state[name if name.startswith("lm_head.") else f"transformer.{name}"]
        return torch.as_tensor(tensor).float()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        has_bias = f"transformer.{name}.bias" in self._state
        bias = self._w(f"{name}.bias") if has_bias else None
        return F.linear(x, self._w(f"{name}.weight"), bias)

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
        scaled = torch.as_tensor(bicubic(image, (side, side)).copy()).permute(2, 0, 1) / 255
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
        mixed: Tensor = attention(query[:, None], key[:, None], kept[:, None])[0]
        return mixed[:, 0]

    def _rms(self, x: Tensor, name: str) -> Tensor:
        size = x.pow(2).mean(-1, keepdim=True) + self._sizes["layer_norm_epsilon"]
        normed: Tensor = x * size.rsqrt() * self._w(f"{name}.weight")
        return normed

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """Embeddings [T, hidden] -> logits [T, V]."""
        heads, width = self._sizes["num_attention_heads"], self._sizes["kv_channels"]
        speed = self._sizes["rotary_emb_base"] ** -(torch.arange(0, width, 2) / width)
        angle = (torch.arange(len(x))[:, None] * speed).repeat(1, 2)

        def turn(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            turned: Tensor = y * angle.cos() + torch.cat([-b, a], -1) * angle.sin()
            return turned

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

    def resized(self, size: Size) -> Size | None:
        return None  # every picture becomes a square

    def logits(self, image: np.ndarray, lead: list[int], tail: list[int]) -> np.ndarray:
        picture, text = self.picture(image), self._w("wte.weight")[[*lead, *tail]]
        x = torch.cat([text[: len(lead)], picture, text[len(lead) :]])
        return self.read(x)[-len(tail) :].numpy(force=True)
