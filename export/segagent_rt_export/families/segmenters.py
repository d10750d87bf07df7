"""Export a segmenter by the family that the recipe names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import onnx

from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.passes.fold_constants import fold_constants
from segagent_rt_export.passes.merge_convs import merge_convs
from segagent_rt_export.recipe import SegmenterRecipe
from segagent_rt_export.registry import code, segmenter_exporter
from segagent_rt_export.variants import SEGMENTER_VARIANTS

FOR_GPU = "gpu"
"""The folder beside the graphs where those in their form for GPUs are written."""


def export_segmenter(recipe: SegmenterRecipe, source: Path, folder: Path) -> ExportedSegmenter:
    """Write a segmenter's graphs in full precision, those that only GPUs take in `folder / FOR_GPU`
    if a variant is for GPUs; only its family's module is imported.

    Raises:
        CheckpointInvalid: the source is no checkpoint of the family.
        InputError: the recipe asks for what the family cannot be.
    """
    family = segmenter_exporter(recipe.family)
    options = {name: getattr(recipe, name) for name in family.options}
    exported: ExportedSegmenter = code(family.export)(
        source, folder, **{name: value for name, value in options.items() if value is not None}
    )
    if family.export_for_gpu is not None and formed_for_gpu(recipe):
        (folder / FOR_GPU).mkdir()
        for_gpu = code(family.export_for_gpu)(source, folder / FOR_GPU)
        exported = replace(exported, for_gpu=for_gpu)
    _simplify({*exported.graphs.values(), *exported.for_gpu.values()})
    return exported


def _simplify(graphs: Iterable[Path]) -> None:
    """What every family's graphs need or gain from, in files."""
    for path in graphs:
        model = onnx.load(path, load_external_data=False)
        model = merge_convs(fold_constants(model, path.parent), path.parent)
        path.write_bytes(model.SerializeToString())


def formed_for_gpu(recipe: SegmenterRecipe) -> bool:
    """Whether some variant is made of graphs in another form than the reference's."""
    for_gpu = any(SEGMENTER_VARIANTS[name].device == "gpu" for name in recipe.variants)
    return for_gpu and segmenter_exporter(recipe.family).export_for_gpu is not None
