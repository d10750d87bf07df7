"""How much arithmetic a call of each graph is, read from ONNX Runtime's own profile."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from segagent_rt.bench.loop_runs import query_of
from segagent_rt.bundle.bundle import Part
from segagent_rt.loop import StoppingRules, annotate
from segagent_rt.runtime import Runtime, open_mllm, open_segmenter
from segagent_rt.scenes import Scene
from segagent_rt.types import Session

CLICKS = 3


def flops_per_call(runtime: Runtime, scene: Scene) -> dict[str, float]:
    """Mean floating-point operations of a call, by part and role of the graph, over one trajectory.

    Products of matrices and convolutions are counted, a multiplication and an addition as two. The
    sessions are opened anew, with a profile; backends that write none give an empty result.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = list[Session]()

        def opened(part: Part, role: str) -> Session:
            profile = Path(folder) / f"{part.manifest.kind} {role}"
            where = replace(runtime.where, profile=profile)
            session = part.session(role, where, _countable(part, role))
            sessions.append(session)
            return session

        segmenter = open_segmenter(runtime.bundle.part("segmenter"), opened)
        annotator = open_mllm(runtime.bundle.part("mllm"), opened)
        embedding = Future[Any]()
        embedding.set_result(segmenter.encode(scene.image))
        rules = StoppingRules.fixed(CLICKS)
        expression = query_of(scene).expression
        annotate(expression, annotator.look(scene.image), segmenter, embedding, rules=rules)
        for session in sessions:
            session.close()
        profiles = {path: json.loads(path.read_text("utf-8")) for path in Path(folder).iterdir()}
    return {path.name.partition("_")[0]: per_run(events) for path, events in profiles.items()}


def _countable(part: Part, role: str) -> str | None:
    """Another variant where the usual one has convolutions in integers: of those a profile does not
    tell the weights' shapes, and their arithmetic is the same."""
    usual, *others = part.graphs(role)
    if role not in usual.variant.integers:
        return None
    return next((graph.name for graph in others if role not in graph.variant.integers), None)


def per_run(events: Iterable[Mapping[str, Any]]) -> float:
    """Mean operations of a run, from the events of a profile."""
    total, runs = 0.0, 0
    for event in events:
        runs += event.get("name") == "model_run"
        total += node_flops(event.get("args", {}))
    return total / max(runs, 1)


def node_flops(node: Mapping[str, Any]) -> float:
    """Operations of one node, from its operator and shapes; 0 for what multiplies no matrices."""
    name = node.get("op_name", "")
    given, made = (_shapes(node.get(f"{side}_type_shape", ())) for side in ("input", "output"))
    if not given or not made:
        return 0.0
    if name.endswith("Conv") and len(given) > 1:
        return 2.0 * math.prod(made[0]) * math.prod(given[1][1:])
    if name == "MultiHeadAttention" and len(given) > 1:  # scores, and their mixture of values
        return 4.0 * math.prod(made[0]) * given[1][-2]
    if "MatMul" in name or name == "Gemm":
        return 2.0 * math.prod(made[0]) * given[0][-1]
    return 0.0


def _shapes(tensors: Iterable[Mapping[str, list[int]]]) -> list[list[int]]:
    return [shape for tensor in tensors for shape in tensor.values()]
