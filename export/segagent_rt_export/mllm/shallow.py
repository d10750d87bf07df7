"""A large MLLM cut to its first decoder layers, so that torch can hold it beside the graphs.

What the layers may get wrong, the first ones get wrong, too: the later ones are written by the same
code under other numbers.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

from segagent_rt.bundle import Part, open_part
from segagent_rt.contracts import Variant
from segagent_rt.memory import free_memory
from segagent_rt_export.mllm.export import TABLE_FILE, TOKENIZER_FILE, export_mllm_graphs
from segagent_rt_export.mllm.source import MllmSource
from segagent_rt_export.parts import PartDraft, write_manifest
from segagent_rt_export.variants import MLLM_VARIANTS, REFERENCE

LEAST = 2
"""Layers that are compared however little memory there is."""

SHARE = 0.6
"""Of the free memory, how much the comparison may take."""


def layers_that_fit(source: MllmSource) -> int:
    """How many decoder layers fit into memory twice in fp32, with everything around them."""
    counts = {name: math.prod(t.shape) for name, t in source.weights.tensors.items()}
    layer = sum(n for name, n in counts.items() if name.startswith("language.layers.0."))
    rest = sum(n for name, n in counts.items() if not name.startswith("language.layers."))
    total, free = source.model.language.layers, free_memory()
    if free is None:
        return total
    fitting = int((SHARE * free / 4 - 2 * rest) / max(2 * layer, 1))
    least = max(LEAST, source.model.language.deepstack + 1)
    return min(total, max(fitting, least))


def shallow(source: MllmSource, layers: int) -> MllmSource:
    """The same model with the first so many decoder layers."""
    model, settings = source.model, source.settings
    cut = replace(settings.language, layers=layers)
    language = replace(model.language, layers=layers)
    return replace(
        source,
        model=replace(model, language=language, language_settings=cut),
        settings=replace(settings, language=cut),
    )


def export_shallow(source: MllmSource, folder: Path, tables: Path) -> Part:
    """The reference of a shallow source as a part of its own; its tables are those of `tables`."""
    folder.mkdir()
    kind = MLLM_VARIANTS[REFERENCE]
    graphs = export_mllm_graphs(source, folder, kind.arithmetic, kind.dialect)
    for name in (TABLE_FILE, TOKENIZER_FILE):
        os.link(tables / name, folder / name)
    names = {role: path.name for role, path in graphs.items()}
    variants = {str(REFERENCE): Variant(kind.device, kind.precision, names, kind.dialect)}
    write_manifest(folder, PartDraft("mllm", source.family, source.settings, variants))
    return open_part(folder, "mllm")
