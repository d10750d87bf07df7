"""The segmenter that ships, in other precisions than the one that it ships in."""

from __future__ import annotations

from pathlib import Path

import onnx

from segagent_rt.bundle import Part, open_part
from segagent_rt.contracts import Variant
from segagent_rt.segmenters.click_net import ClickNetSettings
from segagent_rt_export.packing import unpack_convolutions
from segagent_rt_export.parts import PartDraft, write_manifest
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.segmenters.observing import observed_ranges
from segagent_rt_export.segmenters.storing import store_as
from segagent_rt_export.states import MEASURED, Material, Scenes
from segagent_rt_export.variants import REFERENCE, SEGMENTER_VARIANTS


def rounded_click_net(part: Part, folder: Path, material: Material | None = None) -> Part:
    """Write `reference` (fp32) and `cpu-int8` of the part into a new folder.

    The ranges of values are measured on `material`; on generated scenes if it is left out.
    """
    whole = folder / REFERENCE
    whole.mkdir(parents=True)
    graphs = {role: whole / f"{role}.onnx" for role in part.roles}
    for role, path in graphs.items():
        model = onnx.load(part.graphs(role)[0].path)
        onnx.save_model(unpack_convolutions(model), str(path))
    bare = _described(folder, [REFERENCE], graphs)
    ranges = observed_ranges(bare, (material or Scenes(MEASURED)).measured())
    store_as(graphs, folder / "cpu-int8", SEGMENTER_VARIANTS["cpu-int8"], ranges)
    return _described(folder, [REFERENCE, "cpu-int8"], graphs)


def _described(folder: Path, names: list[VariantName], graphs: dict[str, Path]) -> Part:
    variants = {
        str(name): Variant(
            "cpu",
            name,
            {role: f"{name}/{path.name}" for role, path in graphs.items()},
            integers=SEGMENTER_VARIANTS[name].in_integers(graphs),
        )
        for name in names
    }
    draft = PartDraft("segmenter", "click_net", ClickNetSettings(), variants)
    write_manifest(folder, draft)
    return open_part(folder, "segmenter")
