"""What a GPU computes, and how fast, measured in one session of minutes.

bash benchmarks/gpu_session.sh              writes benchmarks/results/gpu.json
bash benchmarks/gpu_session.sh --dry-run    small shapes on the CPU: that all of it runs

While checkpoints of real size are written and exported, graphs of every family are compared with
torch; then models are timed, one at a time. Whatever is known is in the file at once, so a session
that is killed keeps what it had. `segagent-rt bench report benchmarks` shows it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_numerics
import gpu_times
import onnxscript  # noqa: F401  before processes are forked, for each would import it
import torch
import transformers
from gpu_cards import describe_gpu
from gpu_report import Findings, Phase, SessionRun
from real_bundle import BundlePlace, RandomSegmenter, make, make_segmenter, place_of
from segmenters import VIT_LARGE, save_sam, save_sam2

from segagent_rt.backends import onnxruntime
from segagent_rt.bench.machine import describe_machine
from segagent_rt_export.registry import mllm_exporters
from tests.export.command.checkpoints import MADE, SAM2_SIZES, SAM_SIZES

RESULT = Path(__file__).parent / "results" / "gpu.json"
SECONDS = 480.0
"""Of the whole session; each phase has its share."""

DRY_FAMILIES = ("sam2", "qwen3_vl")
"""Families that a dry run compares: one of segmenters, one of MLLMs."""


@dataclass(frozen=True, slots=True)
class GpuSession:
    """What is measured, and where.

    Attributes:
        folder: where checkpoints and bundles are written.
        device: `cuda` or `cpu`.
        places: MLLMs with a segmenter beside them.
        sam: a segmenter by itself, by its name and the sizes of its checkpoint.
        checkpoints: by family, what writes the checkpoint whose graphs are compared.
        compiled: models that `torch.compile` is timed with, in this order.
        laps: the most turns of a way.
        run: keeps the document.
    """

    folder: Path
    device: str
    places: tuple[BundlePlace, ...]
    sam: tuple[str, Mapping[str, Any]]
    checkpoints: Mapping[str, gpu_numerics.SaveCheckpoint]
    compiled: tuple[str, ...]
    laps: int
    run: SessionRun

    def phases(self) -> list[Phase]:
        """In the order in which they are begun. Times are taken alone."""
        scale = self.run.seconds / SECONDS
        segmenters = {n: s for n, s in self.checkpoints.items() if n not in mllm_exporters()}
        mllms = {n: s for n, s in self.checkpoints.items() if n in mllm_exporters()}
        name = self.sam[0]
        prepare = [
            Phase("machine", 30, self.describe, alone=True),
            *(Phase(f"make {p.model}", 200, partial(self.make, p)) for p in self.places),
            Phase(f"make {name}", 200, self.make_sam),
            Phase("numerics of segmenters", 150, partial(self.compare, segmenters)),
            Phase("numerics of MLLMs", 150, partial(self.compare, mllms)),
        ]
        timed = list[Phase]()
        for compiled, seconds in ((False, 80), (True, 90)):
            against = "torch.compile" if compiled else "PyTorch"
            works = {p.model: partial(self.time_model, p, compiled) for p in self.places}
            works[name] = partial(self.time_sam, compiled)
            for model in self.compiled if compiled else works:
                title, needs = f"{model} and {against}", (f"make {model}",)
                timed.append(Phase(title, seconds, works[model], needs, alone=True))
        return [replace(p, seconds=p.seconds * scale) for p in (*prepare, *timed)]

    def describe(self, findings: Findings) -> None:
        """The machine, its GPU, and whether ONNX Runtime works there."""
        findings.note("gpu", value=describe_gpu(self.device))
        findings.note("machine", value=describe_machine())
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        findings.note("libraries", value=versions)
        with findings.attempt("provider"):
            onnxruntime.check(self.device)
            findings.note("provider", value="works")

    def make(self, place: BundlePlace, findings: Findings) -> None:
        """Write a checkpoint and its bundle."""
        _share_cores()
        make(place, (gpu_times.VARIANT,), (gpu_times.VARIANT,))

    def make_sam(self, findings: Findings) -> None:
        """Write the checkpoint of the segmenter by itself, and its part."""
        _share_cores()
        place = self.folder / self.sam[0]
        (place / "checkpoint").mkdir(parents=True)
        save_sam(place / "checkpoint", self.sam[1])
        make_segmenter("sam", place / "checkpoint", place / "segmenter", (gpu_times.VARIANT,))

    def compare(self, saved: Mapping[str, gpu_numerics.SaveCheckpoint], findings: Findings) -> None:
        """Graphs against torch."""
        _share_cores()
        gpu_numerics.compare(findings, self.folder / "numerics", self.device, saved)

    def time_model(self, place: BundlePlace, compiled: bool, findings: Findings) -> None:
        """An MLLM and its segmenter."""
        gpu_times.time_model(self._timer(findings, place.model, compiled), place)

    def time_sam(self, compiled: bool, findings: Findings) -> None:
        """The segmenter by itself."""
        place = self.folder / self.sam[0]
        pair = gpu_times.SegmenterPair.of(
            "sam", place / "checkpoint", place / "segmenter", self.device
        )
        gpu_times.time_segmenter(self._timer(findings, self.sam[0], compiled), pair)

    def _timer(self, findings: Findings, model: str, compiled: bool) -> gpu_times.Timer:
        card = self.run.document.get("gpu", {})
        return gpu_times.Timer(findings, model, self.device, card, compiled, self.laps)


def _share_cores() -> None:
    """While several phases run side by side."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole session")
    parser.add_argument("--folder", type=Path, help="where checkpoints and bundles are written")
    parser.add_argument("-o", "--output", type=Path, help="another file for the result")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    output = given.output or (Path("gpu-dry-run.json") if given.dry_run else RESULT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    document = {"schema": 1, "dry_run": given.dry_run, "weights": "random", "state": "running"}
    run = SessionRun(output, given.seconds, document)
    session = dry_session(folder, run) if given.dry_run else real_session(folder, run)
    document["device"] = session.device
    try:
        run.run(session.phases())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, about in document["phases"].items():
        print(f"{about['state']:8}  {name}  {about.get('why', '')}")
    print(f"{output}: {document['state']} after {document['seconds']} s")


def real_session(folder: Path, run: SessionRun) -> GpuSession:
    """The session on a GPU, with models of their published sizes."""
    places = tuple(place_of(folder, name) for name in ("qwen3-vl-2b", "qwen2.5-vl-3b"))
    checkpoints = gpu_numerics.published_checkpoints()
    compiled = ("qwen3-vl-2b", "sam-vit-l", "qwen2.5-vl-3b")
    sam = "sam-vit-l", VIT_LARGE
    return GpuSession(folder, "cuda", places, sam, checkpoints, compiled, 30, run)


def dry_session(folder: Path, run: SessionRun) -> GpuSession:
    """The rehearsal on the CPU, with small models."""
    sam2 = RandomSegmenter("sam2", partial(save_sam2, sizes=SAM2_SIZES))
    places = (
        place_of(folder, "qwen3-vl-small"),
        replace(place_of(folder, "qwen2.5-vl-small"), segmenter=sam2),
    )
    checkpoints = {name: MADE[name] for name in DRY_FAMILIES}
    compiled = ("qwen3-vl-small",)
    torch.set_num_threads(1)  # of small shapes the threads take longer than the work
    return GpuSession(
        folder, "cpu", places, ("sam-small", SAM_SIZES), checkpoints, compiled, 2, run
    )


if __name__ == "__main__":
    main()
