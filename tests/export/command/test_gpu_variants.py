"""The variants for GPUs of every family at reduced size: which TensorRT takes them by NVIDIA's
published tables, and whether TensorRT-RTX, which is here, does."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt_export.families.mllm_export import export_mllm_graphs
from segagent_rt_export.families.mllm_source import read_source
from segagent_rt_export.gate.tensorrt_support import oldest_tensorrt, unsupported
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.graphs.builder import new_graph
from segagent_rt_export.graphs.precision import MllmPrecision, Precision
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import make_plan
from segagent_rt_export.registry import mllm_exporters, segmenter_exporters
from segagent_rt_export.variants import MLLM_VARIANTS

pytestmark = pytest.mark.export

VARIANTS = ("gpu-fp16", "gpu-w8", "gpu-w4", "reference")
OLDEST = {"gpu-fp16": "10.3", "gpu-w8": "10.3", "gpu-w4": "10.6", "reference": "10.3"}


def graphs_of(source, folder, name):
    kind = MLLM_VARIANTS[name]
    folder.mkdir()
    return export_mllm_graphs(source, folder, kind.arithmetic, kind.dialect)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", mllm_exporters())
def test_an_mllm_is_taken_by_the_tensorrt_of_a_jetpack(sources, tmp_path, family, name):
    """Only blocks of four bits need an opset that JetPack 6 does not document."""
    source = read_source(sources(family))
    for path in graphs_of(source, tmp_path / name, name).values():
        model = onnx.load(path, load_external_data=False)
        assert list(unsupported(model)) == []
        blocks = any(t.data_type == TensorProto.INT4 for t in model.graph.initializer)
        assert oldest_tensorrt(model) == ("10.6" if blocks else "10.3")
        onnx.checker.check_model(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("family", segmenter_exporters())
def test_a_segmenters_record(recipe, tmp_path, family):
    assert recorded(recipe(*VARIANTS, segmenter=family), tmp_path, "segmenter") == dict.fromkeys(
        VARIANTS, "10.3"
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", mllm_exporters())
def test_an_mllms_record(recipe, tmp_path, family):
    assert recorded(recipe(*VARIANTS, mllm=family), tmp_path, "mllm") == OLDEST


def recorded(recipe, tmp_path, part):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = make_plan(recipe, tmp_path / "bundle", resume=False, below_gate=False)
        run_export(plan, GatePolicy(Gate(scenes=2), forgiving=True), lambda text: None)
    manifest = open_bundle(tmp_path / "bundle").part(part).manifest
    print(recipe.name, manifest.verified["variants"])
    return manifest.verified["tensorrt"]


@pytest.mark.parametrize(
    ("precision", "worst"),
    [
        (Precision("8bit", 32), 0.01),
        (Precision("8bit", 32, half=True), 0.01),
        (Precision("4bit", 32, half=True), 0.15),
        (Precision("stored", 32), 0.01),
    ],
)
def test_unpacked_weights_are_the_weights(precision, worst, tmp_path):
    """As ONNX Runtime reads the graphs; what is stored in blocks is the same in both dialects."""
    from segagent_rt.backends.session import SessionOptions, open_session

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 64)).astype(np.float32)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    found = {}
    for dialect in ("portable", "ort") if precision.scheme == "stored" else ("portable",):
        path = tmp_path / f"{dialect}.onnx"
        with new_graph(path, dialect) as g:
            y = precision.linear(g, g.input("x", np.float32, ["N", 64]), weight)
            g.output(y, "y", np.float32, ["N", 96])
        found[dialect] = open_session(path, SessionOptions("cpu")).run({"x": x}, ["y"])["y"]
        error = found[dialect] - x @ weight.T
        assert np.linalg.norm(error) / np.linalg.norm(x @ weight.T) < worst
    values = list(found.values())
    np.testing.assert_allclose(values[0], values[-1], rtol=1e-5, atol=1e-5)


def model_of(node, weights=(), opset=20):
    graph = helper.make_graph([node], "g", [], [], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_what_no_tensorrt_takes_is_named():
    def codes(kind, dims):
        return TensorProto(name="w", dims=dims, data_type=kind, raw_data=bytes(64))

    def unpacked(kind, dims, **attributes):
        node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], **attributes)
        return list(unsupported(model_of(node, [codes(kind, dims)], 21)))

    assert unpacked(TensorProto.INT8, [8, 8], axis=0, block_size=4) == [
        "blocks of codes must be of 4 bits"
    ]
    assert unpacked(TensorProto.UINT8, [8, 8], axis=0) == ["codes must be INT8 or INT4"]
    assert unpacked(TensorProto.INT4, [2, 8, 8], axis=0, block_size=4) == [
        "blocks of codes must be of matrices"
    ]
    assert unpacked(TensorProto.INT4, [8, 16], axis=0, block_size=4) == []
    assert list(unsupported(model_of(helper.make_node("Attention", ["x"], ["y"])))) == [
        "there is no Attention"
    ]
    relu = helper.make_node("Relu", ["x"], ["y"])
    found = [oldest_tensorrt(model_of(relu, opset=opset)) for opset in (18, 20, 21, 22, 23)]
    assert found == ["10.3", "10.3", "10.6", "10.6", None]


@pytest.mark.rtx
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the extra `rtx`")
@pytest.mark.parametrize("name", ["gpu-w8", "gpu-w4"])
@pytest.mark.parametrize("family", mllm_exporters())
def test_tensorrt_rtx_builds_an_mllm(sources, tmp_path, family, name):
    from segagent_rt.backends.engine_library import load_library
    from segagent_rt_export.graphs.shape_profiles import mllm_profiles

    source = read_source(sources(family))
    graphs = graphs_of(source, tmp_path / name, name)
    profiles = mllm_profiles(graphs, source.codec)
    for role, path in graphs.items():
        built = load_library("rtx").build(path, profiles[role], b"", lambda phase: None)
        assert len(built.plan) > 1000


def test_the_precision_of_the_variants_is_what_they_say():
    for name in ("gpu-w8", "gpu-w4"):
        arithmetic: MllmPrecision = MLLM_VARIANTS[name].arithmetic
        assert arithmetic.vision.half
        assert arithmetic.language.half
