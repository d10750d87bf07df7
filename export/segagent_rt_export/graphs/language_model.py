"""One builder for every language model: from weights to a decoder graph with a KV buffer.

The graph takes embeddings, not token ids, and rotary angles as a table with one row for each KV
slot, so that plain, chunked and interleaved multimodal rotary positions are one graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.attention import Attention, Heads, open_attention
from segagent_rt_export.graphs.blocks import Module, gated_mlp
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.weights import Weight, Weights


@dataclass(frozen=True, slots=True)
class LanguageShape:
    """What distinguishes one language model from another, once its weights have common names.

    Attributes:
        inner: width between the layers of the MLP.
        head_norms: RMS norms on each head of query and key (Qwen3).
        deepstack: first layers behind which further embeddings of the picture are added.
    """

    layers: int
    hidden: int
    inner: int
    heads: Heads
    epsilon: float = 1e-6
    head_norms: bool = False
    deepstack: int = 0


def build_decoder(
    g: GraphBuilder, shape: LanguageShape, weights: Weights, head: Weight, precision: Precision
) -> None:
    """The decoder; weights go by the names of transformers' Qwen2 below `model.`.

    Inputs: inputs_embeds f32 [1, S, hidden]; deepstack_embeds f32 [deepstack, S, hidden] if the
    shape has any; logits_at i64 [L], rows of S to score; the buffer's (see `attention`).
    Outputs: logits f32 [L, rows of `head`]; hidden f32 [L, hidden], normed, for a whole head;
    present.N.key, present.N.value.
    """
    x = g.input("inputs_embeds", np.float32, [1, "S", shape.hidden])
    added = ""
    if shape.deepstack:
        added = g.input("deepstack_embeds", np.float32, [shape.deepstack, "S", shape.hidden])
    at = g.input("logits_at", np.int64, ["L"])
    attention = open_attention(g, shape.heads, x)
    whole = Module(g, weights, precision)
    for number in range(shape.layers):
        layer = whole.at(f"layers.{number}")
        mixed = _attention(layer, shape, attention, number, x)
        deeper = g.gather(added, g.weight(np.array([number]))) if number < shape.deepstack else ""
        if number == shape.layers - 1:  # no later layer reads the other rows
            x, mixed, deeper = (rows and g.gather(rows, at, axis=1) for rows in (x, mixed, deeper))
        x = g.add(x, _project(layer, shape, mixed))
        y = layer.rms_norm(x, "post_attention_layernorm", shape.hidden, shape.epsilon)
        x = g.add(x, gated_mlp(layer.at("mlp"), y, shape.inner, shape.hidden))
        x = g.add(x, deeper) if deeper else x
    chosen = g.reshape(x, -1, shape.hidden)
    hidden = whole.rms_norm(chosen, "norm", shape.hidden, shape.epsilon)
    g.output(hidden, "hidden", np.float32, ["L", shape.hidden])
    g.output(precision.linear(g, hidden, head), "logits", np.float32, ["L", len(head)])


def _attention(
    layer: Module, shape: LanguageShape, attention: Attention, number: int, x: str
) -> str:
    heads, own = shape.heads, layer.at("self_attn")
    y = layer.rms_norm(x, "input_layernorm", shape.hidden, shape.epsilon)
    counts = (heads.count, heads.kv, heads.kv)
    query, key, value = (
        own.linear(y, f"{name}_proj", count * heads.width, shape.hidden)
        for name, count in zip("qkv", counts, strict=True)
    )
    if shape.head_norms:
        query = _head_norm(own, query, "q_norm", heads.count, shape)
        key = _head_norm(own, key, "k_norm", heads.kv, shape)
    return attention.mix(number, query, key, value)


def _project(layer: Module, shape: LanguageShape, mixed: str) -> str:
    width = shape.heads.count * shape.heads.width
    return layer.at("self_attn").linear(mixed, "o_proj", shape.hidden, width)


def _head_norm(module: Module, x: str, name: str, count: int, shape: LanguageShape) -> str:
    g, width = module.graph, shape.heads.width
    split = g.reshape(x, 1, -1, count, width)
    return g.reshape(module.rms_norm(split, name, width, shape.epsilon), 1, -1, count * width)


def build_head(
    g: GraphBuilder, pieces: Iterable[Weight], hidden: int, precision: Precision
) -> None:
    """The whole output head, for free decoding: hidden f32 [L, hidden] -> logits f32 [L, V].

    The weight comes in pieces of rows, so that it never lies in memory whole.
    """
    x = g.input("hidden", np.float32, ["L", hidden])
    parts, count = [], 0
    for piece in pieces:
        parts.append(precision.linear(g, x, piece))
        count += len(piece)
    g.node("Concat", parts, g.output_of("logits", np.float32, ["L", count]), axis=-1)
