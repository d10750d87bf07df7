"""Every family of segmenters that a recipe may name, and who exports it."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.recipe import SegmenterRecipe
from segagent_rt_export.variants import SEGMENTER_VARIANTS

FORMED = ("sam", "sam_hq")
"""Families with an encoder in another form for GPUs: their attention's bias depends on the query.
That of the others is constant, or there is none."""

FOR_GPU = "gpu"
"""The folder beside the graphs where those in their form for GPUs are written."""


def export_segmenter(recipe: SegmenterRecipe, source: Path, folder: Path) -> ExportedSegmenter:
    """Write a segmenter's graphs in full precision, those that only GPUs take in `folder / FOR_GPU`
    if a variant is for GPUs; only its family's module is imported.

    Raises:
        CheckpointInvalid: the source is no checkpoint of the family.
        InputError: the recipe asks for what the family cannot be.
    """
    module = import_module(f"segagent_rt_export.families.{recipe.family}.export")
    export = getattr(module, f"export_{recipe.family}")
    options = {"side": recipe.side, "flip": recipe.flip}
    exported: ExportedSegmenter = export(
        source, folder, **{name: value for name, value in options.items() if value is not None}
    )
    if not formed_for_gpu(recipe):
        return exported
    (folder / FOR_GPU).mkdir()
    export = getattr(module, f"export_{recipe.family}_for_gpu")
    return replace(exported, for_gpu=export(source, folder / FOR_GPU))


def formed_for_gpu(recipe: SegmenterRecipe) -> bool:
    """Whether some variant is made of graphs in another form than the reference's."""
    for_gpu = any(SEGMENTER_VARIANTS[name].device == "gpu" for name in recipe.variants)
    return for_gpu and recipe.family in FORMED
