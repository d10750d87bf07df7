"""Qwen2.5-VL's vision encoder: RMS norms, gated MLP, attention in windows but in a few blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.blocks import Module, gated_mlp, gelu, plain_mlp
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.packed_attention import declare_windows, packed_attention
from segagent_rt_export.graphs.patch_embedding import VisionEncoderShape, frame_kernel, rope_inputs
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.weights import Weights

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Qwen25Shape(VisionEncoderShape):
    """Sizes of the vision encoder; `window` is the side of a window in tokens, `full` the blocks
    that see the whole picture."""

    window: int
    full: tuple[int, ...]
    patch: int = 14
    merge: int = 2

    def build(self, g: GraphBuilder, weights: Weights, precision: Precision) -> None:
        """Weights go by transformers' names below `visual.`.

        Inputs: patches f32 [N, 3 p p] and rope_cos, rope_sin f32 [N, head_dim / 2], patches in
        window order; windows, window_mask, places (see `packed`); back i64 [M], which puts tokens
        row by row again. Output: image_embeds f32 [M, output].
        """
        whole = Module(g, weights, precision)
        x = self.pixels.embed(g, frame_kernel(whole, self.width, self.patch))
        rope = rope_inputs(g, self.width // self.heads)
        windows = declare_windows(g, (self.window * self.merge) ** 2)
        for number in range(self.depth):
            block = whole.at(f"blocks.{number}")
            within = None if number in self.full else windows
            y = block.rms_norm(x, "norm1", self.width, EPSILON)
            y = packed_attention(block.at("attn"), y, self.heads, self.width, rope, within)
            x = g.add(x, y)
            y = block.rms_norm(x, "norm2", self.width, EPSILON)
            x = g.add(x, gated_mlp(block.at("mlp"), y, self.inner, self.width))
        merger = whole.at("merger")
        merged = self.width * self.merge**2
        y = g.reshape(merger.rms_norm(x, "ln_q", self.width, EPSILON), -1, merged)
        y = plain_mlp(merger, y, ("mlp.0", "mlp.2"), (self.output, merged, merged), gelu)
        out = g.gather(y, g.input("back", np.int64, ["M"]))
        g.output(out, "image_embeds", np.float32, ["M", self.output])
