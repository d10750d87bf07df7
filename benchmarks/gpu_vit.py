"""A plain vision transformer of the size of SAM's, built node by node: for hosts that have neither
transformers nor torch's exporter. Windows of 16 x 16 without padding, no relative positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_attention import linears, mix
from torch import Tensor, nn
from torch.nn import functional

from segagent_rt_export.graphs.blocks import Module, attend, gelu, plain_mlp
from segagent_rt_export.graphs.builder import GraphBuilder, new_graph
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.sources.weights import StateDict
from segagent_rt_export.variants import MLLM_VARIANTS


@dataclass(frozen=True)
class VitSize:
    """An encoder over `side` x `side` patches, whose blocks but the `whole` ones see windows."""

    width: int
    depth: int
    heads: int
    whole: tuple[int, ...]
    side: int = 64
    window: int = 16
    pixels: int = 768


class Vit(nn.Module):
    """Patches [side^2, pixels] to features [side^2, width]. `fused` chooses PyTorch's attention;
    `inputs` is an example."""

    fused, outputs = False, ("features",)

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.size, self.tokens, width = size, size.side**2, size.width
        self.embed = nn.Linear(size.pixels, width)
        self.places = nn.Parameter(torch.randn(self.tokens, width) * 0.1)
        shapes = {name: (width, width) for name in ("q", "k", "v", "out")}
        self.blocks = nn.ModuleList()
        for _ in range(size.depth):
            block = linears(True, **shapes, fc1=(width, 4 * width), fc2=(4 * width, width))
            block.update({name: nn.LayerNorm(width, 1e-6) for name in ("norm1", "norm2")})
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.inputs = (torch.randn(self.tokens, size.pixels),)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.embed(patches) + self.places
        for number, block in enumerate(self.blocks):
            x = x + self._attend(block, block["norm1"](x), self._cells(number))
            x = x + block["fc2"](functional.gelu(block["fc1"](block["norm2"](x))))
        return self.norm(x)

    def _cells(self, number: int) -> int:
        """Windows along a side."""
        return 1 if number in self.size.whole else self.size.side // self.size.window

    def _attend(self, block: Any, x: Tensor, cells: int) -> Tensor:
        side = self.size.side // cells
        rows = (
            x.reshape(cells, side, cells, side, -1).transpose(1, 2).reshape(cells**2, side**2, -1)
        )
        heads = (self.size.heads, self.size.width // self.size.heads)
        q, k, v = (block[name](rows).unflatten(-1, heads).transpose(1, 2) for name in "qkv")
        mixed = block["out"](mix(q, k, v, fused=self.fused).transpose(1, 2).flatten(2))
        return mixed.reshape(cells, cells, side, side, -1).transpose(1, 2).reshape(x.shape)

    def feeds(self) -> dict[str, Any]:
        """The example, by the names of the graph's inputs."""
        return {"patches": self.inputs[0].numpy()}

    def write(self, folder: Path, variant: VariantName) -> Path:
        """The net as a graph, in the precision of an MLLM's tower."""
        path, kind = folder / "net.onnx", MLLM_VARIANTS[variant]
        with new_graph(path, kind.dialect) as g:
            self.build(g, kind.arithmetic.vision)
        return path

    def build(self, g: GraphBuilder, precision: Precision) -> None:
        """The net's nodes."""
        size, width = self.size, self.size.width
        net = Module(g, StateDict(self.state_dict()), precision)
        x = g.input("patches", np.float32, [self.tokens, size.pixels])
        x = net.linear(x, "embed", width, size.pixels)
        x = g.add(x, g.weight(net.take("places", self.tokens, width)))
        for number in range(size.depth):
            block = net.at(f"blocks.{number}")
            y = block.layer_norm(x, "norm1", width, 1e-6)
            x = g.add(x, self._write_attention(block, y, self._cells(number)))
            y = block.layer_norm(x, "norm2", width, 1e-6)
            x = g.add(x, plain_mlp(block, y, ("fc1", "fc2"), (width, 4 * width, width), gelu))
        g.output(
            net.layer_norm(x, "norm", width, 1e-6), *self.outputs, np.float32, [self.tokens, width]
        )

    def _write_attention(self, block: Module, x: str, cells: int) -> str:
        g, size, side = block.graph, self.size, self.size.side // cells
        grid = g.node("Transpose", [g.reshape(x, cells, side, cells, side, size.width)],
                      perm=[0, 2, 1, 3, 4])  # fmt: skip
        rows, wide = g.reshape(grid, cells**2, side**2, size.width), size.width // size.heads

        def heads(name: str) -> str:
            y = block.linear(rows, name, size.width, size.width)
            split = g.reshape(y, cells**2, side**2, size.heads, wide)
            return g.node("Transpose", [split], perm=[0, 2, 1, 3])

        mixed = attend(g, g.mul(heads("q"), g.scalar(wide**-0.5)), heads("k"), heads("v"))
        mixed = g.node("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = g.reshape(mixed, cells**2, side**2, size.width)
        mixed = block.linear(mixed, "out", size.width, size.width)
        back = g.node("Transpose", [g.reshape(mixed, cells, cells, side, side, size.width)],
                      perm=[0, 2, 1, 3, 4])  # fmt: skip
        return g.reshape(back, self.tokens, size.width)
