"""The segmenter that ships, in integers, and in full precision to compare that with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from segagent_rt.bundle import Part, open_part
from segagent_rt.contracts import Variant
from segagent_rt.segmenters.click_net import ClickNetSettings
from segagent_rt_export.parts import PartDraft, write_manifest
from segagent_rt_export.passes.calibration import calibrate_ranges
from segagent_rt_export.passes.weight_only_int8 import dequantise_conv_weights
from segagent_rt_export.passes.weight_quant import write_variant
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.states import MEASURED, Material, Scenes
from segagent_rt_export.variants import REFERENCE, SEGMENTER_VARIANTS

STORED = "cpu-8bit"
"""The variant whose weights are those of all: in 8 bits, unpacked when loaded."""

INTEGERS = replace(SEGMENTER_VARIANTS["cpu-int8"], apart=(), outputs=True)


def quantise_click_net(part: Part, folder: Path, material: Material | None = None) -> Part:
    """Write `reference` (fp32) and `cpu-int8` of the part into a new folder.

    The decoder multiplies integers, too: its prompts are drawn, not coordinates. The ranges of
    values are measured on `material`; on generated scenes if it is left out.
    """
    whole = folder / REFERENCE
    whole.mkdir(parents=True)
    graphs = {role: whole / f"{role}.onnx" for role in part.roles}
    for role, path in graphs.items():
        model = onnx.load(part.graphs(role, STORED)[0].path)
        onnx.save_model(dequantise_conv_weights(model), str(path))
    bare = _described(folder, [REFERENCE], graphs)
    images = (material or Scenes(MEASURED)).measured()
    write_variant(graphs, folder / "cpu-int8", INTEGERS, calibrate_ranges(bare, images, part.roles))
    return _described(folder, [REFERENCE, "cpu-int8"], graphs)


def _described(folder: Path, names: list[VariantName], graphs: dict[str, Path]) -> Part:
    variants = {
        str(name): Variant(
            "cpu",
            name,
            {role: f"{name}/{path.name}" for role, path in graphs.items()},
            integers=INTEGERS.in_integers(graphs) if name == "cpu-int8" else (),
        )
        for name in names
    }
    draft = PartDraft("segmenter", "click_net", ClickNetSettings(), variants)
    write_manifest(folder, draft)
    return open_part(folder, "segmenter")
