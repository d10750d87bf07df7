"""A language model of the size of Qwen2.5-VL's, with plain rotary positions, and as few rows of the
head as a click grammar needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_attention import linears, mix
from torch import Tensor, nn
from torch.nn import functional

from segagent_rt_export.graphs.builder import new_graph
from segagent_rt_export.graphs.language_model import LanguageShape, build_decoder
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.sources.weights import StateDict
from segagent_rt_export.variants import MLLM_VARIANTS


@dataclass(frozen=True)
class DecoderSize:
    """A language model that reads `tokens` behind `past` ones, and scores `rows` tokens."""

    shape: LanguageShape
    tokens: int
    past: int
    rows: int = 32


class DecoderModel(nn.Module):
    """Embeddings [1, tokens, hidden] behind a buffer of keys and values, to logits [1, rows] of the
    last token. Names of layers are those of transformers' Qwen2."""

    fused, outputs = False, ("logits",)

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        shape, heads = size.shape, size.shape.heads
        self.size, self.tokens = size, size.tokens
        self.layers = nn.ModuleList(_layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.epsilon)
        self.head = nn.Parameter(torch.randn(size.rows, shape.hidden) * shape.hidden**-0.5)
        slots = size.past + size.tokens
        angles = torch.arange(slots)[:, None] * 1e6 ** -torch.linspace(0, 1, heads.width // 2)
        caches = torch.randn(shape.layers, 2, 1, heads.kv, slots, heads.width)
        embeds = torch.randn(1, size.tokens, shape.hidden)
        self.inputs = (embeds, angles.cos(), angles.sin(), caches)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, caches: Tensor) -> Tensor:
        turn = cos[self.size.past :], sin[self.size.past :]
        for layer, cache in zip(self.layers, caches, strict=True):
            y = layer["input_layernorm"](x)
            x = x + self._attend(layer["self_attn"], y, turn, cache)
            y = layer["post_attention_layernorm"](x)
            mlp = layer["mlp"]
            x = x + mlp["down_proj"](functional.silu(mlp["gate_proj"](y)) * mlp["up_proj"](y))
        return self.norm(x[:, -1]) @ self.head.T

    def _attend(self, own: Any, x: Tensor, turn: tuple[Tensor, Tensor], cache: Tensor) -> Tensor:
        width, past = self.size.shape.heads.width, self.size.past
        q, k, v = (
            own[f"{name}_proj"](x).unflatten(-1, (-1, width)).transpose(1, 2) for name in "qkv"
        )
        cache[0, :, :, past:], cache[1, :, :, past:] = _rotate(k, *turn), v
        groups = q.shape[1] // k.shape[1]
        keys, values = (kept.repeat_interleave(groups, 1) for kept in cache)
        mixed = mix(_rotate(q, *turn), keys, values, fused=self.fused, causal=x.shape[1] > 1)
        mixed_rows: Tensor = own["o_proj"](mixed.transpose(1, 2).flatten(2))
        return mixed_rows

    def feeds(self) -> dict[str, Any]:
        """The example, by the names of the graph's inputs; those of the buffer are written, too."""
        embeds, cos, sin, caches = (tensor.numpy() for tensor in self.inputs)
        past = {
            f"past.{number}.{kind}": cache
            for number, pair in enumerate(caches)
            for kind, cache in zip(("key", "value"), pair, strict=True)
        }
        return {
            "inputs_embeds": embeds,
            "rope_cos": cos,
            "rope_sin": sin,
            "length": np.array([len(cos)], np.int32),
            "logits_at": np.array([self.tokens - 1]),
            **past,
        }

    def write(self, folder: Path, variant: VariantName) -> Path:
        """The net as a graph; keys and values are kept in fp32, as every variant keeps them."""
        path, kind = folder / "net.onnx", MLLM_VARIANTS[variant]
        weights, head = StateDict(self.state_dict()), self.head.detach().numpy()
        with new_graph(path, kind.dialect) as g:
            build_decoder(g, self.size.shape, weights, head, kind.arithmetic.language)
        return path


def _layer(shape: LanguageShape) -> nn.ModuleDict:
    hidden, heads = shape.hidden, shape.heads
    mixed, shared = heads.count * heads.width, heads.kv * heads.width
    attention = linears(
        True, q_proj=(hidden, mixed), k_proj=(hidden, shared), v_proj=(hidden, shared)
    )
    attention.update(linears(False, o_proj=(mixed, hidden)))
    up, down = (hidden, shape.inner), (shape.inner, hidden)
    norms = ("input_layernorm", "post_attention_layernorm")
    return nn.ModuleDict(
        {
            "self_attn": attention,
            "mlp": linears(False, gate_proj=up, up_proj=up, down_proj=down),
            **{name: nn.RMSNorm(hidden, shape.epsilon) for name in norms},
        }
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
