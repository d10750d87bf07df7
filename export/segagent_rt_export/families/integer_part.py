"""The segmenters that ship: in integers, and in full precision to compare that with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from segagent_rt.bundle.bundle import Part, open_part
from segagent_rt.bundle.manifest import Variant
from segagent_rt_export.bundle_writer import PartDraft, write_manifest
from segagent_rt_export.gate.inputs import MEASURED, GateInputs, SceneInputs
from segagent_rt_export.graphs.integer_product import MOST
from segagent_rt_export.passes.calibration import calibrate_ranges
from segagent_rt_export.passes.external_data import save_with_shared_weights
from segagent_rt_export.passes.weight_only_int8 import (
    dequantise_conv_weights,
    quantise_conv_weights,
)
from segagent_rt_export.passes.weight_quant import write_variant
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.variants import REFERENCE, SEGMENTER_VARIANTS

STORED = "cpu-w8"
"""The variant whose weights are those of all: in 8 bits, unpacked when loaded."""

INTEGERS = replace(SEGMENTER_VARIANTS["cpu-w8a8-static"], apart=(), outputs=True)


def write_integer_part(
    graphs: Mapping[str, Path],
    folder: Path,
    family: str,
    settings: Any,
    material: GateInputs,
    exact: tuple[str, ...] = (),
) -> Part:
    """Make a part of graphs in full precision that lie in its folder: the same weights for
    arithmetic in integers, where it is fast, and in fp32 for all other places.

    Args:
        graphs: by role; they are replaced.
        folder: of the part.
        family: of the part's manifest.
        settings: likewise.
        material: the images that ranges of integers are measured on.
        exact: names of weights whose convolutions stay in fp32.
    """
    for path in graphs.values():
        onnx.save_model(quantise_conv_weights(onnx.load(path), MOST), str(path))
    names = {role: path.name for role, path in graphs.items()}
    stored = {STORED: Variant("any", "weights int8, arithmetic fp32", names)}

    def described(variants: Mapping[str, Variant]) -> Part:
        write_manifest(folder, PartDraft("segmenter", family, settings, variants))
        return open_part(folder, "segmenter")

    with tempfile.TemporaryDirectory() as scratch:
        rounded = quantise_part(described(stored), Path(scratch) / "rounded", material, exact)
        for role, path in graphs.items():
            integers = onnx.load(rounded.graphs(role, "cpu-w8a8-static")[0].path)
            both = {path: onnx.load(path), folder / f"{role}.int8.onnx": integers}
            save_with_shared_weights(both, path.with_name(f"{path.name}.data"))
    names = {role: f"{role}.int8.onnx" for role in graphs}
    fast = Variant("cpu", "weights and arithmetic int8", names, integers=tuple(graphs))
    return described({"cpu-w8a8-static": fast, **stored})


def quantise_part(
    part: Part, folder: Path, material: GateInputs | None = None, exact: tuple[str, ...] = ()
) -> Part:
    """Write `reference` (fp32) and `cpu-w8a8-static` of the part into a new folder.

    The decoder multiplies integers, too: its prompts are drawn, not coordinates. The ranges of
    values are measured on `material`; on generated scenes if it is left out. Convolutions with the
    weights `exact` stay in fp32.
    """
    whole = folder / REFERENCE
    whole.mkdir(parents=True)
    graphs = {role: whole / f"{role}.onnx" for role in part.roles}
    for role, path in graphs.items():
        model = onnx.load(part.graphs(role, STORED)[0].path)
        onnx.save_model(dequantise_conv_weights(model), str(path))
    bare = _described(part, folder, [REFERENCE], graphs)
    images = (material or SceneInputs(MEASURED)).measured()
    ranges = calibrate_ranges(bare, images, part.roles)
    write_variant(graphs, folder / "cpu-w8a8-static", replace(INTEGERS, exact=exact), ranges)
    return _described(part, folder, [REFERENCE, "cpu-w8a8-static"], graphs)


def _described(part: Part, folder: Path, names: list[VariantName], graphs: dict[str, Path]) -> Part:
    variants = {
        str(name): Variant(
            "cpu",
            name,
            {role: f"{name}/{path.name}" for role, path in graphs.items()},
            integers=INTEGERS.in_integers(graphs) if name == "cpu-w8a8-static" else (),
        )
        for name in names
    }
    family, settings = part.manifest.family, part.manifest.settings
    write_manifest(folder, PartDraft("segmenter", family, settings, variants))
    return open_part(folder, "segmenter")
