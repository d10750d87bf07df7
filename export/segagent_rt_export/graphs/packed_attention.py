"""Attention of Qwen's later vision encoders: one projection to [query | key | value], rotary
positions, over all patches or within windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.blocks import Module, attend, join_heads, rotate
from segagent_rt_export.graphs.builder import GraphBuilder


@dataclass(frozen=True, slots=True)
class WindowInputs:
    """Names of the inputs that say which patches attend to each other: windows i64 [W, L],
    window_mask f32 [W, 1, L], places i64 [N]."""

    windows: str
    mask: str
    places: str


def declare_windows(g: GraphBuilder, length: int) -> WindowInputs:
    """Declare these inputs for windows of `length` patches."""
    return WindowInputs(
        g.input("windows", np.int64, ["W", length]),
        g.input("window_mask", np.float32, ["W", 1, length]),
        g.input("places", np.int64, ["N"]),
    )


def packed_attention(
    module: Module,
    x: str,
    heads: int,
    width: int,
    rope: tuple[str, str],
    windows: WindowInputs | None = None,
) -> str:
    """From normed hidden states [N, width] to what attention adds to them."""
    g, each = module.graph, width // heads
    projected = module.linear(x, "qkv", 3 * width, width)
    if windows is None and g.dialect == "ort":
        mixed = _attend_fused(g, projected, heads, width, rope)
        return module.linear(mixed, "proj", width, width)
    qkv = g.reshape(projected, -1, 3, heads, each)
    # [3, heads, N, each]: query, key and value are cut from the front axis
    turned = g.node("Transpose", [qkv], perm=[1, 2, 0, 3])
    names = [f"{turned}_{name}" for name in "qkv"]
    query, key, value = g.nodes("Split", [turned], names, axis=0, num_outputs=3)
    query = g.mul(rotate(g, query, *rope, each), g.scalar(each**-0.5))
    key = rotate(g, key, *rope, each)
    if windows is None:
        mixed = attend(g, query, key, value)
    else:
        mixed = _attend_within(g, windows, (query, key, value), heads, each)
    return module.linear(join_heads(g, mixed, -1, width), "proj", width, width)


def _attend_fused(
    g: GraphBuilder, projected: str, heads: int, width: int, rope: tuple[str, str]
) -> str:
    """ONNX Runtime's own kernels: no score is ever written to memory."""
    names = [f"{projected}_{name}" for name in "qkv"]
    whole = g.reshape(projected, 1, -1, 3 * width)
    query, key, value = g.nodes("Split", [whole], names, axis=-1, num_outputs=3)
    first = g.weight(np.array([0]))
    query, key = (
        g.node("RotaryEmbedding", [part, first, *rope], domain="com.microsoft", num_heads=heads)
        for part in (query, key)
    )
    mixed = g.node(
        "MultiHeadAttention", [query, key, value], domain="com.microsoft", num_heads=heads
    )
    return g.reshape(mixed, -1, width)


def _attend_within(
    g: GraphBuilder, windows: WindowInputs, parts: tuple[str, str, str], heads: int, each: int
) -> str:
    """Attention of [1, heads, N, each] within windows, as [heads, W, L, each] and back."""
    query, key, value = (
        g.gather(g.reshape(part, heads, -1, each), windows.windows, axis=1) for part in parts
    )
    mixed = g.reshape(attend(g, query, key, value, windows.mask), 1, heads, -1, each)
    return g.gather(mixed, windows.places, axis=2)
