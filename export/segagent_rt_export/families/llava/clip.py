"""LLaVA's vision encoder: CLIP up to the layer that is used, and the projector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.blocks import (
    ACTIVATIONS,
    Module,
    attend,
    join_heads,
    plain_mlp,
    split_heads,
)
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.patch_embedding import VisionEncoderShape
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.weights import Weights


@dataclass(frozen=True, slots=True)
class ClipShape(VisionEncoderShape):
    """Sizes of the vision encoder; `depth` counts the layers below the features, `grid` patches
    along a side."""

    grid: int
    patch: int = 14
    epsilon: float = 1e-5
    activation: str = "quick_gelu"
    projector: str = "gelu"

    def build(self, g: GraphBuilder, weights: Weights, precision: Precision) -> None:
        """Weights go by transformers' names below `vision_tower.`, the projector's below
        `projector.`.

        Input: patches f32 [grid^2, 3 p p], row by row. Output: image_embeds f32 [grid^2, output];
        the class token takes part but is not put out.
        """
        whole = Module(g, weights, precision)
        x = self._embeddings(whole.at("tower.embeddings"))
        x = whole.layer_norm(x, "tower.pre_layrnorm", self.width, self.epsilon)
        for number in range(self.depth):
            x = self._layer(whole.at(f"tower.encoder.layers.{number}"), x)
        patches = g.gather(x, g.weight(np.arange(1, self.grid**2 + 1)))
        widths = (self.output, self.output, self.width)
        names, activation = ("linear_1", "linear_2"), ACTIVATIONS[self.projector]
        out = plain_mlp(whole.at("projector"), patches, names, widths, activation)
        g.output(out, "image_embeds", np.float32, ["M", self.output])

    def _embeddings(self, module: Module) -> str:
        g, count = module.graph, self.grid**2 + 1
        places = module.take("position_embedding.weight", count, self.width)
        first = module.take("class_embedding", self.width) + places[0]
        kernel = module.take("patch_embedding.weight", self.width, 3, self.patch, self.patch)
        x = g.add(self.pixels.embed(g, kernel), g.weight(places[1:]))
        return g.node("Concat", [g.weight(first[None]), x], axis=0)

    def _layer(self, layer: Module, x: str) -> str:
        g, own, each = layer.graph, layer.at("self_attn"), self.width // self.heads
        y = layer.layer_norm(x, "layer_norm1", self.width, self.epsilon)
        query, key, value = (
            split_heads(g, own.linear(y, f"{n}_proj", self.width, self.width), self.heads, each)
            for n in "qkv"
        )
        mixed = attend(g, g.mul(query, g.scalar(each**-0.5)), key, value)
        y = own.linear(join_heads(g, mixed, -1, self.width), "out_proj", self.width, self.width)
        x = g.add(x, y)
        y = layer.layer_norm(x, "layer_norm2", self.width, self.epsilon)
        widths, activation = (self.width, self.inner, self.width), ACTIVATIONS[self.activation]
        return g.add(x, plain_mlp(layer.at("mlp"), y, ("fc1", "fc2"), widths, activation))
