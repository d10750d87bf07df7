"""Every family of segmenters that a recipe may name, and who exports it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from segagent_rt_export.recipe import SegmenterRecipe
from segagent_rt_export.segmenters.exported import ExportedSegmenter


def export_segmenter(recipe: SegmenterRecipe, source: Path, folder: Path) -> ExportedSegmenter:
    """Write a segmenter's graphs in full precision; only its family's module is imported.

    Raises:
        CheckpointInvalid: the source is no checkpoint of the family.
        InputError: the recipe asks for what the family cannot be.
    """
    module = import_module(f"segagent_rt_export.segmenters.{recipe.family}")
    export = getattr(module, f"export_{recipe.family}")
    options = {"side": recipe.side, "flip": recipe.flip}
    exported: ExportedSegmenter = export(
        source, folder, **{name: value for name, value in options.items() if value is not None}
    )
    return exported
