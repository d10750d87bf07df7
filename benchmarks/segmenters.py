"""Segmenters of real size with random weights: what a click costs, the first one and later ones.

taskset -c 0,1 python benchmarks/segmenters.py FOLDER    writes benchmarks/results/segmenters.json

Exports SAM ViT-B, EdgeTAM and SimpleClick ViT-L with the gate on, then clicks several times into
each of several scenes. How long that takes does not depend on the weights' values. What a run that
was stopped has exported is used again; afterwards FOLDER is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from clock import Clock
from random_weights import awaken
from safetensors.torch import save_file
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

from segagent_rt.backends.session import SessionOptions
from segagent_rt.bench.machine import describe_machine, measure_ceilings
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.io import dump_json
from segagent_rt.runtime import open_segmenter
from segagent_rt.scenes import make_scene
from segagent_rt.types import Click, Segmenter
from segagent_rt_export.families.edgetam.export import EdgeTam
from segagent_rt_export.families.edgetam.repvit import RepVit
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import make_plan
from segagent_rt_export.recipe import read_recipe

RESULT = Path(__file__).parent / "results" / "segmenters.json"
VARIANTS = ("reference", "cpu-w8", "cpu-w8a8-dynamic")
SIDE = 1024
MADE_UP = Path(__file__).parents[1] / "tests" / "export" / "simple_click" / "made_up.py"

EDGETAM: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {"model_type": "sam2_hiera_det_model"},
        "backbone_channel_list": [384, 192, 96, 48],
        "backbone_feature_sizes": [[256, 256], [128, 128], [64, 64]],
        "fpn_hidden_size": 256,
    }
}
"""As published; the trunk is RepViT-m1."""


@dataclass(frozen=True, slots=True)
class EdgeTamSize:
    """Channels and blocks of the trunk's stages, and the configuration of all else."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    config: Mapping[str, Any]


VIT_LARGE: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23], "mlp_dim": 4096,
    },
}  # fmt: skip
"""SAM ViT-L."""

AS_PUBLISHED = EdgeTamSize((48, 96, 192, 384), (2, 2, 14, 2), EDGETAM)


@dataclass(frozen=True, slots=True)
class Work:
    """What writes a segmenter's checkpoint into an empty folder, and how much is measured:
    scenes, and clicks into each. SimpleClick computes everything anew for each click."""

    save: Callable[[Path], None]
    scenes: int = 5
    clicks: int = 7


def main(folder: Path) -> None:
    """Export, measure, print and write."""
    families = {
        "sam": Work(save_sam),
        "edgetam": Work(save_edgetam),
        "simple_click": Work(save_simple_click, scenes=2, clicks=4),
    }
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ceilings": measure_ceilings(),
        "scenes": f"{SIDE} x {SIDE}",
    }
    for family, work in families.items():
        place = folder / family
        place.mkdir(parents=True, exist_ok=True)
        document[family] = measure(family, work, place)
    shutil.rmtree(folder)
    RESULT.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))


def measure(family: str, work: Work, place: Path) -> dict[str, Any]:
    """One family: the export's figures, then each variant's."""
    folder = place / "checkpoint"
    if not folder.exists():
        folder.mkdir()
        work.save(folder)
    checkpoint = next(folder.glob("*.pth"), folder)
    bundle = export_variants(family, checkpoint, place, VARIANTS)
    verified = open_bundle(bundle).part("segmenter").manifest.verified
    return {"verified": verified} | {name: clicks(bundle, name, work) for name in VARIANTS}


def export_variants(family: str, checkpoint: Path, place: Path, variants: Sequence[str]) -> Path:
    """A bundle; what a run that was stopped has exported is used again."""
    bundle, recipe = place / "bundle", place / "recipe.toml"
    names = ", ".join(f'"{name}"' for name in variants)
    recipe.write_text(
        f'[segmenter]\nfamily = "{family}"\nsource = "{checkpoint.resolve()}"\n'
        f"variants = [{names}]\n"
    )
    plan = make_plan(read_recipe(recipe), bundle, resume=True, below_gate=True)
    judge = GatePolicy(Gate(scenes=2), forgiving=True)
    run_export(plan, judge, lambda text: print(f"{family}: {text}", file=sys.stderr))
    return bundle


def clicks(bundle: Path, variant: str, work: Work) -> dict[str, Any]:
    """Seconds of encoding, and of every click behind it; the first scene does not count."""
    part, cpu = open_bundle(bundle).part("segmenter"), SessionOptions("cpu")
    segmenter = open_segmenter(part, lambda part, role: part.session(role, cpu, variant))
    encode, first, later = Clock(), Clock(), Clock()
    _annotate_scene(segmenter, 0, 2, Clock(), Clock(), Clock())
    for seed in range(1, work.scenes + 1):
        _annotate_scene(segmenter, seed, work.clicks, encode, first, later)
    share = median(later.cpu) / (median(encode.cpu) + median(first.cpu))
    return {
        "encode_ms": encode.milliseconds(),
        "first_decode_ms": first.milliseconds(),
        "later_click_ms": later.milliseconds(),
        "later_share_of_first_click_cpu": round(share, 5),
    }


def _annotate_scene(
    segmenter: Segmenter, seed: int, clicks: int, encode: Clock, first: Clock, later: Clock
) -> None:
    """A scene with all its clicks."""
    image, prediction = make_scene(seed, SIDE).image, None
    with encode():
        embedding = segmenter.encode(image)
    made = [Click(100 + 120 * n, 900 - 100 * n, n % 3 < 2) for n in range(clicks)]
    for count in range(1, clicks + 1):
        with first() if count == 1 else later():
            prediction = segmenter.decode(embedding, made[:count], prior=prediction)
            prediction.mask()


def save_sam(place: Path, sizes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """SAM ViT-B is the configuration's default."""
    awaken(SamModel(SamConfig(**sizes))).save_pretrained(place)


def save_sam2(place: Path, sizes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """SAM 2.1 tiny is the configuration's default."""
    awaken(Sam2Model(Sam2Config(**sizes))).save_pretrained(place)


def save_edgetam(place: Path, size: EdgeTamSize = AS_PUBLISHED) -> None:
    """The image model, under the published names."""
    config = Sam2Config(**size.config)
    config.mask_decoder_config._attn_implementation = "eager"
    net = awaken(EdgeTam(RepVit(size.widths, size.depths), config))
    save_file(net.state_dict(), place / "model.safetensors")
    described = json.loads(config.to_json_string(use_diff=False)) | {"model_type": "edgetam_video"}
    described["vision_config"]["backbone_config"] = {"model_type": "timm_wrapper"}
    (place / "config.json").write_text(json.dumps(described), "utf-8")


def save_simple_click(place: Path) -> None:
    """SimpleClick ViT-L, in one file as its authors save it."""
    made_up = run_path(str(MADE_UP))
    sizes = made_up["Sizes"](1024, 24, 16, 14, (192, 384, 768, 1536), 256)
    torch.save(made_up["content"](sizes), place / "simple_click_vit_large.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
