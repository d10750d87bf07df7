"""Bundles of real size with random weights, written without the gate: they are for timing.

A graph that is not what torch computes is found by whoever measures, in the run that measures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from random_checkpoint import write_checkpoint
from segmenters import EdgeTamSize, save_edgetam, save_sam2

from segagent_rt.bundle.manifest import BundleIndex, PartName, Variant
from segagent_rt_export.bundle_writer import PartDraft, new_part, write_index, write_manifest
from segagent_rt_export.families.mllm_export import export_mllm_graphs, export_mllm_tables
from segagent_rt_export.families.mllm_source import Choices, MllmSource, read_source
from segagent_rt_export.families.segmenters import export_segmenter
from segagent_rt_export.graphs.exported_segmenter import Check
from segagent_rt_export.passes.weight_quant import write_variant
from segagent_rt_export.recipe import SegmenterRecipe, VariantName
from segagent_rt_export.variants import MLLM_VARIANTS, REFERENCE, SEGMENTER_VARIANTS

NOT_RUN = {"gate": "not run: random weights, for timing"}

SMALL_EDGETAM = EdgeTamSize(
    (16, 24, 32, 48),
    (2, 2, 3, 1),
    {
        "vision_config": {
            "backbone_config": {"model_type": "sam2_hiera_det_model"},
            "backbone_channel_list": [48, 32, 24, 16],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    },
)


@dataclass(frozen=True, slots=True)
class RandomSegmenter:
    """A segmenter's family, and what writes a checkpoint of it into an empty folder."""

    family: str
    save: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class BundlePlace:
    """A model's folder: a checkpoint, and the bundle that was made of it.

    Attributes:
        model: one of random_checkpoint's.
        pixels: of the pictures that the MLLM sees: 1,024 patches.
        segmenter: the segmenter beside it, if there is one.
    """

    folder: Path
    model: str
    pixels: int
    segmenter: RandomSegmenter | None = None

    @property
    def checkpoint(self) -> Path:
        """The MLLM's."""
        return self.folder / "checkpoint"

    @property
    def segmenter_checkpoint(self) -> Path:
        """The segmenter's."""
        assert self.segmenter is not None
        return self.folder / self.segmenter.family

    @property
    def bundle(self) -> Path:
        """What was exported."""
        return self.folder / "bundle"

    def source(self) -> MllmSource:
        """The MLLM's checkpoint, understood. Pictures pass through JPEG files, as in SegAgent."""
        choices = Choices(preset="segagent-rated", most_pixels=self.pixels, jpeg=True)
        return read_source(self.checkpoint, choices)


SMALL_PIXELS = 140 * 140
MODELS: dict[str, tuple[int, RandomSegmenter | None]] = {
    "qwen2.5-vl-0.5b": (448 * 448, None),
    "qwen2.5-vl-3b": (448 * 448, RandomSegmenter("sam2", save_sam2)),
    "qwen3-vl-2b": (512 * 512, RandomSegmenter("edgetam", save_edgetam)),
    "qwen3-vl-small": (
        SMALL_PIXELS, RandomSegmenter("edgetam", partial(save_edgetam, size=SMALL_EDGETAM))
    ),
}  # fmt: skip
"""Pixels and segmenters of models that are not small, or have a segmenter."""


def place_of(folder: Path, model: str) -> BundlePlace:
    """Where a model of these benchmarks lies, and what belongs to it."""
    pixels, segmenter = MODELS.get(model, (SMALL_PIXELS, None))
    return BundlePlace(folder / model, model, pixels, segmenter)


def make(
    place: BundlePlace,
    variants: Sequence[VariantName],
    segmenter_variants: Sequence[VariantName] = ("cpu-w8",),
) -> None:
    """Write what is not there yet: checkpoints, then a bundle with exactly these variants."""
    if not place.checkpoint.exists():
        write_checkpoint(place.model, place.checkpoint)
    parts: list[PartName] = ["mllm"]
    if not _is_there(place.bundle / "mllm", variants):
        shutil.rmtree(place.bundle / "mllm", ignore_errors=True)
        make_mllm(place.source(), place.bundle / "mllm", variants)
    if place.segmenter is not None:
        parts.append("segmenter")
        if not place.segmenter_checkpoint.exists():
            place.segmenter_checkpoint.mkdir()
            place.segmenter.save(place.segmenter_checkpoint)
        if not (place.bundle / "segmenter").exists():
            target, family = place.bundle / "segmenter", place.segmenter.family
            make_segmenter(family, place.segmenter_checkpoint, target, segmenter_variants)
    write_index(place.bundle, BundleIndex(place.model, {name: name for name in parts}))


def _is_there(part: Path, variants: Sequence[VariantName]) -> bool:
    manifest = part / "manifest.json"
    if not manifest.is_file():
        return False
    return set(json.loads(manifest.read_text("utf-8"))["variants"]) == set(variants)


def make_mllm(source: MllmSource, target: Path, variants: Sequence[VariantName]) -> None:
    """Write an MLLM's part with these variants."""
    with new_part(target) as folder:
        made: dict[str, Variant] = {}
        for name in variants:
            kind = MLLM_VARIANTS[name]
            (folder / name).mkdir()
            paths = export_mllm_graphs(source, folder / name, kind.arithmetic, kind.dialect)
            graphs = {role: f"{name}/{path.name}" for role, path in paths.items()}
            made[name] = Variant(kind.device, kind.precision, graphs, kind.dialect)
        export_mllm_tables(source, folder)
        draft = PartDraft("mllm", source.family, source.settings, made, source.provenance, NOT_RUN)
        write_manifest(folder, draft)


def make_segmenter(
    family: str, checkpoint: Path, target: Path, variants: Sequence[VariantName]
) -> Sequence[Check]:
    """Write a segmenter's part; the reference is among its variants only if it is named.

    Returns:
        What its graphs in full precision must compute.
    """
    recipe = SegmenterRecipe(family, str(checkpoint), tuple(variants))
    with new_part(target) as folder:
        (folder / REFERENCE).mkdir()
        exported = export_segmenter(recipe, checkpoint, folder / REFERENCE)
        made: dict[str, Variant] = {}
        for name in variants:
            kind = SEGMENTER_VARIANTS[name]
            if name != REFERENCE:
                write_variant(exported.graphs_for(kind.device), folder / name, kind)
            graphs = {role: f"{name}/{path.name}" for role, path in exported.graphs.items()}
            made[name] = Variant(kind.device, kind.precision, graphs, kind.dialect)
        if REFERENCE not in variants:
            shutil.rmtree(folder / REFERENCE)
        draft = PartDraft(
            "segmenter", family, exported.settings, made, exported.provenance, NOT_RUN
        )
        write_manifest(folder, draft)
    return exported.checks
