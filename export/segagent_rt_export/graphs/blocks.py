"""Pieces that language models and vision encoders are built of, in both dialects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.weights import Blocks, Weight, Weights, take

Activation: TypeAlias = Callable[[GraphBuilder, str], str]


@dataclass(frozen=True, slots=True)
class Module:
    """The layers whose weights' names begin with `prefix`, as nodes of a graph."""

    graph: GraphBuilder
    weights: Weights
    precision: Precision
    prefix: str = ""

    def at(self, name: str) -> Module:
        """A module of this one."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def take(self, name: str, *shape: int) -> Weight:
        """A weight of the shape that the architecture asks for.

        Raises:
            CheckpointInvalid: it is missing, or of another shape.
        """
        return take(self.weights, self.prefix + name, shape)

    def has(self, name: str) -> bool:
        return self.prefix + name in self.weights

    def linear(
        self, x: str, name: str, outputs: int, inputs: int, grown: tuple[int, int] | None = None
    ) -> str:
        """A linear layer, with a bias if the weights hold one; zeros grow its weight to
        `grown`, (outputs, inputs), if that is given."""
        weight, bias, blocks = self._layer(name, outputs, inputs)
        if grown is not None and grown != (outputs, inputs):
            more = (0, grown[0] - outputs), (0, grown[1] - inputs)
            weight, blocks = np.pad(weight, more), None
            bias = None if bias is None else np.pad(bias, more[0])
        return self.precision.linear(self.graph, x, weight, bias, blocks)

    def linears(self, x: str, name: str, count: int, outputs: int, inputs: int) -> list[str]:
        """A linear layer whose outputs are `count` values side by side, each from a product of its
        own: nothing has to be cut apart afterwards."""
        weight, bias, blocks = self._layer(name, count * outputs, inputs)
        return [
            self.precision.linear(
                self.graph,
                x,
                weight[start : start + outputs],
                None if bias is None else bias[start : start + outputs],
                None if blocks is None else blocks.rows(start, start + outputs),
            )
            for start in range(0, count * outputs, outputs)
        ]

    def _layer(
        self, name: str, outputs: int, inputs: int
    ) -> tuple[Weight, Weight | None, Blocks | None]:
        """Weight, bias and integers of a linear layer, as far as there are any."""
        weight = self.take(f"{name}.weight", outputs, inputs)
        bias = self.take(f"{name}.bias", outputs) if self.has(f"{name}.bias") else None
        return weight, bias, self.weights.blocks(f"{self.prefix}{name}.weight")

    def layer_norm(self, x: str, name: str, width: int, epsilon: float) -> str:
        """Layer norm over the last axis."""
        parts = (self.take(f"{name}.{part}", width) for part in ("weight", "bias"))
        scale, shift = (self.graph.weight(part) for part in parts)
        return self.graph.node("LayerNormalization", [x, scale, shift], epsilon=epsilon)

    def rms_norm(self, x: str, name: str, width: int, epsilon: float) -> str:
        """Root-mean-square norm over the last axis."""
        return rms_norm(self.graph, x, self.take(f"{name}.weight", width), epsilon)


def rms_norm(g: GraphBuilder, x: str, weight: Weight, epsilon: float) -> str:
    """Root-mean-square norm over the last axis."""
    scale = g.weight(weight)
    if g.dialect == "ort":
        return g.node(
            "SimplifiedLayerNormalization", [x, scale], axis=-1, epsilon=epsilon, stash_type=1
        )
    square = g.node("ReduceMean", [g.mul(x, x), g.weight(np.array([-1]))], keepdims=1)
    size = g.node("Sqrt", [g.add(square, g.scalar(epsilon))])
    return g.mul(g.node("Div", [x, size]), scale)


def rotate(g: GraphBuilder, x: str, cos: str, sin: str, width: int) -> str:
    """Rotary positions by halves: x [..., N, width], cos and sin [N, width / 2]."""
    halves = g.weight(np.array([width // 2, width // 2]))
    first, second = g.nodes("Split", [x, halves], [f"{x}_1", f"{x}_2"], axis=-1)
    left = g.node("Sub", [g.mul(first, cos), g.mul(second, sin)])
    right = g.add(g.mul(second, cos), g.mul(first, sin))
    return g.node("Concat", [left, right], axis=-1)


def attend(g: GraphBuilder, query: str, key: str, value: str, mask: str | None = None) -> str:
    """Softmax attention over tensors of rank 4, [..., N, width]; the mask is added to the scores.

    The scale goes into the query, where TensorRT's fused kernels look for it.
    """
    scores = g.node("MatMul", [query, g.node("Transpose", [key], perm=[0, 1, 3, 2])])
    if mask is not None:
        scores = g.add(scores, mask)
    return g.node("MatMul", [g.node("Softmax", [scores], axis=-1), value])


def split_heads(g: GraphBuilder, x: str, heads: int, width: int) -> str:
    """[..., N, heads * width] -> [1, heads, N, width]."""
    return g.node("Transpose", [g.reshape(x, 1, -1, heads, width)], perm=[0, 2, 1, 3])


def join_heads(g: GraphBuilder, x: str, *shape: int) -> str:
    """[1, heads, N, width] -> `shape`, tokens before heads."""
    return g.reshape(g.node("Transpose", [x], perm=[0, 2, 1, 3]), *shape)


def gelu_tanh(g: GraphBuilder, x: str) -> str:
    """GELU by its tanh approximation."""
    return g.node("Gelu", [x], approximate="tanh")


def gelu(g: GraphBuilder, x: str) -> str:
    """GELU as defined."""
    return g.node("Gelu", [x])


def quick_gelu(g: GraphBuilder, x: str) -> str:
    """x * sigmoid(1.702 x)."""
    return g.mul(x, g.node("Sigmoid", [g.mul(x, g.scalar(1.702))]))


def silu(g: GraphBuilder, x: str) -> str:
    """x * sigmoid(x)."""
    return g.mul(x, g.node("Sigmoid", [x]))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": silu,
}
"""By the names that configurations use."""


def gated_mlp(module: Module, x: str, hidden: int, width: int) -> str:
    """down(silu(gate(x)) * up(x)); what lies between may be wider than `hidden`, by zeros."""
    wide = module.precision.aligned(hidden)
    gate, up = (
        module.linear(x, f"{name}_proj", hidden, width, (wide, width)) for name in ("gate", "up")
    )
    mixed = module.graph.mul(silu(module.graph, gate), up)
    return module.linear(mixed, "down_proj", width, hidden, (width, wide))


def plain_mlp(
    module: Module, x: str, names: Sequence[str], widths: Sequence[int], activation: Activation
) -> str:
    """Two linear layers, widths (out, hidden, in), with an activation between them."""
    out, hidden, width = widths
    inner = activation(module.graph, module.linear(x, names[0], hidden, width))
    return module.linear(inner, names[1], out, hidden)
