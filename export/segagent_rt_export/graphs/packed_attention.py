"""Attention of Qwen's later vision encoders: one projection to [query | key | value], rotary
positions, over all patches or within windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.blocks import Module, attend, join_heads, rotate
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.integer_product import LIBRARY


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
    if g.dialect == "ort":
        mixed = _attend_fused(g, _projections(module, x, width), heads, width, rope, windows)
        return module.linear(mixed, "proj", width, width)
    projected = module.linear(x, "qkv", 3 * width, width)
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


def _projections(module: Module, x: str, width: int) -> Sequence[str]:
    """Query, key and value [1, N, width].

    In variants for real sizes three products are quicker than cutting apart what one of them
    writes. All others take one product, as the demo's graphs do, which training reads again.
    """
    g = module.graph
    if module.precision.scheme in ("8bit", "4bit", "int8"):
        parts = module.linears(x, "qkv", 3, width, width)
        return [g.reshape(part, 1, -1, width) for part in parts]
    projected = module.linear(x, "qkv", 3 * width, width)
    names = [f"{projected}_{name}" for name in "qkv"]
    whole = g.reshape(projected, 1, -1, 3 * width)
    return g.nodes("Split", [whole], names, axis=-1, num_outputs=3)


def _attend_fused(
    g: GraphBuilder,
    parts: Sequence[str],
    heads: int,
    width: int,
    rope: tuple[str, str],
    windows: WindowInputs | None,
) -> str:
    """ONNX Runtime's own kernels about query, key and value [1, N, width]: heads are never parted
    by nodes of ours, and over all patches no score is written to memory."""
    query, key, value = parts
    first = g.weight(np.array([0]))
    query, key = (
        g.node("RotaryEmbedding", [part, first, *rope], domain=LIBRARY, num_heads=heads)
        for part in (query, key)
    )
    inputs = [query, key, value]
    if windows is not None:  # a batch of windows [W, L, width], whose filling no patch attends to
        rows = (g.reshape(part, -1, width) for part in inputs)
        inputs = [*(g.gather(part, windows.windows) for part in rows), "", _filled(g, windows)]
    mixed = g.node("MultiHeadAttention", inputs, domain=LIBRARY, num_heads=heads)
    mixed = g.reshape(mixed, -1, width)
    return mixed if windows is None else g.gather(mixed, windows.places)


def _filled(g: GraphBuilder, windows: WindowInputs) -> str:
    """Mask int32 [W, L]: 1 where a window holds a patch, 0 where it is filled up. All blocks share
    it."""
    if windows.mask not in g.shared:
        flat = g.node("Squeeze", [windows.mask, g.weight(np.array([1]))])
        g.shared[windows.mask] = [g.node("Cast", [g.node("Equal", [flat, g.scalar(0)])], to=6)]
    return g.shared[windows.mask][0]


def _attend_within(
    g: GraphBuilder, windows: WindowInputs, parts: tuple[str, str, str], heads: int, each: int
) -> str:
    """Attention of [1, heads, N, each] within windows, as [heads, W, L, each] and back."""
    query, key, value = (
        g.gather(g.reshape(part, heads, -1, each), windows.windows, axis=1) for part in parts
    )
    mixed = g.reshape(attend(g, query, key, value, windows.mask), 1, heads, -1, each)
    return g.gather(mixed, windows.places, axis=2)
