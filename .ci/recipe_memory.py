"""Which variants of a recipe's models fit which board, by the memory plan of `inspect --board`.

The plan of an exported bundle takes sizes from its manifests. Here they follow from the recipe:
weights by their number and width, buffers and activations by the published shape.
"""

from __future__ import annotations

from pathlib import Path

from segagent_rt.bench.boards import board
from segagent_rt.bench.budget import (
    PartMemory,
    judge_variants,
    mllm_working,
    part_memory,
    segmenter_activations,
    unknown_buffers,
)
from segagent_rt.bench.buffers import MllmShape
from segagent_rt.bundle.manifest import PartName
from segagent_rt.memory import build_memory
from segagent_rt_export.recipe import PublishedFacts, PublishedShape, Recipe

ROOT = Path(__file__).parents[1]
BOARDS = {
    "orin-nano-8": "Orin Nano 8 GB",
    "orin-nx-16": "Orin NX 16 GB",
    "agx-orin-32": "AGX Orin 32 GB",
    "rtx-8": "RTX 8 GB",
}
BYTES = {"gpu-fp16": (2.0, 2.0), "gpu-w8": (1.0, 1.0), "gpu-w4": (1.0, 0.5 + 2 / 64)}
"""Of a weight of the vision encoder and of the language model; scales of 64 weights take two."""

PRECISION = {"gpu-fp16": "fp16", "gpu-w8": "8 bit", "gpu-w4": "4 bit"}
"""Of the language model's weights."""

MEASURED = {
    "yonigozlan/EdgeTAM-hf": "segmenters.json",
    "Qwen/Qwen3-VL-2B-Instruct": "real-walk.json",
    "Qwen/Qwen2.5-VL-3B-Instruct": "real-size-qwen2.5-vl-3b.json",
    "zzzmmz/SegAgent-Model": "real-size-qwen-vl.json",
}
"""Results of benchmarks with all layers of a checkpoint's published configuration."""

TEXT_ROWS = 256
"""Tokens of the question and the reply together."""

SIDE = 1024
"""Of the square that SAM's relatives see; SimpleClick sees 448 pixels, twice."""


def fitting(recipe: Recipe, name: str) -> list[str]:
    """The variants that run and can be built on a board: of the MLLM, or of a segmenter alone."""
    needs = {part: _needs(recipe, part) for part in recipe.parts}
    fits = judge_variants(needs, board(name), {})
    suits = {part: [f.need.variant for f in fits if f.need.part == part and f.problem is None]
             for part in needs}  # fmt: skip
    if not all(suits.values()):
        return []
    return [variant.removeprefix("gpu-") for variant in suits.get("mllm") or suits["segmenter"]]


def _needs(recipe: Recipe, part: PartName) -> list[PartMemory]:
    facts = recipe.parts[part].published
    assert facts is not None
    if part == "segmenter":
        return [_segmenter(recipe, facts)]
    assert facts.shape is not None
    return [_mllm(facts.shape, variant) for variant in BYTES]


def _segmenter(recipe: Recipe, facts: PublishedFacts) -> PartMemory:
    """All weights count as fp16 and as one graph: decoders are small."""
    family = recipe.parts["segmenter"].family
    size = int(2e6 * facts.parameters_m)
    if family == "simple_click":
        return part_memory(
            "segmenter", "gpu-fp16", [size], 0, 
            (unknown_buffers(448), 2 * segmenter_activations(family, 448)),
            build_memory(size, ""),
        )  # fmt: skip
    working = unknown_buffers(SIDE), segmenter_activations(family, SIDE)
    return part_memory("segmenter", "gpu-fp16", [size, 0], 0, working, build_memory(size, ""))


def _mllm(shape: PublishedShape, variant: str) -> PartMemory:
    weights = shape.vision_m, shape.decoder_m
    graphs = [int(1e6 * m * width) for m, width in zip(weights, BYTES[variant], strict=True)]
    working = mllm_working(
        MllmShape(
            patches=shape.patches, visual=shape.visual_tokens,
            tokens=shape.visual_tokens + TEXT_ROWS, layers=shape.layers, hidden=shape.hidden,
            kv_heads=shape.kv_heads, head_width=shape.head_width,
        )
    )  # fmt: skip
    table = int(2e6 * shape.table_m)
    building = [build_memory(graphs[0], ""), build_memory(graphs[1], PRECISION[variant])]
    return part_memory("mllm", variant, graphs, table, working, max(building))


def verified(recipe: Recipe) -> list[str]:
    """How large the segmenter and the MLLM were that were exported and compared."""
    parts = recipe.parts.items()
    found = {part: _verified(made_of.source) for part, made_of in parts}
    return [found.get("segmenter", ""), found.get("mllm", "")]


def _verified(source: str) -> str:
    name = source.split(":")[-1].split("@")[0]
    if name in MEASURED and (ROOT / "benchmarks" / "results" / MEASURED[name]).is_file():
        return "real size"
    configurations = (ROOT / "tests" / "export" / "published.py").read_text("utf-8")
    return "real widths" if f'"{name}"' in configurations else "small"
