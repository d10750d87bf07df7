"""Give a graph types: half precision where it is safe, single where it is not, casts in between.

TensorRT 11 takes precision from the graph alone. Products (matrices, convolutions) and what only
moves or combines their results run in fp16; norms, softmax with the bias before it, sums, and
whatever encodes places (sines, Gaussians, indices) stay in fp32, as do inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import onnx
from onnx import NodeProto, TensorProto, helper, shape_inference

from segagent_rt.errors import InputError

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention"}
"""What GPUs do twice as fast and more in fp16, summing up in fp32."""

PASSING = {
    "Add", "Sub", "Mul", "Neg", "Abs", "Max", "Min", "Relu", "LeakyRelu", "PRelu", "Clip",
    "HardSwish", "HardSigmoid", "Sigmoid", "Gelu", "Where", "Identity", "Concat", "Split", "Slice",
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Pad", "Gather",
    "ScatterND", "DepthToSpace", "SpaceToDepth", "Resize", "MaxPool", "AveragePool",
}  # fmt: skip
"""What is as exact in fp16 as its inputs are; it takes the precision that these have."""

FIRST_ONLY = {"Resize"}
"""Operators whose later floating-point inputs are no data."""

PLACES = {"Sin", "Cos"}
INDICES = {"Exp", "Floor", "Ceil", "Round", "Cast"}
"""Results of these depend on the last bits of what comes in."""


def halve(model: onnx.ModelProto, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """The typed graph. Nodes whose names match a pattern in `keep` compute in fp32.

    A node without a name goes by its first output's. Weights are stored in fp16 whatever `keep`
    says, so that graphs which differ in it only can share them.

    Raises:
        InputError: the graph branches or loops, or is quantised for integer arithmetic.
    """
    source = images_first(model)
    everywhere = Typing(source)
    chosen = Typing(source, tuple(keep))
    return _Emitter(source, chosen, stored_in_half(everywhere)).emit()


def images_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which a picture in bytes becomes fp32 first thing: TensorRT allows nothing else."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for image in graph.input:
        if image.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        inside = f"{image.name}_fp32"
        for node in graph.node:
            node.input[:] = [inside if name == image.name else name for name in node.input]
        graph.node.insert(0, helper.make_node("Cast", [image.name], [inside], to=FLOAT))
    del graph.value_info[:]
    return copy


def name_of(node: NodeProto) -> str:
    """A node's name, or its first output's."""
    return node.name or node.output[0]


class Graph:
    """A graph with its types and connections."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = shape_inference.infer_shapes(model)
        self.nodes = list(model.graph.node)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        infos = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        self.outputs = {info.name for info in model.graph.output}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
                raise InputError(f"{name_of(node)} branches: only straight graphs can be typed")
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def floats(self, node: NodeProto) -> list[int]:
        """Which inputs of a node are floating-point data."""
        inputs = node.input[:1] if node.op_type in FIRST_ONLY else node.input
        return [at for at, name in enumerate(inputs) if name and self.types.get(name) == FLOAT]

    def constant(self, name: str) -> bool:
        """Whether a value is the same in every run."""
        maker = self.makers.get(name)
        if maker is None:
            return name in self.weights
        return maker.op_type in ("Constant", "DequantizeLinear", "Identity") and all(
            self.constant(n) for n in maker.input if n
        )

    def before(self, node: NodeProto) -> Iterator[NodeProto]:
        """Nodes that make the floating-point inputs of a node."""
        for at in self.floats(node):
            if (maker := self.makers.get(node.input[at])) is not None:
                yield maker

    def after(self, node: NodeProto) -> Iterator[NodeProto]:
        """Nodes that read what a node makes."""
        for name in node.output:
            yield from self.readers.get(name, ())


@dataclass
class Typing:
    """Which nodes compute in half precision."""

    model: onnx.ModelProto
    keep: tuple[str, ...] = ()
    graph: Graph = field(init=False)
    half: set[str] = field(default_factory=set)
    """Names of values that come out in fp16."""
    ...
