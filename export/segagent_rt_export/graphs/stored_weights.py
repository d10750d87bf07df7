"""Weights back out of the graphs of a bundle that this package exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, external_data_helper, numpy_helper
from torch import nn

from segagent_rt.bundle.bundle import Part
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources.weights import Weight

LARGEST = 256_000_000
"""Bytes of a part's files together; the parts that ship have some seven million."""

PLAIN = ("LayerNormalization", "SimplifiedLayerNormalization", "Add", "Gather")
"""Operators of an MLLM that take their weights as they are."""

SMALL = 8
"""Constants of at most so many values are shapes and scales, no weights."""

S = TypeVar("S")


def refused(part: Part, why: str) -> CheckpointInvalid:
    """The error for a part that no training can begin with; `why` is what is wrong with it."""
    return CheckpointInvalid(
        f"no training can begin with {part.folder}: {why}",
        hint="give --init a bundle with the models that ship, such as `tiny`",
    )


def read_settings(part: Part, family: str, into: type[S]) -> S:
    """The settings of a part whose files are those that were exported.

    Raises:
        CheckpointInvalid: the part is of another family, or too large.
        BundleError: a file is missing or was altered.
    """
    if part.manifest.family != family:
        raise refused(part, f"its family is `{part.manifest.family}`, not `{family}`")
    if sum(file.size for file in part.manifest.files.values()) > LARGEST:
        raise refused(part, f"it has more than {LARGEST} bytes")
    part.verify()
    return part.settings(into)


@dataclass(frozen=True, slots=True)
class StoredGraph:
    """A graph and its constants by name, those stored in eight bits unpacked."""

    graph: onnx.GraphProto
    values: Mapping[str, Weight]

    def layers(self) -> dict[str, Weight]:
        """Weights and biases of convolutions and linear layers by their names in the net; zero
        biases are left out of graphs."""
        layers: dict[str, Weight] = {}
        for node in self.graph.node:
            if node.op_type in ("Conv", "Gemm") and node.input[1].endswith(".weight"):
                given = [self.values.get(name) for name in node.input[1:]]
                weight, bias = (*given, None, None)[:2]
                if weight is not None:
                    name = node.input[1].removesuffix(".weight")
                    layers[f"{name}.weight"] = weight
                    zeros = np.zeros(weight.shape[:1], np.float32)
                    layers[f"{name}.bias"] = zeros if bias is None else bias
        return layers

    def unpacked(self) -> Iterator[Weight]:
        """Weights of an MLLM's norms, tables and linear layers, in the order in which nodes use
        them; matrices are [out, in], as in torch."""
        codes: Weight | None = None
        for node in self.graph.node:
            own = [self.values[name] for name in node.input if name in self.values]
            if node.op_type == "MatMulInteger":
                codes = own[0]
            elif node.op_type == "Mul" and codes is not None:
                yield codes.T.astype(np.float32) * own[0][:, None]
                codes = None
            elif node.op_type == "MatMulIntegerToFloat":
                codes_of, scales_of = (self.values[node.input[at]] for at in (1, 3))
                yield codes_of.T.astype(np.float32) * scales_of[:, None]
            elif node.op_type == "MatMulNBits":
                yield _unpack_blocks(own[0], own[1], node)
            elif node.op_type == "MatMul" and own:
                yield own[0].T
            elif node.op_type in PLAIN:
                yield from own


def read_graph(part: Part, role: str) -> StoredGraph:
    """The graph of a role, in ONNX Runtime's dialect and in real numbers.

    Raises:
        CheckpointInvalid: it is damaged, or has weights missing or to spare.
        BundleError: the part has no such graph.
    """
    stored = next(
        (
            graph
            for graph in part.graphs(role)
            if graph.variant.dialect == "ort" and role not in graph.variant.integers
        ),
        None,
    )
    if stored is None:
        raise refused(part, f"its {role} is for TensorRT only")
    name = PurePosixPath(stored.path.relative_to(part.folder).as_posix())
    try:
        model = onnx.load(stored.path, load_external_data=False)
        for place in _places(model.graph):
            part.file(str(name.parent / place))
        external_data_helper.load_external_data_for_model(model, str(stored.path.parent))
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        raise refused(part, f"its {role} cannot be read ({str(error)[:80]})") from None
    if odd := next(_loose_ends(model.graph), None):
        raise refused(part, f"in its {role} {odd}")
    return StoredGraph(model.graph, values | _unpacked_convolutions(model.graph, values))


def _places(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the files beside a graph that hold its weights."""
    for tensor in graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            yield external_data_helper.ExternalDataInfo(tensor).location


def _loose_ends(graph: onnx.GraphProto) -> Iterator[str]:
    stored = {tensor.name for tensor in graph.initializer}
    used = {name for node in graph.node for name in node.input if name}
    made = {name for node in graph.node for name in node.output}
    for name in sorted(used - stored - made - {each.name for each in graph.input}):
        yield f"`{name}` is missing"
    for name in sorted(stored - used):
        yield f"`{name}` has no use"


def _unpacked_convolutions(
    graph: onnx.GraphProto, values: Mapping[str, Weight]
) -> dict[str, Weight]:
    """Inverse of `quantise_conv_weights`, and of linear layers that are `stored`."""
    unpacked = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:
            codes, scales = (values.get(name, np.zeros(0)) for name in node.input)
            options = {attribute.name: attribute.i for attribute in node.attribute}
            axis, block = options.get("axis", 1), options.get("block_size", 0)
            if block:
                scales = np.repeat(scales, block, axis)
            elif codes.shape[axis : axis + 1] == scales.shape:
                scales = scales.reshape([-1 if at == axis else 1 for at in range(codes.ndim)])
            if scales.ndim == codes.ndim:
                unpacked[node.output[0]] = codes.astype(np.float32) * scales
    return unpacked


def _unpack_blocks(codes: Weight, scales: Weight, node: onnx.NodeProto) -> Weight:
    """Inverse of `quantise_blocks` with eight bits."""
    width = next(attribute.i for attribute in node.attribute if attribute.name == "K")
    blocks = (codes.astype(np.float32) - 128) * scales.reshape(*codes.shape[:2], 1)
    return np.asarray(blocks.reshape(len(codes), -1)[:, :width])


def outline(graph: onnx.GraphProto) -> list[str]:
    """What a graph computes, but for the values of its weights and the names in between."""
    known = {each.name: each.name for each in graph.input} | {"": ""}
    known |= {tensor.name: _outlined(tensor) for tensor in graph.initializer}
    lines = []
    for number, node in enumerate(graph.node):
        inputs = [known.get(name, "?") for name in node.input]
        options = sorted(str(attribute) for attribute in node.attribute)
        lines.append(f"{node.domain} {node.op_type} {inputs} {options}")
        known |= {name: f"{number}.{at}" for at, name in enumerate(node.output)}
    return lines + [f"{each.name} = {known.get(each.name)}" for each in graph.output]


def _outlined(tensor: onnx.TensorProto) -> str:
    small = int(np.prod(tensor.dims, dtype=np.int64)) <= SMALL
    values = numpy_helper.to_array(tensor).tolist() if small else ""
    return f"{TensorProto.DataType.Name(tensor.data_type)}{list(tensor.dims)}{values}"


def fill(net: nn.Module, weights: Mapping[str, Weight], part: Part) -> None:
    """Copy weights into a net that has all of them and no others.

    Raises:
        CheckpointInvalid: one is missing, unknown or of another size.
    """
    wanted = {(name, tuple(value.shape)) for name, value in net.state_dict().items()}
    odd = sorted(wanted ^ {(name, value.shape) for name, value in weights.items()})
    if odd:
        raise refused(part, f"`{odd[0][0]}` is missing, of another size, or to spare")
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
