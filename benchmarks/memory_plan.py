"""The memory plan against what is measured: engines that TensorRT-RTX builds, and the builder's
peak, each in a process of its own.

    python benchmarks/memory_plan.py WORK -o benchmarks/results/memory-plan.json

Models have their published widths, random weights and, with --layers, fewer layers, so `stored`
says how many bytes of weights were measured. TensorRT-RTX builds without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from random_checkpoint import CONFIGS, write_checkpoint
from segmenters import save_edgetam

from segagent_rt.bench.budget import BASE
from segagent_rt.memory import build_memory
from segagent_rt_export.recipe import VariantName

MODELS = {"qwen3-vl-2b": (28, 24), "qwen2.5-vl-3b": (36, 32)}
"""Layers of the language model and of the vision encoder."""

GPU = ("gpu-fp16", "gpu-w8", "gpu-w4")


def main() -> None:
    """Measure every graph and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for checkpoints and graphs")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--variants", nargs="*", default=list(GPU))
    parser.add_argument("--layers", nargs=2, type=int, metavar=("LANGUAGE", "VISION"))
    parser.add_argument("--segmenter", action="store_true", help="measure EdgeTAM, too")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text("utf-8"))["graphs"]
    for model in arguments.models:
        layers = arguments.layers or MODELS[model]
        for variant in arguments.variants:
            folder = arguments.work / f"{model}-{layers[0]}-{layers[1]}"
            rows += list(_mllm(model, (layers[0], layers[1]), folder, variant))
            arguments.out.write_text(json.dumps({"graphs": rows}, indent=1), "utf-8")
    if arguments.segmenter:
        rows += list(_edgetam(arguments.work / "edgetam"))
        arguments.out.write_text(json.dumps({"graphs": rows}, indent=1), "utf-8")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, sizes in MB."""
    lines = [
        "| graph | layers | weights | engine | planned | ratio | building | planned | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        planned = row["stored"] + BASE["segmenter" if row["model"] == "edgetam" else "mllm"]
        building = build_memory(row["stored"], row["precision"])
        pairs = ((row["measured"], planned), (row["building"], building))
        cells = [f"{size / 1e6:.0f} | {plan / 1e6:.0f} | {plan / size:.2f}" for size, plan in pairs]
        name = f"{row['model']} {row['variant']} {row['role']}"
        stored = f"{row['stored'] / 1e6:.0f}"
        lines.append("| " + " | ".join([name, str(row["layers"]), stored, *cells]) + " |")
    return "\n".join(lines)


def _mllm(
    model: str, layers: tuple[int, int], folder: Path, variant: VariantName
) -> Iterator[dict[str, Any]]:
    from segagent_rt_export.families.mllm_export import export_mllm_graphs
    from segagent_rt_export.families.mllm_source import Choices, read_source
    from segagent_rt_export.graphs.shape_profiles import mllm_profiles
    from segagent_rt_export.variants import MLLM_VARIANTS

    checkpoint, target = folder / "checkpoint", folder / variant
    if not checkpoint.exists():
        CONFIGS[folder.name] = _with_layers(CONFIGS[model], layers)
        write_checkpoint(folder.name, checkpoint)
    source = read_source(checkpoint, Choices(preset=model.rsplit("-", 1)[0]))
    kind = MLLM_VARIANTS[variant]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    graphs = export_mllm_graphs(source, target, kind.arithmetic, kind.dialect)
    profiles = mllm_profiles(graphs, source.codec)
    for role, graph in graphs.items():
        known: dict[str, Any] = {"model": model, "variant": variant, "role": role}
        known["layers"] = layers[0] if role == "decoder" else layers[1]
        yield known | {"precision": kind.precision} | _measure(graph, profiles[role])
    shutil.rmtree(target)


def _with_layers(config: dict[str, Any], layers: tuple[int, int]) -> dict[str, Any]:
    """A model with the first layers of another one."""
    text = config["text_config"] | {"num_hidden_layers": layers[0]}
    vision = config["vision_config"] | {"depth": layers[1]}
    for name in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        if name in vision:
            vision[name] = [index for index in vision[name] if index < layers[1]] or [0]
    return config | {"text_config": text, "vision_config": vision}


def _edgetam(folder: Path) -> Iterator[dict[str, Any]]:
    from segagent_rt_export.families.segmenters import export_segmenter
    from segagent_rt_export.passes.weight_quant import write_variant
    from segagent_rt_export.recipe import SegmenterRecipe
    from segagent_rt_export.variants import SEGMENTER_VARIANTS

    checkpoint, target = folder / "checkpoint", folder / "graphs"
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    save_edgetam(checkpoint)
    kind = SEGMENTER_VARIANTS["gpu-fp16"]
    (folder / "reference").mkdir()
    recipe = SegmenterRecipe("edgetam", str(checkpoint), ("gpu-fp16",))
    exported = export_segmenter(recipe, checkpoint, folder / "reference")
    write_variant(exported.graphs_for(kind.device), target, kind)
    for role, path in exported.graphs.items():
        known = {"model": "edgetam", "variant": "gpu-fp16", "role": role, "layers": "all"}
        yield known | {"precision": kind.precision} | _measure(target / path.name, ())
    shutil.rmtree(folder)


def _measure(graph: Path, profiles: Any) -> dict[str, Any]:
    from segagent_rt.bundle.manifest import to_json

    stored = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    file = graph.parent / "profiles.json"
    file.write_text(json.dumps(to_json(profiles)), "utf-8")
    command = [sys.executable, "-c", BUILD, str(graph), str(file)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"{graph}: {stored:,} stored, {found}", file=sys.stderr)
    return {"library": found["library"], "stored": stored,
            "measured": found["plan"], "building": found["peak"]}  # fmt: skip


BUILD = """
import json, sys
from pathlib import Path
from segagent_rt.backends.engine_library import load_library
from segagent_rt.bench.machine import peak_bytes
from segagent_rt.bundle.manifest import Profile, parse
profiles = parse(json.loads(Path(sys.argv[2]).read_text()), tuple[Profile, ...], "profiles")
library = load_library("rtx")
before = peak_bytes()
plan = library.build(Path(sys.argv[1]), profiles, b"", lambda phase: None).plan
found = {"plan": len(plan), "peak": peak_bytes() - before, "library": library.version}
print(json.dumps(found))
"""


if __name__ == "__main__":
    main()
