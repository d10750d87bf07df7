"""The encoder of `gpu-fp16` is SAM's in its form for GPUs: attention without a bias, in the windows
and over the whole picture, typed as the variant says; what it was made of equals torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, shape_inference

from segagent_rt.bundle.bundle import Bundle, open_bundle
from segagent_rt.errors import GateFailed
from segagent_rt_export.families.sam import export
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import PartPlan, Plan, make_plan
from segagent_rt_export.recipe import Recipe, read_recipe
from segagent_rt_export.registry import code, segmenter_exporters
from tests.export.command.checkpoints import SAM_SIZES

pytestmark = pytest.mark.export

FORMED = [name for name, family in segmenter_exporters().items() if family.export_for_gpu]
QUICK = GatePolicy(Gate(scenes=2))
SIZES = SAM_SIZES["vision_config"]
WIDTH = SIZES["hidden_size"] // SIZES["num_attention_heads"]
SIDES = [SIZES["window_size"], SIZES["image_size"] // 16, SIZES["window_size"]]
"""Positions along a side of what each block attends within; the second block sees everything."""


def planned(recipe: Recipe, target: Path) -> Plan:
    return make_plan(recipe, target, resume=False, below_gate=False)


def exported(recipe: Recipe, target: Path) -> tuple[Bundle, list[str]]:
    """A bundle, and what was said while it was made."""
    said: list[str] = []
    run_export(planned(recipe, target), QUICK, said.append)
    return open_bundle(target), said


@pytest.fixture(scope="module")
def bundle(recipe_text: Any, tmp_path_factory: Any) -> Callable[[str], Bundle]:
    made: dict[str, Bundle] = {}

    def export(family: str) -> Bundle:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            text = recipe_text("gpu-fp16", "reference", segmenter=family)
            (folder / "mine.toml").write_text(text)
            made[family], said = exported(read_recipe(folder / "mine.toml"), folder / "bundle")
            assert "segmenter: comparing the graphs in their form for GPUs with torch" in said
        return made[family]

    return export


class Encoder:
    """The nodes of a graph, found by what they make."""

    def __init__(self, bundle: Bundle, variant: str) -> None:
        (graph,) = bundle.part("segmenter").graphs("encoder", variant)
        self.graph = shape_inference.infer_shapes(onnx.load(graph.path), strict_mode=True).graph
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def of(self, kind: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type == kind]

    def value(self, name: str) -> tuple[list[int], int]:
        """Shape and type."""
        (found,) = (v for v in self.graph.value_info if v.name == name)
        tensor = found.type.tensor_type
        return [size.dim_value for size in tensor.shape.dim], tensor.elem_type

    def maker(self, name: str) -> onnx.NodeProto:
        """The node that made the numbers, whatever has put them into another order since."""
        node = self.makers[name]
        moves = ("Reshape", "Transpose", "Cast", "Squeeze")
        return self.maker(node.input[0]) if node.op_type in moves else node


@pytest.mark.parametrize("family", FORMED)
def test_no_bias_is_laid_out(bundle, family):
    """Scores are one product. The reference adds tokens x tokens numbers to them."""
    encoder = Encoder(bundle(family), "gpu-fp16")
    softmaxes = encoder.of("Softmax")
    assert len(softmaxes) == len(SIDES)
    for softmax, side in zip(softmaxes, SIDES, strict=True):
        scores = encoder.makers[softmax.input[0]]
        assert scores.op_type == "MatMul"
        query, key = (encoder.maker(name) for name in scores.input)
        assert query.op_type == key.op_type == "Concat"
        shape, _ = encoder.value(query.output[0])
        assert shape[1:] == [side * side, WIDTH + 2 * side]
    sums = [encoder.value(node.output[0])[0] for node in encoder.of("Add")[:-1]]
    assert not [shape for shape in sums if shape[-2:] in ([36, 36], [16, 16])]
    plain = Encoder(bundle(family), "reference")
    assert [plain.makers[n.input[0]].op_type for n in plain.of("Softmax")] == ["Add"] * len(SIDES)


@pytest.mark.parametrize("family", FORMED)
def test_attention_keeps_32_bits_and_its_layers_have_16(bundle, family):
    """The query is scaled before it is multiplied; relative positions are no layer's weights."""
    encoder = Encoder(bundle(family), "gpu-fp16")
    for softmax in encoder.of("Softmax"):
        scores = encoder.makers[softmax.input[0]]
        query = encoder.maker(scores.input[0])
        scaled, rows, columns = (encoder.maker(name) for name in query.input)
        assert scaled.op_type == "Mul"
        for product in (rows, columns):
            assert product.op_type == "MatMul"
            assert encoder.constants[product.input[1]].data_type == TensorProto.FLOAT
        for name in (*softmax.output, *scores.output, *scores.input, *query.input):
            assert encoder.value(name)[1] == TensorProto.FLOAT
    halves = [t for t in encoder.constants.values() if t.data_type == TensorProto.FLOAT16]
    assert len([t for t in halves if len(t.dims) == 2]) == 4 * len(SIDES)


@pytest.mark.parametrize("family", FORMED)
def test_it_was_compared_and_nothing_is_left_of_the_way_there(bundle, family):
    made = bundle(family)
    part = made.part("segmenter")
    verified = part.manifest.verified
    assert verified["gate"] == "passed"
    assert set(verified["graphs_for_gpu"]) == {"encoder"}
    assert verified["graphs_for_gpu"]["encoder"] <= 1e-4
    assert verified["variants"]["gpu-fp16"]["mask_iou_mean"] >= 0.98
    assert not list(part.unlisted_files())
    assert sorted(p.name for p in part.folder.iterdir() if p.is_dir()) == ["gpu-fp16", "reference"]
    assert not [p for p in (part.folder / "reference").iterdir() if p.is_dir()]


@pytest.mark.parametrize("block", [0, 1], ids=["windowed", "global"])
def test_a_block_that_forgets_where_its_keys_are_is_refused(recipe, tmp_path, monkeypatch, block):
    """By the comparison with torch, before 16 bits blur it."""
    fold = export.with_attention

    def forgetful(encoder, kind):
        folded = fold(encoder, kind)
        if kind is export.FoldedAttention:
            folded.layers[block].attn.where.zero_()
        return folded

    monkeypatch.setattr(export, "with_attention", forgetful)
    with pytest.raises(GateFailed, match=r"for GPUs, the graph `encoder` is .* away from torch"):
        exported(recipe("gpu-fp16", segmenter="sam"), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "segmenter").exists()


def test_the_disk_is_asked_for_room_for_both_forms(recipe, tmp_path):
    def disk(*variants: str, family: str = "sam") -> tuple[int, int]:
        part: PartPlan = planned(recipe(*variants, segmenter=family), tmp_path / "never").parts[0]
        return part.need.part, part.need.disk

    whole, _ = disk("reference")
    half, room = disk("gpu-fp16")
    assert half * 2 == whole
    assert room == half + 2 * whole
    assert disk("gpu-fp16", "reference") == (half + whole, half + 2 * whole)
    assert disk("cpu-w8")[1] == disk("cpu-w8")[0] + whole
    small, room = disk("gpu-fp16", family="mobile_sam")
    assert room == 3 * small


def test_all_code_that_families_name_is_there():
    for family in segmenter_exporters().values():
        paths = (family.export, family.preprocessing, family.export_for_gpu)
        assert all(callable(code(path)) for path in paths if path)
    assert {"sam", "sam_hq"} <= set(FORMED)
