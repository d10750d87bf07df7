"""Qwen2-VL's vision encoder: layer norms, quick GELU, rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.blocks import ACTIVATIONS, Module, gelu, plain_mlp
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.packed_attention import packed_attention
from segagent_rt_export.graphs.patch_embedding import VisionEncoderShape, frame_kernel, rope_inputs
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.weights import Weights

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Qwen2Shape(VisionEncoderShape):
    """Sizes of the vision encoder; `output` is the language model's width."""

    patch: int = 14
    merge: int = 2
    activation: str = "quick_gelu"

    def build(self, g: GraphBuilder, weights: Weights, precision: Precision) -> None:
        """Weights go by transformers' names below `visual.`.

        Inputs: patches f32 [N, 3 p p] and rope_cos, rope_sin f32 [N, head_dim / 2], patches in
        merge order. Output: image_embeds f32 [M, output].
        """
        whole = Module(g, weights, precision)
        x = self.pixels.embed(g, frame_kernel(whole, self.width, self.patch))
        rope = rope_inputs(g, self.width // self.heads)
        for number in range(self.depth):
            block = whole.at(f"blocks.{number}")
            y = block.layer_norm(x, "norm1", self.width, EPSILON)
            x = g.add(x, packed_attention(block.at("attn"), y, self.heads, self.width, rope))
            y = block.layer_norm(x, "norm2", self.width, EPSILON)
            widths = (self.width, self.inner, self.width)
            activation = ACTIVATIONS[self.activation]
            x = g.add(x, plain_mlp(block.at("mlp"), y, ("fc1", "fc2"), widths, activation))
        merger = whole.at("merger")
        merged = self.width * self.merge**2
        y = g.reshape(merger.layer_norm(x, "ln_q", self.width, EPSILON), -1, merged)
        out = plain_mlp(merger, y, ("mlp.0", "mlp.2"), (self.output, merged, merged), gelu)
        g.output(out, "image_embeds", np.float32, ["M", self.output])
