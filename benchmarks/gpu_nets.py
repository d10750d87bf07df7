"""Nets of true size with random weights: as PyTorch runs them, and as graphs.

The encoders have the sizes of SAM's, but windows of 16 x 16 without padding, and no relative
positions. The language models have those of Qwen2.5-VL's, plain rotary positions, and as few rows
of the head as a click grammar needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from segagent_rt.mllm.geometry import MASKED
from segagent_rt_export.graph import GraphBuilder
from segagent_rt_export.mllm.attention import Heads
from segagent_rt_export.mllm.blocks import Module, attend, gelu, plain_mlp
from segagent_rt_export.mllm.language import LanguageShape, build_decoder
from segagent_rt_export.mllm.weights import StateDict
from segagent_rt_export.precision import Precision


@dataclass(frozen=True)
class VitSize:
    """An encoder over `side` x `side` patches, whose blocks but the `whole` ones see windows."""

    width: int
    depth: int
    heads: int
    whole: tuple[int, ...]
    side: int = 64
    window: int = 16
    pixels: int = 768


@dataclass(frozen=True)
class DecoderSize:
    """A language model that reads `tokens` behind `past` ones, and scores `rows` tokens."""

    shape: LanguageShape
    tokens: int
    past: int
    rows: int = 32


SMALL = LanguageShape(36, 2048, 11008, Heads(16, 2, 128))
LARGE = LanguageShape(28, 3584, 18944, Heads(28, 4, 128))
MINIATURE = LanguageShape(2, 64, 96, Heads(4, 2, 16))
NETS: Mapping[str, VitSize | DecoderSize] = {
    "vit-b": VitSize(768, 12, 12, (2, 5, 8, 11)),
    "vit-l": VitSize(1024, 24, 16, (5, 11, 17, 23)),
    "vit-h": VitSize(1280, 32, 16, (7, 15, 23, 31)),
    "qwen2.5-vl-3b-read": DecoderSize(SMALL, 480, 0),
    "qwen2.5-vl-3b-write": DecoderSize(SMALL, 1, 480),
    "qwen2.5-vl-7b-read": DecoderSize(LARGE, 480, 0),
    "qwen2.5-vl-7b-write": DecoderSize(LARGE, 1, 480),
}
DRY: Mapping[str, VitSize | DecoderSize] = {
    "vit": VitSize(32, 2, 2, (1,), side=8, window=4, pixels=48),
    "decoder-read": DecoderSize(MINIATURE, 24, 0),
    "decoder-write": DecoderSize(MINIATURE, 1, 24),
}


def mix(q: Tensor, k: Tensor, v: Tensor, *, fused: bool, causal: bool = False) -> Tensor:
    """Attention over [..., N, width]; with `causal` no query sees a key behind its own."""
    if fused:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if causal:
        scores = scores + torch.full_like(scores[0, 0], MASKED).triu(1)
    return scores.softmax(-1) @ v


def linears(bias: bool, **sizes: tuple[int, int]) -> nn.ModuleDict:
    """Linear layers by name, (in, out) each."""
    return nn.ModuleDict({name: nn.Linear(*size, bias=bias) for name, size in sizes.items()})


class Vit(nn.Module):
    """Patches [side^2, pixels] to features [side^2, width]. `fused` chooses PyTorch's attention;
    `inputs` is an example."""

    fused, output = False, "features"

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.size, self.tokens, width = size, size.side**2, size.width
        self.embed = nn.Linear(size.pixels, width)
        self.places = nn.Parameter(torch.randn(self.tokens, width) * 0.1)
        shapes = {name: (width, width) for name in ("q", "k", "v", "out")}
        self.blocks = nn.ModuleList()
        for _ in range(size.depth):
            block = linears(True, **shapes, fc1=(width, 4 * width), fc2=(4 * width, width))
            block.update({name: nn.LayerNorm(width, 1e-6) for name in ("norm1", "norm2")})
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.inputs = (torch.randn(self.tokens, size.pixels),)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.embed(patches) + self.places
        for number, block in enumerate(self.blocks):
            x = x + self._attend(block, block["norm1"](x), self._cells(number))
            x = x + block["fc2"](functional.gelu(block["fc1"](block["norm2"](x))))
        return self.norm(x)

    def _cells(self, number: int) -> int:
        """Windows along a side."""
        return 1 if number in self.size.whole else self.size.side // self.size.window

    def _attend(self, block: Any, x: Tensor, cells: int) -> Tensor:
        side = self.size.side // cells
        rows = (
            x.reshape(cells, side, cells, side, -1).transpose(1, 2).reshape(cells**2, side**2, -1)
        )
        heads = (self.size.heads, self.size.width // self.size.heads)
        q, k, v = (block[name](rows).unflatten(-1, heads).transpose(1, 2) for name in "qkv")
        mixed = block["out"](mix(q, k, v, fused=self.fused).transpose(1, 2).flatten(2))
        return mixed.reshape(cells, cells, side, side, -1).transpose(1, 2).reshape(x.shape)

    def feeds(self) -> dict[str, Any]:
        """The example, by the names of the graph's inputs."""
        return {"patches": self.inputs[0].numpy()}

    def write(self, g: GraphBuilder) -> None:
        """The net as a graph in ONNX Runtime's dialect."""
        size, width = self.size, self.size.width
        net = Module(g, StateDict(self.state_dict()), Precision())
        x = g.input("patches", np.float32, [self.tokens, size.pixels])
        x = net.linear(x, "embed", width, size.pixels)
        x = g.add(x, g.weight(net.take("places", self.tokens, width)))
        for number in range(size.depth):
            block = net.at(f"blocks.{number}")
            y = block.layer_norm(x, "norm1", width, 1e-6)
            x = g.add(x, self._write_attention(block, y, self._cells(number)))
            y = block.layer_norm(x, "norm2", width, 1e-6)
            x = g.add(x, plain_mlp(block, y, ("fc1", "fc2"), (width, 4 * width, width), gelu))
        g.output(
            net.layer_norm(x, "norm", width, 1e-6), self.output, np.float32, [self.tokens, width]
        )

    def _write_attention(self, block: Module, x: str, cells: int) -> str:
        g, size, side = block.graph, self.size, self.size.side // cells
        grid = g.node("Transpose", [g.reshape(x, cells, side, cells, side, size.width)],
                      perm=[0, 2, 1, 3, 4])  # fmt: skip
        rows, wide = g.reshape(grid, cells**2, side**2, size.width), size.width // size.heads

        def heads(name: str) -> str:
            y = block.linear(rows, name, size.width, size.width)
            split = g.reshape(y, cells**2, side**2, size.heads, wide)
            return g.node("Transpose", [split], perm=[0, 2, 1, 3])

        mixed = attend(g, g.mul(heads("q"), g.scalar(wide**-0.5)), heads("k"), heads("v"))
        mixed = g.node("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = g.reshape(mixed, cells**2, side**2, size.width)
        mixed = block.linear(mixed, "out", size.width, size.width)
        back = g.node("Transpose", [g.reshape(mixed, cells, cells, side, side, size.width)],
                      perm=[0, 2, 1, 3, 4])  # fmt: skip
        return g.reshape(back, self.tokens, size.width)


class Decoder(nn.Module):
    """Embeddings [1, tokens, hidden] behind a buffer of keys and values, to logits [1, rows] of the
    last token. Names of layers are those of transformers' Qwen2."""

    fused, output = False, "logits"

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

    def write(self, g: GraphBuilder) -> None:
        """The net as a graph in ONNX Runtime's dialect."""
        weights, head = StateDict(self.state_dict()), self.head.detach().numpy()
        build_decoder(g, self.size.shape, weights, head, Precision())


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
