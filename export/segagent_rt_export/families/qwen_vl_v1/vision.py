"""Qwen-VL's vision encoder: a ViT over 448 x 448 pixels, and a resampler to 256 tokens.

Position tables and the resampler's queries are constants and are computed here once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.blocks import (
    Module,
    attend,
    gelu,
    join_heads,
    plain_mlp,
    split_heads,
)
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.patch_embedding import VisionEncoderShape
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.weights import Weight, Weights

EPSILON = 1e-6
RESAMPLER_HEAD = 128


@dataclass(frozen=True, slots=True)
class QwenV1Shape(VisionEncoderShape):
    """Sizes of the vision encoder; `grid` is the number of patches along a side, `queries` that of
    the resampler's tokens along a side."""

    grid: int = 32
    queries: int = 16
    patch: int = 14

    def build(self, g: GraphBuilder, weights: Weights, precision: Precision) -> None:
        """Weights go by the checkpoint's names below `visual.`.

        Input: patches f32 [grid^2, 3 p p], row by row. Output: image_embeds f32
        [queries^2, output].
        """
        whole = Module(g, weights, precision)
        kernel = whole.take("conv1.weight", self.width, 3, self.patch, self.patch)
        table = whole.take("positional_embedding", self.queries**2, self.width)
        x = g.add(self.pixels.embed(g, kernel), g.weight(stretch_table(table, self.grid)))
        x = whole.layer_norm(x, "ln_pre", self.width, EPSILON)
        for number in range(self.depth):
            x = self._block(whole.at(f"transformer.resblocks.{number}"), x)
        y = self._resample(whole.at("attn_pool"), x)
        y = whole.layer_norm(y, "ln_post", self.output, EPSILON)
        out = precision.linear(g, y, whole.take("proj", self.output, self.output).T)
        g.output(out, "image_embeds", np.float32, ["M", self.output])

    def _block(self, block: Module, x: str) -> str:
        g, own, each = block.graph, block.at("attn"), self.width // self.heads
        y = block.layer_norm(x, "ln_1", self.width, EPSILON)
        # stored head by head as [query | key | value]
        weight = own.take("in_proj.weight", 3 * self.width, self.width)
        bias = own.take("in_proj.bias", 3 * self.width)
        parts = weight.reshape(self.heads, 3, each, self.width).transpose(1, 0, 2, 3)
        offsets = bias.reshape(self.heads, 3, each).transpose(1, 0, 2)
        query, key, value = (
            split_heads(
                g,
                block.precision.linear(g, y, part.reshape(-1, self.width), offset.reshape(-1)),
                self.heads,
                each,
            )
            for part, offset in zip(parts, offsets, strict=True)
        )
        mixed = attend(g, g.mul(query, g.scalar(each**-0.5)), key, value)
        y = own.linear(join_heads(g, mixed, -1, self.width), "out_proj", self.width, self.width)
        x = g.add(x, y)
        y = block.layer_norm(x, "ln_2", self.width, EPSILON)
        widths = (self.width, self.inner, self.width)
        return g.add(x, plain_mlp(block.at("mlp"), y, ("c_fc", "c_proj"), widths, gelu))

    def _resample(self, pool: Module, x: str) -> str:
        """One cross-attention of constant queries; keys carry positions, values do not."""
        g, count, width = pool.graph, self.queries**2, self.output
        heads = width // RESAMPLER_HEAD if width >= RESAMPLER_HEAD else 1
        table = pool.take("pos_embed", count, width)
        weight = pool.take("attn.in_proj_weight", 3 * width, width)
        bias = pool.take("attn.in_proj_bias", 3 * width)
        query_weight, key_weight, value_weight = np.split(weight, 3)
        query_bias, key_bias, value_bias = np.split(bias, 3)
        asked = self._normed_queries(pool) + table
        query = (asked @ query_weight.T + query_bias) * (width // heads) ** -0.5
        kept = pool.layer_norm(
            pool.linear(x, "kv_proj", width, self.width), "ln_kv", width, EPSILON
        )
        places = stretch_table(table, self.grid) @ key_weight.T + key_bias
        key = g.add(pool.precision.linear(g, kept, key_weight), g.weight(places))
        value = pool.precision.linear(g, kept, value_weight, value_bias)
        mixed = attend(
            g, g.weight(_by_head(query, heads)),
            *(split_heads(g, part, heads, width // heads) for part in (key, value)),
        )  # fmt: skip
        return pool.at("attn").linear(join_heads(g, mixed, -1, width), "out_proj", width, width)

    def _normed_queries(self, pool: Module) -> Weight:
        queries = pool.take("query", self.queries**2, self.output)
        centred = queries - queries.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        scale, shift = (pool.take(f"ln_q.{part}", self.output) for part in ("weight", "bias"))
        return np.asarray(normed * scale + shift)


def _by_head(x: Weight, heads: int) -> Weight:
    split = x.reshape(1, len(x), heads, -1).transpose(0, 2, 1, 3)
    return np.asarray(split, np.float32)


def stretch_table(table: Weight, side: int) -> Weight:
    """A square table of positions [n^2, width] at side x side places, [side^2, width].

    Bicubic with a = -0.75 and half-pixel centres, as torch's `interpolate`.
    """
    old = round(len(table) ** 0.5)
    if old == side:
        return table
    stretch = _bicubic(old, side)
    square = table.reshape(old, old, -1).astype(np.float64)
    tall = np.einsum("ij,jkc->ikc", stretch, square)
    wide = np.einsum("ij,kjc->kic", stretch, tall)
    return np.asarray(wide.reshape(side * side, -1), np.float32)


def _bicubic(old: int, new: int) -> Weight:
    """Weights [new, old] of one axis."""
    a = -0.75
    at = (np.arange(new) + 0.5) * old / new - 0.5
    low = np.floor(at).astype(int)
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        t = np.abs(at - (low + offset))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        place = np.clip(low + offset, 0, old - 1)
        np.add.at(weights, (np.arange(new), place), np.where(t <= 1, near, far))
    return weights
