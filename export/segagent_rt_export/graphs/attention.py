"""Attention over a KV buffer of fixed capacity, in both dialects, behind one set of inputs.

Inputs: length i32 [1], tokens in the buffer after this call; rope_cos, rope_sin f32
[T, head_dim / 2], a row for each slot of the buffer; past.N.key, past.N.value f32
[1, kv_heads, T, head_dim]. Outputs: present.N.key, present.N.value, which may lie in the same
memory as the inputs of their names.

The portable dialect also has branch i32 [T], the branch that each slot belongs to: a token attends
to the tokens before it that are in its own branch or in branch 0. ONNX Runtime's
GroupQueryAttention masks causally, so its dialect has no such input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from segagent_rt.mllm.language_model import BRANCH_INPUT
from segagent_rt.mllm.patch_layout import MASKED
from segagent_rt_export.graphs.blocks import attend, join_heads, rotate, split_heads
from segagent_rt_export.graphs.builder import GraphBuilder


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads, how many of keys and values, how wide."""

    count: int
    kv: int
    width: int


@dataclass(frozen=True, slots=True)
class Attention(ABC):
    """Rotates by `cos` and `sin`, remembers and mixes."""

    graph: GraphBuilder
    heads: Heads
    cos: str
    sin: str

    @abstractmethod
    def mix(self, number: int, query: str, key: str, value: str) -> str:
        """Layer `number`: from projections [1, S, heads * width] to their mixture, same shape."""

    def _buffers(self, number: int) -> tuple[list[str], list[str]]:
        """Names of a layer's keys and values before and after; both are declared."""
        g = self.graph
        shape: list[int | str] = [1, self.heads.kv, "T", self.heads.width]
        kinds = [f"{number}.{kind}" for kind in ("key", "value")]
        past = [g.input(f"past.{kind}", np.float32, shape) for kind in kinds]
        return past, [g.output_of(f"present.{kind}", np.float32, shape) for kind in kinds]


def open_attention(g: GraphBuilder, heads: Heads, inputs_embeds: str) -> Attention:
    """Declare the inputs of the buffer, in the graph's dialect."""
    length = g.input("length", np.int32, [1])
    cos, sin = (g.input(f"rope_{n}", np.float32, ["T", heads.width // 2]) for n in ("cos", "sin"))
    if g.dialect == "ort":
        last = g.node("Sub", [length, g.weight(np.array([1], np.int32))])
        return _Ort(g, heads, cos, sin, length, last)
    return _portable(g, heads, (cos, sin), length, inputs_embeds)


@dataclass(frozen=True, slots=True)
class _Ort(Attention):
    """GroupQueryAttention."""

    length: str
    last: str

    def mix(self, number: int, query: str, key: str, value: str) -> str:
        g, heads = self.graph, self.heads
        past, present = self._buffers(number)
        return g.nodes(
            "GroupQueryAttention",
            [query, key, value, *past, self.last, self.length, self.cos, self.sin],
            [f"attention_{number}", *present],
            domain="com.microsoft",
            num_heads=heads.count, kv_num_heads=heads.kv, do_rotary=1, rotary_interleaved=0,
            scale=heads.width**-0.5,
        )[0]  # fmt: skip


def _portable(
    g: GraphBuilder, heads: Heads, rope: tuple[str, str], length: str, inputs_embeds: str
) -> Attention:
    """Slots of the new tokens, their angles and their mask, once for all layers."""
    branch = g.input(BRANCH_INPUT, np.int32, ["T"])
    zero, one = g.weight(np.array(0)), g.weight(np.array(1))
    steps = g.gather(g.node("Shape", [inputs_embeds]), one)
    capacity = g.gather(g.node("Shape", [rope[0]]), zero)
    start = g.node("Sub", [g.node("Cast", [length], to=7), steps])
    slots = g.add(g.node("Range", [zero, steps, one]), start)  # int64 [S]
    every = g.node("Range", [zero, capacity, one])
    before = g.node("LessOrEqual", [every, g.node("Unsqueeze", [slots, one])])  # [S, T]
    own = g.node("Unsqueeze", [g.gather(branch, slots), one])  # [S, 1]
    shared = g.node("Equal", [branch, g.weight(np.array(0, np.int32))])  # [T]
    same = g.node("Or", [shared, g.node("Equal", [branch, own])])
    seen = g.node("And", [before, same])
    mask = g.node("Where", [seen, g.scalar(0.0), g.scalar(MASKED)])
    cos, sin = (g.gather(table, slots) for table in rope)
    head = np.zeros((1, heads.kv, 1, 3), np.int64)
    head[..., 1] = np.arange(heads.kv)[:, None]
    slot = g.mul(g.reshape(slots, 1, 1, -1, 1), g.weight(np.array([0, 0, 1])))
    return _Portable(g, heads, cos, sin, mask, g.add(g.weight(head), slot))


@dataclass(frozen=True, slots=True)
class _Portable(Attention):
    """Rotation, ScatterND into the buffer, and softmax over all of it under the mask.

    `places` int64 [1, kv_heads, S, 3] says where in the buffer the new rows go.
    """

    mask: str
    places: str

    def mix(self, number: int, query: str, key: str, value: str) -> str:
        g, heads = self.graph, self.heads
        past, present = self._buffers(number)
        turned = self._turn(split_heads(g, key, heads.kv, heads.width))
        fresh = [turned, split_heads(g, value, heads.kv, heads.width)]
        keys, values = (
            g.node("ScatterND", [old, self.places, new], name)
            for old, new, name in zip(past, fresh, present, strict=True)
        )
        scaled = g.mul(
            self._turn(split_heads(g, query, heads.count, heads.width)), g.scalar(heads.width**-0.5)
        )
        # [kv, group, S, width] against [kv, 1, T, width]: a group shares its keys
        grouped = g.reshape(scaled, heads.kv, heads.count // heads.kv, -1, heads.width)
        keys, values = (g.reshape(kept, heads.kv, 1, -1, heads.width) for kept in (keys, values))
        mixed = g.reshape(
            attend(g, grouped, keys, values, self.mask), 1, heads.count, -1, heads.width
        )
        return join_heads(g, mixed, 1, -1, heads.count * heads.width)

    def _turn(self, x: str) -> str:
        return rotate(self.graph, x, self.cos, self.sin, self.heads.width)
