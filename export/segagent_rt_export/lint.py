"""What graphs may be made of: straight, old enough for every runtime, no operator of one library
where another must read them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from segagent_rt.bundle import Part
from segagent_rt.contracts import Variant
from segagent_rt_export.graph import IR_VERSION, OPSET

REFUSED = frozenset({"If", "Loop", "Scan", "NonZero", "GroupNormalization"})
"""Control flow, shapes that depend on data, and a norm that TensorRT computes wrongly."""


def lint(part: Part) -> Iterator[str]:
    """What is wrong with the graphs of a part, in words."""
    for name, variant in part.manifest.variants.items():
        for file in variant.graphs.values():
            model = onnx.load(part.file(file), load_external_data=False)
            for complaint in complaints(model, variant):
                yield f"{name}: {file} {complaint}"


def unused(graph: onnx.GraphProto) -> list[str]:
    """Inputs, weights, and values of nodes, that are neither outputs nor anybody's inputs.

    Of a node with several outputs one is enough.
    """
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    idle = [node.output[0] for node in graph.node if not used & set(node.output)]
    given = [value.name for value in (*graph.input, *graph.initializer)]
    return idle + [name for name in given if name not in used]


def complaints(model: onnx.ModelProto, variant: Variant) -> Iterator[str]:
    """What is wrong with one graph of a variant."""
    if found := sorted(REFUSED & {node.op_type for node in model.graph.node}):
        yield f"contains {', '.join(found)}"
    if model.ir_version > IR_VERSION:
        yield f"has IR version {model.ir_version}, {IR_VERSION} is the newest that runtimes read"
    if newer := [o.version for o in model.opset_import if not o.domain and o.version > OPSET]:
        yield f"has opset {newer[0]}, {OPSET} is the newest that runtimes read"
    if idle := unused(model.graph):
        yield f"computes or holds what nothing uses, `{idle[0]}` among it"
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if domains and (variant.device == "any" or variant.dialect == "portable"):
        yield f"contains operators of {', '.join(sorted(domains))}, which only one library knows"
