"""Qwen3-VL's vision encoder: a learned table of positions beside the rotary ones, and deepstack:
features of middle blocks for the first layers of the language model."""

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
class Qwen3Shape(VisionEncoderShape):
    """Sizes of the vision encoder; `table` is the number of learned positions, `deepstack` the
    blocks whose features go to the language model as well."""

    table: int
    deepstack: tuple[int, ...] = ()
    patch: int = 16
    merge: int = 2
    activation: str = "gelu_pytorch_tanh"

    def build(self, g: GraphBuilder, weights: Weights, precision: Precision) -> None:
        """Weights go by transformers' names below `visual.`.

        Inputs: patches f32 [N, 3 p p] and rope_cos, rope_sin f32 [N, head_dim / 2], patches in
        merge order; taps i64 [N, 4] and tap_weights f32 [N, 4], where each patch falls in the
        table. Outputs: image_embeds f32 [M, output]; deepstack_embeds f32 [deepstack, M, output].
        """
        whole = Module(g, weights, precision)
        bias = whole.take("patch_embed.proj.bias", self.width)
        x = self.pixels.embed(g, frame_kernel(whole, self.width, self.patch), bias)
        x = g.add(x, self._positions(whole))
        rope = rope_inputs(g, self.width // self.heads)
        features = []
        for number in range(self.depth):
            x = self._block(whole.at(f"blocks.{number}"), x, rope)
            if number in self.deepstack:
                at = whole.at(f"deepstack_merger_list.{self.deepstack.index(number)}")
                y = at.layer_norm(self._merged(g, x), "norm", self._wide, EPSILON)
                features.append(g.reshape(self._project(at, y), 1, -1, self.output))
        merger = whole.at("merger")
        y = self._merged(g, merger.layer_norm(x, "norm", self.width, EPSILON))
        g.output(self._project(merger, y), "image_embeds", np.float32, ["M", self.output])
        if features:
            shape: list[int | str] = [len(features), "M", self.output]
            g.node("Concat", features, g.output_of("deepstack_embeds", np.float32, shape), axis=0)

    @property
    def _wide(self) -> int:
        return self.width * self.merge**2

    def _positions(self, whole: Module) -> str:
        g = whole.graph
        taps = g.input("taps", np.int64, ["N", 4])
        weights = g.input("tap_weights", np.float32, ["N", 4])
        table = g.weight(whole.take("pos_embed.weight", self.table, self.width))
        weighted = g.mul(g.gather(table, taps), g.reshape(weights, -1, 4, 1))
        return g.node("ReduceSum", [weighted, g.weight(np.array([1]))], keepdims=0)

    def _block(self, block: Module, x: str, rope: tuple[str, str]) -> str:
        g, widths = block.graph, (self.width, self.inner, self.width)
        y = block.layer_norm(x, "norm1", self.width, EPSILON)
        x = g.add(x, packed_attention(block.at("attn"), y, self.heads, self.width, rope))
        y = block.layer_norm(x, "norm2", self.width, EPSILON)
        names, activation = ("linear_fc1", "linear_fc2"), ACTIVATIONS[self.activation]
        return g.add(x, plain_mlp(block.at("mlp"), y, names, widths, activation))

    def _merged(self, g: GraphBuilder, x: str) -> str:
        return g.reshape(x, -1, self._wide)

    def _project(self, merger: Module, y: str) -> str:
        widths = (self.output, self._wide, self._wide)
        return plain_mlp(merger, y, ("linear_fc1", "linear_fc2"), widths, gelu)
