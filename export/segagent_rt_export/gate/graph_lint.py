"""What graphs may be made of: straight, old enough for every runtime, with finite weights, and no
operator of one library where another must read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from segagent_rt.bundle.bundle import Part
from segagent_rt.bundle.manifest import Variant
from segagent_rt_export.gate.verdict import DAMAGED, OVERFLOW, Failure
from segagent_rt_export.graphs.builder import IR_VERSION, OPSET
from segagent_rt_export.variants import REFERENCE

REFUSED = frozenset({"If", "Loop", "Scan", "NonZero", "GroupNormalization"})
"""Control flow, shapes that depend on data, and a norm that TensorRT computes wrongly."""


AT_ONCE = 1 << 24
"""Numbers of a weight that are looked at together."""


def lint(part: Part) -> Iterator[Failure]:
    """What is wrong with the graphs of a part."""
    for name, variant in part.manifest.variants.items():
        own = None if name == REFERENCE else name
        for file in variant.graphs.values():
            path = part.file(file)
            model = onnx.load(path, load_external_data=False)
            for complaint in complaints(model, variant):
                yield Failure(f"{file} {complaint}", variant=own)
            if spoilt := next(infinite_weights(model.graph, path.parent), None):
                text = f"{file} holds the weight `{spoilt}`, which is not finite"
                hint = DAMAGED if own is None else OVERFLOW
                yield Failure(text, hint, own, hopeless=True)


def infinite_weights(graph: onnx.GraphProto, folder: Path) -> Iterator[str]:
    """Names of the weights that hold NaN or infinity; `folder` is where external ones lie."""
    for tensor in graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if kind.kind == "f" and not all(map(_finite, _pieces(tensor, kind, folder))):
            yield tensor.name


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


def _pieces(tensor: onnx.TensorProto, kind: np.dtype, folder: Path) -> Iterator[np.ndarray]:
    """The numbers of a weight, few of which are in memory at a time."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if not place or count == 0:
        yield numpy_helper.to_array(tensor) if not place else np.zeros(0)
        return
    start, shape = int(place.get("offset", 0)), (count,)
    values = np.memmap(folder / place["location"], kind, "r", offset=start, shape=shape)
    for at in range(0, count, AT_ONCE):
        yield values[at : at + AT_ONCE]


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
