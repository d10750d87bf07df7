"""`gpu-fp16` of every family at reduced size passes the gate of exports, run on the CPU.

ONNX Runtime rounds on the CPU where a GPU would round; how GPUs add up is not shown here.
"""

from __future__ import annotations

import pytest

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import Range
from segagent_rt.bundle.placement import compatible_graphs
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import make_plan
from segagent_rt_export.registry import mllm_exporters, segmenter_exporters

pytestmark = [pytest.mark.export, pytest.mark.slow]


@pytest.fixture
def part(recipe, tmp_path):
    def export(**families: str):
        target = tmp_path / "bundle"
        plan = make_plan(
            recipe("gpu-fp16", "reference", **families), target, resume=False, below_gate=False
        )
        run_export(plan, GatePolicy(Gate(scenes=2), False), lambda text: None)
        (found,) = open_bundle(target).parts.values()
        print(found.manifest.verified["variants"])
        return found

    return export


@pytest.mark.parametrize("family", segmenter_exporters())
def test_a_segmenter(part, family):
    made = part(segmenter=family)
    for role in made.roles:
        names = [graph.name for graph in compatible_graphs(made.graphs(role), "rtx")]
        assert names == ["gpu-fp16", "reference"]


@pytest.mark.parametrize("family", mllm_exporters())
def test_an_mllm(part, family):
    made = part(mllm=family)
    for name in ("gpu-fp16", "reference"):
        (graph,) = made.graphs("decoder", name)
        narrow, wide = (profile["inputs_embeds"] for profile in graph.profiles)
        assert isinstance(narrow, Range)
        assert narrow.most[1] < wide.typical[1]
