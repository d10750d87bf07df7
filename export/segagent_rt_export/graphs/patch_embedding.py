"""From pixels to the first hidden states; the processor's arithmetic is folded into the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segagent_rt_export.graphs.blocks import Module
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.weights import Weight, Weights


@dataclass(frozen=True, slots=True)
class Pixels:
    """What the processor does to pixels 0..255: (p / 255 - mean) / std for red, green, blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def embed(self, g: GraphBuilder, kernel: Weight, bias: Weight | None = None) -> str:
        """Declare the input `patches` f32 [N, 3 p p], pixels 0..255, and project it.

        kernel is [width, 3, p, p]; the processor's scale and shift are folded into it.
        """
        scale = 1 / (255 * np.asarray(self.std, np.float64))
        shift = np.asarray(self.mean, np.float64) / np.asarray(self.std, np.float64)
        wide = kernel.astype(np.float64)
        offset = -(wide.sum((2, 3)) @ shift)
        if bias is not None:
            offset += bias
        folded = (wide * scale[:, None, None]).reshape(len(kernel), -1)
        patches = g.input("patches", np.float32, ["N", folded.shape[1]])
        return Precision().linear(g, patches, folded, offset)


@dataclass(frozen=True, slots=True)
class VisionEncoderShape:
    """A family's vision encoder: its sizes, and how to build it.

    Attributes:
        depth: layers.
        width: size of the hidden states.
        inner: size between the two products of an MLP.
        heads: attention heads.
        output: the language model's width.
        pixels: what the processor does to pixels.
    """

    depth: int
    width: int
    inner: int
    heads: int
    output: int
    pixels: Pixels

    def build(self, g: GraphBuilder, weights: Weights, precision: Precision) -> None:
        """Add the vision encoder to a graph."""
        raise NotImplementedError


CLIP_PIXELS = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""CLIP's, which Qwen-VL, Qwen2-VL, Qwen2.5-VL and LLaVA use."""

HALF_PIXELS = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""From -1 to 1, as Qwen3-VL has them."""


def frame_kernel(module: Module, width: int, patch: int) -> Weight:
    """The kernel of a video's patch embedding, [width, 3, 2, p, p], for a still image, whose two
    frames are the same: [width, 3, p, p]."""
    kernel = module.take("patch_embed.proj.weight", width, 3, 2, patch, patch)
    return np.asarray(kernel.sum(2))


def rope_inputs(g: GraphBuilder, head_dim: int) -> tuple[str, str]:
    """Declare rope_cos and rope_sin, f32 [N, head_dim / 2]."""
    names = ("rope_cos", "rope_sin")
    cos, sin = (g.input(name, np.float32, ["N", head_dim // 2]) for name in names)
    return cos, sin
