"""Whether exported graphs compute on a GPU what torch computes there: every family that a recipe
may name, at published widths, with few layers and random weights.

Graphs in full precision are compared twice: as exactly as the provider can, which the gate's
tolerance is for, and with products in TF32, ONNX Runtime's default. The error of `gpu-fp16`, whose
products are in 16 bits, is shown without a verdict: the gate compares its masks and replies.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_graphs import GraphHost
from gpu_report import Findings
from random_checkpoint import QWEN_VL
from real_bundle import make_mllm, make_segmenter
from torch import Tensor, nn

from segagent_rt.bundle.bundle import Part, open_part
from segagent_rt.metrics import max_error, meets
from segagent_rt.types import Session
from segagent_rt_export.families.mllm_source import read_source
from segagent_rt_export.families.mobile_sam.tiny_vit import TinyVitShape
from segagent_rt_export.families.simple_click.checkpoint_layout import Source
from segagent_rt_export.families.simple_click.export import load_net
from segagent_rt_export.gate.mllm_reference import (
    MllmReference,
    TransformersReference,
    load_whole,
    open_reference,
)
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.gate.verify import OpenedVariant, reference_errors
from segagent_rt_export.graphs import sam_export
from segagent_rt_export.graphs.exported_segmenter import Check
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.registry import mllm_exporter, mllm_exporters
from segagent_rt_export.sources.checkpoints import read_checkpoint
from tests.export import published
from tests.export.command import checkpoints
from tests.export.simple_click import made_up

VARIANTS: tuple[VariantName, ...] = ("reference", "gpu-fp16")
WAYS: Mapping[str, tuple[VariantName, bool]] = {
    "reference": ("reference", False),
    "reference in TF32": ("reference", True),
    "gpu-fp16": ("gpu-fp16", True),
}
"""Which variant, and whether products may be in TF32."""

SaveCheckpoint = Callable[[Path], Path]
"""Writes a checkpoint into an empty folder; returns the folder, or the file in it."""

FEW = {"num_hidden_layers": 2, "global_attn_indexes": [1]}
WORDS = 512
"""Tokens of a small tokenizer. A larger table of embeddings only takes time to write."""


def published_checkpoints() -> dict[str, SaveCheckpoint]:
    """By family: a published model's widths with few layers."""
    tiny_vit = TinyVitShape((64, 128, 160, 320), (2, 2, 6, 2), (0, 4, 5, 10), (0, 7, 14, 7), 256)
    sam3 = {"model_type": "sam3_vit_model", **FEW}
    one_layer = {"num_hidden_layers": 1, "global_attn_indexes": [0]}
    large = made_up.Sizes(width=1024, heads=16, pyramid=(192, 384, 768, 1536), head=256)
    vision = QWEN_VL["visual"] | {"layers": 2, "image_start_id": WORDS - 12}
    qwen_vl = QWEN_VL | {"num_hidden_layers": 2, "vocab_size": 2 * WORDS, "visual": vision}
    return {
        "sam": _segmenter("facebook/sam-vit-large"),
        "sam_hq": _segmenter("syscv-community/sam-hq-vit-base"),
        "sam2": _segmenter("facebook/sam2.1-hiera-tiny"),
        "edgetam": lambda place: published.save_edgetam(place / "edgetam"),
        "mobile_sam": partial(
            checkpoints.save_mobile_sam, sizes={"vision_config": one_layer}, shape=tiny_vit
        ),
        "sam3": partial(
            checkpoints.save_sam3,
            sizes={"vision_config": {"model_type": "sam3_vision_model", "backbone_config": sam3}},
        ),
        "simple_click": lambda place: made_up.save(place / "large.pth", made_up.content(large)),
        "qwen3_vl": _mllm("Qwen/Qwen3-VL-2B-Instruct"),
        "qwen2_5_vl": _mllm("Qwen/Qwen2.5-VL-3B-Instruct"),
        "qwen2_vl": _mllm("Qwen/Qwen2-VL-2B-Instruct"),
        "llava": _mllm("llava-hf/llava-1.5-7b-hf"),
        "qwen_vl": partial(checkpoints.save_qwen_vl, sizes=qwen_vl),
    }


def _segmenter(name: str) -> SaveCheckpoint:
    return lambda place: published.SEGMENTERS[name].save(place / "checkpoint")


def _mllm(name: str) -> SaveCheckpoint:
    known = published.MLLMS[name]
    few = replace(known, text=known.text | {"vocab_size": WORDS})
    return lambda place: few.save(place / "checkpoint")


def compare(
    findings: Findings, folder: Path, device: str, saved: Mapping[str, SaveCheckpoint]
) -> None:
    """Compare families one after the other, and note each as soon as it is known.

    Args:
        findings: take in errors and verdicts below `numerics`.
        folder: where checkpoints and graphs are written, and removed again.
        device: `cuda` or `cpu`.
        saved: by family, what writes its checkpoint.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # torch is what graphs are measured by
    for family in saved:
        findings.note("numerics", family, value={"state": "waiting"})
    for family, save in saved.items():
        place = folder / family
        findings.note("numerics", family, value={"state": "begun"})
        with findings.attempt("numerics", family):
            place.mkdir(parents=True)
            about = compare_mllm if family in mllm_exporters() else compare_segmenter
            for way, errors in about(family, save(place), place / "part", device):
                findings.note("numerics", family, way, value=_judged(way, errors))
            findings.note("numerics", family, "state", value="done")
        shutil.rmtree(place, ignore_errors=True)


def _judged(way: str, errors: Mapping[str, float]) -> dict[str, Any]:
    worst = max(errors.values())
    found = {"errors": dict(errors), "worst": worst}
    if way == "gpu-fp16":
        return found
    return found | {"passed": meets(worst, at_most=Gate().graph_error)}


def compare_segmenter(
    family: str, checkpoint: Path, target: Path, device: str
) -> Iterator[tuple[str, dict[str, float]]]:
    """Errors by role in each way, as a share of the largest magnitude."""
    with torch_on(device):
        checks = make_segmenter(family, checkpoint, target, VARIANTS)
    if family == "simple_click":
        checks = _simple_click_on(device, checkpoint, checks)
    part = open_part(target, "segmenter")
    for way, (variant, tf32) in WAYS.items():
        with HostedVariant(part, variant, GraphHost(device, tf32)) as opened:
            yield way, _errors(opened, part, checks)


def _errors(opened: OpenedVariant, part: Part, checks: Sequence[Check]) -> dict[str, float]:
    errors: dict[str, float] = {}
    sessions = {role: opened(part, role) for role in part.roles}
    for check in checks:
        found = sessions[check.role].run(check.feeds, list(check.expected))
        worst = max(max_error(found[name], wanted) for name, wanted in check.expected.items())
        errors[check.role] = max(errors.get(check.role, 0.0), worst)
    return {role: float(f"{error:.3g}") for role, error in errors.items()}


def compare_mllm(
    family: str, checkpoint: Path, target: Path, device: str
) -> Iterator[tuple[str, dict[str, float]]]:
    """Errors of pictures and logits in each way, in standard deviations."""
    source = read_source(checkpoint)
    make_mllm(source, target, VARIANTS)
    part = open_part(target, "mllm")
    with torch.device(device):
        reference: MllmReference
        if mllm_exporter(family).reference is None:
            reference = TransformersReference(load_whole(checkpoint).to(device), checkpoint, source)
        else:
            reference = open_reference(checkpoint, source, None)
        for way, (variant, tf32) in WAYS.items():
            with HostedVariant(part, variant, GraphHost(device, tf32)) as opened:
                yield way, reference_errors(opened, reference, lambda text: None)


class HostedVariant(OpenedVariant):
    """One variant of a part, on a device."""

    def __init__(self, part: Part, variant: str, host: GraphHost) -> None:
        super().__init__(part, variant, part.roles)
        self._host = host

    def _open(self, part: Part, role: str, variant: str) -> Session:
        return self._host.open(part.graphs(role, variant)[0].path)


@contextmanager
def torch_on(device: str) -> Iterator[None]:
    """What exporters of the SAM family compare with is computed on the device."""

    def run(
        graph: nn.Module, feeds: Mapping[str, Tensor], names: tuple[str, ...]
    ) -> dict[str, Tensor]:
        there = {name: feed.to(device) for name, feed in feeds.items()}
        _move(graph, device)
        found = on_host(graph, there, names)
        _move(graph, "cpu")
        return {name: tensor.cpu() for name, tensor in found.items()}

    on_host = sam_export.run
    with patch.object(sam_export, "run", run):
        yield


def _move(graph: nn.Module, device: str) -> None:
    """As `graph.to(device)`, but what was never given numbers stays without."""
    for module in graph.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))


@torch.no_grad()
def _simple_click_on(device: str, checkpoint: Path, checks: Sequence[Check]) -> list[Check]:
    """The same comparisons with what torch computes on the device."""
    read = Source.of(read_checkpoint(checkpoint))
    found = []
    for check in checks:
        net = load_net(read, check.feeds["image"].shape[-1]).to(device)
        feeds = {name: torch.as_tensor(feed).to(device) for name, feed in check.feeds.items()}
        found.append(replace(check, expected={"logits": net(**feeds).numpy(force=True)}))
    return found
