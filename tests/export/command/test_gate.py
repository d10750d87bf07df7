"""Faults planted into an export: each is refused by the gate, and then nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from segagent_rt.bundle.bundle import Part, open_bundle, open_part
from segagent_rt.bundle.manifest import Variant
from segagent_rt.errors import GateFailed
from segagent_rt.mllm import preprocess
from segagent_rt.segmenters import sam, simple_click
from segagent_rt.types import Box, Click, Finish, Malformed, Turn
from segagent_rt_export import pipeline
from segagent_rt_export.families.mllm_source import read_source
from segagent_rt_export.gate import streaming
from segagent_rt_export.gate.graph_lint import complaints, unused
from segagent_rt_export.gate.inputs import SceneInputs
from segagent_rt_export.gate.mllm_reference import open_reference
from segagent_rt_export.gate.verdict import Case, Gate, Verdict, shortfalls, summarise
from segagent_rt_export.gate.verify import (
    verify_masks,
    verify_mllm_reference,
    verify_reference,
    verify_replies,
)
from segagent_rt_export.graphs import precision
from segagent_rt_export.graphs.precision import MllmPrecision
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import make_plan
from segagent_rt_export.recipe import read_recipe
from segagent_rt_export.variants import MLLM_VARIANTS

pytestmark = pytest.mark.export

QUICK = Gate(scenes=2)
VARIANTS = ("cpu-w8", "reference")


def quiet(text: str) -> None: ...


@dataclass(frozen=True)
class Made:
    """A part that passed, and what verifies it or a spoilt copy of it."""

    folder: Path
    verify: Callable[[Part], Verdict]

    def failures(self, folder: Path | None = None) -> str:
        """What the gate says about a copy, or about the part itself."""
        place = folder or self.folder
        found = self.verify(open_part(place, self.folder.name))  # type: ignore[arg-type]
        return "; ".join(map(str, found.failures))

    def copy(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(self.folder, tmp_path / "spoilt"))


def export(recipe: str, folder: Path, judge: GatePolicy) -> Path:
    """Export a recipe's text."""
    (folder / "mine.toml").write_text(recipe)
    bundle = folder / "bundle"
    found = read_recipe(folder / "mine.toml")
    run_export(make_plan(found, bundle, resume=False, below_gate=False), judge, quiet)
    return bundle


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: Any, recipe_text: Any) -> Callable[[str], Made]:
    made: dict[str, Made] = {}

    def make(family: str) -> Made:
        if family not in made:
            seen, original = [], pipeline.export_segmenter
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    pipeline, "export_segmenter", lambda *a: seen.append(original(*a)) or seen[0]
                )
                # Random weights draw masks at the threshold: SimpleClick's turn with any rounding.
                variants = ("reference",) if family == "simple_click" else VARIANTS
                text = recipe_text(*variants, segmenter=family)
                bundle = export(text, tmp_path_factory.mktemp(family), GatePolicy(QUICK))
            checks = seen[0].checks

            def verify(part: Part) -> Verdict:
                verdict = verify_reference(part, checks, QUICK, quiet)
                return verdict.and_also(verify_masks(part, QUICK, quiet, SceneInputs(QUICK.scenes)))

            made[family] = Made(bundle / "segmenter", verify)
        return made[family]

    return make


@pytest.fixture(scope="module")
def mllm(tmp_path_factory: Any, recipe_text: Any, sources: Any) -> Made:
    text = recipe_text(*VARIANTS, mllm="qwen2_5_vl")
    bundle = export(text, tmp_path_factory.mktemp("mllm"), GatePolicy(QUICK))
    folder = sources("qwen2_5_vl")
    source = read_source(folder)
    published = open_reference(folder, source, None)

    def verify(part: Part) -> Verdict:
        verdict = verify_mllm_reference(part, published, QUICK, quiet)
        return verdict.and_also(verify_replies(part, None, QUICK, quiet))

    return Made(bundle / "mllm", verify)


def alter(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a graph; its weights become part of the file."""
    model = onnx.load(path)
    change(model)
    onnx.save_model(model, str(path))


def scale(named: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Scale the largest weight whose name ends so."""

    def change(model: onnx.ModelProto) -> None:
        tensors = [t for t in model.graph.initializer if t.name.endswith(named)]
        floats = [t for t in tensors if t.data_type == onnx.TensorProto.FLOAT]
        largest = max(floats, key=lambda tensor: np.prod(tensor.dims))
        scaled = numpy_helper.to_array(largest) * np.float32(factor)
        largest.CopyFrom(numpy_helper.from_array(scaled, largest.name))

    return change


def after(monkeypatch: Any, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Let `change` alter what a function returns."""
    original = getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        return change(original(*arguments, **named), *arguments, **named)

    monkeypatch.setattr(owner, name, changed)


def test_without_a_fault_nothing_is_said(segmenter, mllm):
    """Every fault below is looked for in what this test finds clean."""
    assert segmenter("sam").failures() == ""
    assert mllm.failures() == ""


def test_a_segmenters_weight_scaled_wrongly(segmenter, tmp_path):
    spoilt = segmenter("sam").copy(tmp_path)
    alter(spoilt / "reference" / "encoder.onnx", scale("", 1.02))
    found = segmenter("sam").failures(spoilt)
    assert "the graph `encoder` is" in found
    assert "away from torch" in found


def test_a_graph_that_reads_y_before_x(segmenter, tmp_path):
    def swap(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["swapped" if n == "point_coords" else n for n in node.input]
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "order"))
        gather = helper.make_node("Gather", ["point_coords", "order"], ["swapped"], axis=2)
        model.graph.node.insert(0, gather)

    spoilt = segmenter("sam").copy(tmp_path)
    alter(spoilt / "reference" / "decoder.onnx", swap)
    assert "the graph `decoder` is" in segmenter("sam").failures(spoilt)


def test_a_host_that_gives_y_before_x(segmenter, monkeypatch):
    after(monkeypatch, sam.Sam, "_points", lambda points, *given: points[:, [1, 0, 2]])
    assert "shown clicks in other places" in segmenter("sam").failures()


def test_a_segmenter_shown_through_another_filter(segmenter, monkeypatch):
    def shrunk(_: Any, image: Any, frame: Any, mean: Any, std: Any) -> Any:
        height, width = frame.inside
        square = np.zeros((1, 3, frame.side, frame.side), np.float32)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        square[0, :, :height, :width] = ((small - mean) / std).transpose(2, 0, 1)
        return square

    after(monkeypatch, sam, "pixels", shrunk)
    assert "another picture than its authors" in segmenter("sam").failures()


def test_a_mask_that_is_drawn_with_the_padding(segmenter, monkeypatch):
    after(monkeypatch, sam.SamPrediction, "_over_picture", lambda _, self: self.logits)
    assert "masks are drawn otherwise" in segmenter("sam").failures()


def turn_scales(model: onnx.ModelProto) -> None:
    """The sign of every scale."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(("_scale", "_scales")):
            turned = -numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))


@pytest.mark.parametrize(
    ("role", "fault"), [("decoder", scale("_scales", -1.0)), ("encoder", turn_scales)]
)
def test_broken_scales_name_the_graph_to_keep(segmenter, tmp_path, role, fault):
    spoilt = segmenter("sam").copy(tmp_path)
    alter(spoilt / "cpu-w8" / f"{role}.onnx", fault)
    found = segmenter("sam").failures(spoilt)
    assert "cpu-w8: its masks have an IoU of" in found
    assert f"keep its {role} at higher precision" in found
    assert "away from torch" not in found


def test_an_mllms_weight_scaled_wrongly(mllm, tmp_path):
    spoilt = mllm.copy(tmp_path)
    alter(spoilt / "reference" / "decoder.onnx", scale("", 1.02))
    found = mllm.failures(spoilt)
    assert "the logits is" in found
    assert "the picture is" not in found


def test_a_wrong_weight_is_found_piece_by_piece(mllm, sources, tmp_path, monkeypatch):
    """As for models that memory cannot hold."""
    monkeypatch.setattr(streaming, "PARTITION_BYTES", 20_000)
    folder = sources("qwen2_5_vl")
    published = open_reference(folder, read_source(folder), None, streamed=True)
    spoilt = mllm.copy(tmp_path)
    verdicts = []
    for change in (lambda model: None, scale("", 1.02)):
        alter(spoilt / "reference" / "decoder.onnx", change)
        part = open_part(spoilt, "mllm")
        verdicts.append(verify_mllm_reference(part, published, QUICK, quiet, streamed=True))
    right, wrong = verdicts
    assert right.passed
    assert "the logits is" in str(wrong.failures[0])


def test_a_wrong_section_of_rotary_positions(mllm, tmp_path):
    spoilt = mllm.copy(tmp_path)
    manifest = json.loads((spoilt / "manifest.json").read_text())
    assert manifest["settings"]["language"]["rope"]["sections"] == [2, 3, 3]
    manifest["settings"]["language"]["rope"]["sections"] = [3, 3, 2]
    (spoilt / "manifest.json").write_text(json.dumps(manifest))
    assert "the logits is" in mllm.failures(spoilt)


@pytest.mark.parametrize(("field", "size"), [("most", "1000 x 1400"), ("least", "40 x 30")])
def test_another_limit_of_pixels_than_the_checkpoints(mllm, tmp_path, field, size):
    """Small pictures do not show it: the gate compares the rule on photos and on icons, too."""
    spoilt = mllm.copy(tmp_path)
    manifest = json.loads((spoilt / "manifest.json").read_text())
    manifest["settings"]["vision"]["resize"][field] //= 2
    (spoilt / "manifest.json").write_text(json.dumps(manifest))
    assert f"a picture of {size} pixels is resized to" in mllm.failures(spoilt)


def test_an_mllm_shown_through_another_filter(mllm, monkeypatch):
    def bilinear(_: Any, image: Any, size: Any) -> Any:
        small = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(small)

    after(monkeypatch, preprocess, "bicubic", bilinear)
    assert "the picture is" in mllm.failures()


def test_a_broken_quantiser_fails_the_export_or_is_recorded(recipe_text, tmp_path, monkeypatch):
    """The decoder's MLPs come out with the wrong sign."""

    def turned(stored: Any, matrix: Any, bits: int, block: int) -> Any:
        codes, scales = stored
        return codes, -scales if matrix.shape == (64, 96) else scales

    after(monkeypatch, precision, "quantise_blocks", turned)
    text = recipe_text("cpu-w8", mllm="qwen2_5_vl")
    with pytest.raises(GateFailed, match=r"cpu-w8: .*; keep its decoder at higher precision"):
        export(text, tmp_path, GatePolicy(QUICK))
    assert [p.name for p in (tmp_path / "bundle").iterdir()] == [".lock"]
    bundle = export(text, tmp_path, GatePolicy(QUICK, forgiving=True))
    verified = open_bundle(bundle).part("mllm").manifest.verified
    assert verified["gate"] == "below, allowed"
    assert "cpu-w8" in verified["failures"][0]
    assert verified["variants"]["cpu-w8"]["worst"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_fallback_is_written_only_where_the_variant_before_it_fails(
    recipe_text, tmp_path, monkeypatch, broken
):
    def turned(stored: Any, matrix: Any, bits: int, block: int) -> Any:
        codes, scales = stored
        return codes, -scales if broken and matrix.shape == (64, 96) else scales

    after(monkeypatch, precision, "quantise_blocks", turned)
    exact = replace(MLLM_VARIANTS["cpu-w8a8-dynamic"], arithmetic=MllmPrecision())
    monkeypatch.setitem(MLLM_VARIANTS, "cpu-w8a8-dynamic", exact)
    text = recipe_text("cpu-w8", mllm="qwen2_5_vl").replace(
        '["cpu-w8"]', '["cpu-w8"]\nfallback = ["cpu-w8a8-dynamic"]'
    )
    part = open_bundle(export(text, tmp_path, GatePolicy(QUICK))).part("mllm")
    verified, written = part.manifest.verified, list(part.manifest.variants)
    assert verified["gate"] == "passed"
    if broken:
        assert written == ["cpu-w8a8-dynamic"]
        assert verified["instead"] == {"cpu-w8": "cpu-w8a8-dynamic"}
        assert list(verified["left_out"]) == ["cpu-w8"]
    else:
        assert written == list(verified["variants"]) == ["cpu-w8"]
        assert not {"instead", "left_out"} & set(verified)
    assert {p.name for p in part.folder.iterdir() if p.is_dir()} == set(written)


def test_simple_click_with_y_for_x(segmenter, monkeypatch):
    assert segmenter("simple_click").failures() == ""
    after(
        monkeypatch, simple_click, "_points",
        lambda points, *given: [(column, row, sign) for row, column, sign in points],
    )  # fmt: skip
    assert "shown clicks in other places" in segmenter("simple_click").failures()


def test_graphs_that_some_runtime_cannot_read_are_named():
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"]),
        helper.make_node("MatMulNBits", ["x"], ["b"], domain="com.microsoft"),
    ]
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    idle = numpy_helper.from_array(np.ones(1), "idle")
    ends = [onnx.ValueInfoProto(name=name) for name in ("x", "b")]
    graph = helper.make_graph(nodes, "planted", ends[:1], ends[1:], [idle])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    found = list(complaints(model, Variant("any", "fp32", {})))
    assert [line.split(",")[0] for line in found] == [
        "contains NonZero", "has IR version 11", "has opset 22",
        "computes or holds what nothing uses", "contains operators of com.microsoft",
    ]  # fmt: skip
    assert len(list(complaints(model, Variant("cpu", "fp32", {})))) == 4
    assert unused(graph) == ["a", "idle"]


def turn(action: Any) -> Turn:
    return Turn("", action)


def test_agreement_is_kind_and_sign_and_distance_is_in_thousandths():
    plus, minus = Click(10, 20, True), Click(10, 20, False)
    size = (100, 200)

    def case(wanted: Any, found: Any, iou: float = 1.0) -> Case:
        return Case("", turn(wanted), turn(found), size, iou)

    assert case(plus, plus).agrees
    assert not case(plus, minus).agrees
    assert not case(plus, Finish()).agrees
    assert case(Finish(), Finish()).agrees
    assert not case(Malformed("x"), Finish()).agrees
    assert case(plus, Click(16, 28, True)).distance == pytest.approx(1000 * np.hypot(0.03, 0.08))
    assert case(plus, minus).distance is None
    assert case(Box(10, 20, 90, 80), Box(12, 20, 90, 90)).distance == pytest.approx(100.0)
    assert not case(Box(10, 20, 90, 80), plus).agrees
    cases = [case(plus, plus)] * 18 + [case(plus, minus, 0.5), case(plus, Click(14, 20, True))]
    numbers = summarise(cases)
    assert (numbers["states"], numbers["agreement"]) == (20, 0.95)
    assert (numbers["distance_median"], numbers["distance_worst"]) == (0.0, 20.0)
    assert numbers["mask_iou_worst"] == 0.5
    assert len(numbers["worst"]) == 2
    assert list(shortfalls(numbers, Gate())) == [
        "its masks have an IoU of 0.975, 0.980 is asked for"
    ]
    assert not list(shortfalls(numbers, Gate(mask_iou=0.97)))
