"""What the exporters of the SAM family share: how a pair of graphs is traced and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segagent_rt.types import Array
from segagent_rt_export.graphs.exported_segmenter import Check
from segagent_rt_export.graphs.sam_decoder import SamDecoder
from segagent_rt_export.graphs.tracing import trace

POINTS = {"point_coords": 1, "point_labels": 1}
"""Axes that are as long as there are points."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An encoder and a decoder in torch.

    `features` are the encoder's outputs, which the decoder takes before its prompts; `results`
    those of the decoder. `reference` is an encoder that must agree with the traced one.
    """

    encoder: nn.Module
    decoder: SamDecoder
    side: int
    features: tuple[str, ...] = ("embedding",)
    results: tuple[str, ...] = ("masks", "scores")
    reference: nn.Module | None = None


@torch.no_grad()
def export_pair(pair: Pair, folder: Path) -> tuple[dict[str, Path], list[Check]]:
    """Write encoder.onnx and decoder.onnx; returns role to file, and what each must compute."""
    rng = torch.Generator().manual_seed(0)
    image = {"image": torch.randn(1, 3, pair.side, pair.side, generator=rng)}
    features = run(pair.reference or pair.encoder, image, pair.features)
    checks = [_check("encoder", image, features)]
    for points in (1, 2, 9):
        feeds = features | random_prompts(pair, points, rng)
        checks.append(_check("decoder", feeds, run(pair.decoder, feeds, pair.results)))
    graphs = {role: folder / f"{role}.onnx" for role in ("encoder", "decoder")}
    trace(pair.encoder, image, graphs["encoder"], pair.features)
    example = features | random_prompts(pair, 5, rng)
    trace(pair.decoder, example, graphs["decoder"], pair.results, POINTS)
    return graphs, checks


def export_encoder(
    encoder: nn.Module, side: int, features: tuple[str, ...], folder: Path
) -> dict[str, Path]:
    """Write encoder.onnx alone; it computes what that of a pair does, in another form."""
    path = folder / "encoder.onnx"
    trace(encoder, {"image": torch.zeros(1, 3, side, side)}, path, features)
    return {"encoder": path}


def random_prompts(pair: Pair, points: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Points of every kind, and a mask so far if there are two points or more."""
    side = pair.decoder.mask_side
    labels = torch.randint(-1, 4, (1, points), generator=rng).float()
    return {
        "point_coords": torch.rand(1, points, 2, generator=rng) * pair.side,
        "point_labels": labels,
        "mask_input": torch.randn(1, 1, side, side, generator=rng) * 4,
        "has_mask": torch.tensor([float(points > 1)]),
    }


def run(graph: nn.Module, feeds: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """What a module makes of its inputs, by name."""
    out = graph(**feeds)
    return dict(zip(names, out if isinstance(out, tuple) else (out,), strict=True))


def _check(role: str, feeds: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Check:
    def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    return Check(role, arrays(feeds), arrays(expected))
