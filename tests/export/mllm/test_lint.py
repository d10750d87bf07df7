"""What graphs may be made of, in either dialect."""

from __future__ import annotations

import onnx
import pytest

from segagent_rt.mllm.language_model import BRANCH_INPUT
from segagent_rt_export.families.mllm_source import Choices
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.precision import MllmPrecision, Precision
from tests.export.mllm.conftest import NAMES

pytestmark = pytest.mark.export

FORBIDDEN = {"If", "Loop", "Scan", "NonZero", "GroupNormalization", "Resize"}
FREE = Choices(decoding="free", preset="segagent-rated")
ROLES = ("vision", "decoder", "head")


def unused(graph: onnx.GraphProto) -> set[str]:
    made = {name for node in graph.node for name in node.output if name}
    made |= {value.name for value in graph.input} | {t.name for t in graph.initializer}
    used = {name for node in graph.node for name in node.input}
    return made - used - {value.name for value in graph.output}


@pytest.mark.parametrize("scheme", ["fp32", "8bit", "4bit"])
@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", NAMES)
def test_graphs_are_plain(exported, name, dialect, scheme):
    precision = MllmPrecision(Precision(scheme), Precision(scheme))
    folder = exported(name, dialect, FREE, precision).folder
    for role in ROLES:
        model = onnx.load(folder / f"{role}.onnx", load_external_data=False)
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & FORBIDDEN
        assert model.ir_version == 10
        assert max(o.version for o in model.opset_import) <= 21
        assert unused(model.graph) == set()
        assert "position_ids" not in {value.name for value in model.graph.input}
        if dialect == "portable":
            assert {node.domain for node in model.graph.node} == {""}
            onnx.checker.check_model(str(folder / f"{role}.onnx"), full_check=True)


def test_both_dialects_have_the_same_inputs_and_outputs(exported):
    """But for the branches, which only the portable dialect can read."""
    for name in NAMES:
        shapes = []
        for dialect in ("ort", "portable"):
            path = exported(name, dialect, FREE).folder / "decoder.onnx"
            graph = onnx.load(path, load_external_data=False).graph
            inputs = [each for each in graph.input if each.name != BRANCH_INPUT]
            assert (len(inputs) < len(graph.input)) == (dialect == "portable")
            shapes.append([sorted(map(str, inputs)), sorted(map(str, graph.output))])
        assert shapes[0] == shapes[1]


def test_the_portable_dialect_refuses_operators_of_a_library():
    graph = GraphBuilder("planted", None, "portable")
    with pytest.raises(AssertionError):
        graph.node("MatMulNBits", ["x"], domain="com.microsoft")
