"""Faults planted into an export: each is refused by the gate, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from segagent_rt.bundle import open_bundle
from segagent_rt.errors import GateFailed
from segagent_rt.mllm import pictures
from segagent_rt.segmenters import sam, simple_click
from segagent_rt.segmenters.sam import Sam
from segagent_rt.types import Click, Finish, Malformed, Turn
from segagent_rt_export import precision
from segagent_rt_export.exporter import Judge, carry_out
from segagent_rt_export.mllm.blocks import Module
from segagent_rt_export.plan import make_plan
from segagent_rt_export.segmenters import sam_graphs, storing
from segagent_rt_export.verdict import Case, Gate, shortfalls, summarise

pytestmark = pytest.mark.export

QUICK = Gate(scenes=2)


@pytest.fixture
def export(recipe: Any, tmp_path: Path) -> Callable[..., Path]:
    """Export a part through the whole gate; returns the bundle."""

    def run(*variants: str, forgiving: bool = False, **families: str) -> Path:
        target = tmp_path / "bundle"
        plan = make_plan(recipe(*variants, **families), target, resume=False, below_gate=False)
        carry_out(plan, Judge(QUICK, forgiving), lambda text: None)
        return target

    yield run
    left = [p.name for p in (tmp_path / "bundle").glob("*") if p.name != ".lock"]
    assert (tmp_path / "bundle" / "bundle.json").exists() or left == []


def after(monkeypatch: Any, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Let `change` alter what a function returns."""
    original = getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        return change(original(*arguments, **named), *arguments, **named)

    monkeypatch.setattr(owner, name, changed)


@pytest.mark.parametrize("family", ["sam", "simple_click"])
def test_without_a_fault_it_passes(export, family):
    verified = open_bundle(export("reference", segmenter=family)).part("segmenter").manifest
    assert verified.verified["gate"] == "passed"


def test_a_segmenters_weight_scaled_wrongly(export, monkeypatch):
    def scale(_: None, graph: Any, example: Any, path: Path, *rest: Any) -> None:
        model = onnx.load(path)
        largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        scaled = numpy_helper.to_array(largest) * np.float32(1.02)
        largest.CopyFrom(numpy_helper.from_array(scaled, largest.name))
        onnx.save_model(model, str(path))

    after(monkeypatch, sam_graphs, "trace", scale)
    with pytest.raises(GateFailed, match=r"the graph `encoder` is .* away from torch"):
        export("reference", segmenter="sam")


def test_a_graph_that_reads_y_before_x(export, monkeypatch):
    def swap(_: None, graph: Any, example: Any, path: Path, *rest: Any) -> None:
        model = onnx.load(path)
        for node in model.graph.node:
            node.input[:] = ["swapped" if n == "point_coords" else n for n in node.input]
        order = numpy_helper.from_array(np.array([1, 0]), "order")
        model.graph.initializer.append(order)
        gather = helper.make_node("Gather", ["point_coords", "order"], ["swapped"], axis=2)
        model.graph.node.insert(0, gather)
        onnx.save_model(model, str(path))

    after(
        monkeypatch, sam_graphs, "trace",
        lambda none, *given: swap(none, *given) if "decoder" in given[2].name else None,
    )  # fmt: skip
    with pytest.raises(GateFailed, match=r"the graph `decoder` is .* away from torch"):
        export("reference", segmenter="sam")


def test_a_host_that_gives_y_before_x(export, monkeypatch):
    after(monkeypatch, Sam, "_points", lambda points, *given: points[:, [1, 0, 2]])
    with pytest.raises(GateFailed, match="shown clicks in other places"):
        export("reference", segmenter="sam")


def test_simple_click_with_y_for_x(export, monkeypatch):
    after(
        monkeypatch, simple_click, "_points",
        lambda points, *given: [(column, row, sign) for row, column, sign in points],
    )  # fmt: skip
    with pytest.raises(GateFailed, match="shown clicks in other places"):
        export("reference", segmenter="simple_click")


def test_a_segmenter_shown_through_another_filter(export, monkeypatch):
    import cv2

    def shrunk(_: Any, image: Any, frame: Any, mean: Any, std: Any) -> Any:
        height, width = frame.inside
        square = np.zeros((1, 3, frame.side, frame.side), np.float32)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        square[0, :, :height, :width] = ((small - mean) / std).transpose(2, 0, 1)
        return square

    after(monkeypatch, sam, "pixels", shrunk)
    with pytest.raises(GateFailed, match="another picture than its authors"):
        export("reference", segmenter="sam")


def test_a_mask_that_is_drawn_with_the_padding(export, monkeypatch):
    after(monkeypatch, sam.SamPrediction, "_over_picture", lambda _, self: self.logits)
    with pytest.raises(GateFailed, match="drawn otherwise"):
        export("reference", segmenter="sam")


def test_a_broken_scale_names_the_graph_to_keep(export, monkeypatch):
    def double(stored: Any, matrix: Any, bits: int, block: int) -> Any:
        codes, scales = stored
        return codes, scales * 2 if len(matrix) == 96 else scales  # q, k and v of the encoder

    after(monkeypatch, storing, "quantise_blocks", double)
    with pytest.raises(GateFailed, match=r"cpu-8bit: its masks.*; keep its encoder at higher"):
        export("cpu-8bit", segmenter="sam")


def test_an_mllms_weight_scaled_wrongly(export, monkeypatch):
    def scale(weight: Any, self: Module, name: str, *shape: int) -> Any:
        return weight * np.float32(1.02) if "layers.1.mlp.down" in self.prefix + name else weight

    after(monkeypatch, Module, "take", scale)
    with pytest.raises(GateFailed, match=r"the logits is .* deviations away from torch"):
        export("reference", mllm="qwen2_5_vl")


def test_a_wrong_section_of_rotary_positions(export, monkeypatch):
    def change(source: Any, *given: Any) -> Any:
        rope = replace(source.settings.language.rope, sections=(3, 3, 2))
        language = replace(source.settings.language, rope=rope)
        return replace(source, settings=replace(source.settings, language=language))

    after(monkeypatch, exporter_plan(), "read_source", change)
    with pytest.raises(GateFailed, match="the logits is"):
        export("reference", mllm="qwen2_5_vl")


def test_an_mllm_shown_through_another_filter(export, monkeypatch):
    def bilinear(_: Any, image: Any, size: Any) -> Any:
        small = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(small)

    after(monkeypatch, pictures, "bicubic", bilinear)
    with pytest.raises(GateFailed, match=r"the picture is .* deviations away"):
        export("reference", mllm="qwen2_5_vl")


def test_a_broken_scale_of_an_mllm_is_refused_or_recorded(export, monkeypatch):
    def halve(stored: Any, matrix: Any, bits: int, block: int) -> Any:
        codes, scales = stored
        return codes, scales / 2 if matrix.shape == (64, 96) else scales  # the decoder's MLP

    after(monkeypatch, precision, "quantise_blocks", halve)
    with pytest.raises(GateFailed, match=r"cpu-8bit: .*; keep its decoder at higher precision"):
        export("cpu-8bit", mllm="qwen2_5_vl")
    bundle = export("cpu-8bit", mllm="qwen2_5_vl", forgiving=True)
    verified = open_bundle(bundle).part("mllm").manifest.verified
    assert verified["gate"] == "below, allowed"
    assert "cpu-8bit" in verified["failures"][0]
    assert verified["variants"]["cpu-8bit"]["worst"]


def exporter_plan() -> Any:
    from segagent_rt_export import plan

    return plan


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
