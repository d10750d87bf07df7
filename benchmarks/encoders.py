"""Encoders of segmenters at real size: which variant and which library encodes an image fastest.

taskset -c 0,1 python benchmarks/encoders.py FOLDER    writes benchmarks/results/encoders.json

Exports EdgeTAM and MobileSAM with random weights, and runs each encoder in every
variant on ONNX Runtime and, in fp32 and in bfloat16, on OpenVINO. They take turns, so a busy
machine slows all of them alike. Times do not depend on the weights' values; errors do, so how far
bfloat16 and integers are away from fp32 is measured at export and at `build`, with real weights.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_weights import awaken
from segmenters import SIDE, export_variants, save_edgetam
from transformers import SamConfig, SamModel

from segagent_rt.backends.engine_library import load_library
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bench.machine import describe_machine, measure_ceilings
from segagent_rt.bench.stats import percentiles
from segagent_rt.bundle.bundle import Part, open_bundle
from segagent_rt.io import dump_json
from segagent_rt.types import Session
from segagent_rt_export.families.mobile_sam.tiny_vit import TinyVit, TinyVitShape
from segagent_rt_export.sources import sam_layout

RESULT = Path(__file__).parent / "results" / "encoders.json"
NAMES = Path(__file__).parents[1] / "tests" / "golden" / "sam_original_names.txt"
VARIANTS = ("reference", "cpu-w8", "cpu-w8a8-dynamic", "cpu-w8a8-static")
ROUNDS = 15

TINY_VIT = TinyVitShape((64, 128, 160, 320), (2, 2, 6, 2), (0, 4, 5, 10), (0, 7, 14, 7), 256)
"""As published for MobileSAM."""


def main(folder: Path) -> None:
    """Export, measure, print and write."""
    families: dict[str, Callable[[Path], Path]] = {
        "edgetam": _edgetam,
        "mobile_sam": _mobile_sam,
    }
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ceilings": measure_ceilings(),
        "image": f"{SIDE} x {SIDE}",
    }
    bundles = {name: _exported(name, save, folder / name) for name, save in families.items()}
    for name, bundle in bundles.items():
        document[name] = measure(open_bundle(bundle).part("segmenter"))
    shutil.rmtree(folder)
    RESULT.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))


def measure(part: Part) -> dict[str, Any]:
    """Milliseconds of an encoder by variant or library, in turn; the first round does not count."""
    sessions: dict[str, Session] = {}
    for graph in part.graphs("encoder"):
        integers = "encoder" in graph.variant.integers
        sessions[graph.name] = open_session(
            graph.path, SessionOptions("cpu", integer_compute=integers)
        )
    whole = part.graphs("encoder", "reference")[0].path
    for library in load_library("openvino").forms():
        plan = library.build(whole, (), b"", lambda phase: None).plan
        sessions[f"openvino-{library.form}"] = library.open(plan, "the encoder")
    image = np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(1 + ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run({"image": image}, ["embedding"])
            taken[name].append(time.perf_counter() - start)
    for session in sessions.values():
        session.close()
    return {name: asdict(percentiles(times[1:])) for name, times in taken.items()}


def _exported(family: str, save: Callable[[Path], Path], place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    return export_variants(family, save(place / "checkpoint"), place, VARIANTS)


def _edgetam(folder: Path) -> Path:
    if not folder.exists():
        folder.mkdir()
        save_edgetam(folder)
    return folder


def _mobile_sam(folder: Path) -> Path:
    path = folder / "mobile_sam.pt"
    if path.exists():
        return path
    folder.mkdir(exist_ok=True)
    names = [n for n in NAMES.read_text("utf-8").split() if not n.startswith("image_encoder.")]
    renamed = sam_layout.renamed(dict.fromkeys(names, torch.zeros(1)))
    state = awaken(SamModel(SamConfig())).state_dict()
    rest = {old: state[new] for old, new in zip(names, renamed, strict=True)}
    encoder = awaken(TinyVit(TINY_VIT)).state_dict()
    torch.save({f"image_encoder.{name}": tensor for name, tensor in encoder.items()} | rest, path)
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
