"""Build ONNX graphs node by node; weights stream to disk instead of gathering in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from segagent_rt_export.sources.weights import Weight

Dialect: TypeAlias = Literal["ort", "portable"]
"""`ort` may use ONNX Runtime's own operators; `portable` uses ONNX's alone, for TensorRT."""

OPSET, IR_VERSION = 21, 10
"""The newest that ONNX Runtime 1.20 reads."""

OLDER_OPSET = 20
"""Of portable graphs that need nothing newer: the newest that TensorRT 10.3 documents (JetPack 6).
"""

INLINE_LIMIT = 1024
"""Constants up to this many bytes stay in the .onnx file; the rest goes to .data beside it."""

_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}


class WeightFile:
    """Large weights of one graph, or of several that lie beside it, written the moment they are
    given; what is there already is not written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("wb")
        self._offsets: dict[bytes, int] = {}

    def put(self, values: Weight) -> int:
        """The offset of a contiguous array in the file, a multiple of 64 bytes."""
        digest = hashlib.sha256(values.data).digest()
        if digest not in self._offsets:
            self._stream.write(b"\0" * (-self._stream.tell() % 64))
            self._offsets[digest] = self._stream.tell()
            values.tofile(self._stream)
        return self._offsets[digest]

    def close(self, *, keep: bool = True) -> None:
        """A file without content is not kept, nor that of graphs that will not be finished."""
        self._stream.close()
        if not (keep and self._offsets):
            self.path.unlink()


class GraphBuilder:
    """Collects nodes; large weights go to a file beside the graph.

    Without one (`None`) everything stays inside the model, for small graphs and tests.
    """

    def __init__(
        self, name: str, weights: WeightFile | None = None, dialect: Dialect = "ort"
    ) -> None:
        self._name, self._file, self.dialect = name, weights, dialect
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[bytes, str] = {}
        self._count = 0
        self.shared: dict[str, list[str]] = {}
        """Values that several nodes may use, by what they are."""

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def output(
        self, value: str, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]
    ) -> None:
        """Name a value as an output of the graph."""
        self.node("Identity", [value], name)
        self._outputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))

    def output_of(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> str:
        """Declare an output that a node writes under its own name."""
        self._outputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def node(
        self, kind: str, inputs: Sequence[str], output: str | None = None, *,
        domain: str = "", **attributes: Any,
    ) -> str:  # fmt: skip
        """Add a node with one output; returns the output's name."""
        return self.nodes(kind, inputs, [output or self._fresh(kind)], domain=domain, **attributes)[
            0
        ]

    def nodes(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *,
        domain: str = "", **attributes: Any,
    ) -> list[str]:  # fmt: skip
        """Add a node with several outputs; an empty name leaves one out."""
        assert not domain or self.dialect == "ort"
        self._nodes.append(
            helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes)
        )
        return list(outputs)

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; -1 is what is left, 0 what the axis has."""
        return self.node("Reshape", [x, self.weight(np.array(shape))])

    def gather(self, x: str, indices: str, axis: int = 0) -> str:
        """Pick along an axis."""
        return self.node("Gather", [x, indices], axis=axis)

    def add(self, x: str, y: str) -> str:
        """x + y."""
        return self.node("Add", [x, y])

    def mul(self, x: str, y: str) -> str:
        """x * y."""
        return self.node("Mul", [x, y])

    def scalar(self, value: float) -> str:
        """A float32 constant."""
        return self.weight(np.array(value, np.float32))

    def weight(
        self, values: Weight, name: str | None = None, *, nibbles: Sequence[int] | None = None
    ) -> str:
        """A constant; equal small ones are stored once.

        With `nibbles`, the values are pairs of four-bit integers (low half first) of that shape.
        """
        values = np.ascontiguousarray(values)
        small = values.nbytes <= INLINE_LIMIT or self._file is None
        key = values.tobytes() + str((values.dtype, nibbles or values.shape)).encode()
        key = key if small else b""
        if key and key in self._constants:
            return self._constants[key]
        name = name or self._fresh("weight")
        kind = TensorProto.INT4 if nibbles else _onnx_type(values.dtype)
        tensor = TensorProto(name=name, dims=nibbles or values.shape, data_type=kind)
        if small:
            tensor.raw_data = values.tobytes()
            self._constants[key] = name
        else:
            self._stream(tensor, values)
        self._weights.append(tensor)
        return name

    def _stream(self, tensor: onnx.TensorProto, values: Weight) -> None:
        assert self._file is not None
        place = {
            "location": self._file.path.name,
            "offset": self._file.put(values),
            "length": values.nbytes,
        }
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, self._weights
        )
        domains = {node.domain for node in self._nodes} - {""}
        own = OPSET if self.dialect == "ort" or self._in_blocks() else OLDER_OPSET
        opsets = [helper.make_opsetid("", own), *(helper.make_opsetid(d, 1) for d in domains)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="segagent-rt"
        )

    def _in_blocks(self) -> bool:
        """Whether weights are unpacked in blocks, which is new in opset 21."""
        return any(a.name == "block_size" for node in self._nodes for a in node.attribute)

    def save(self, path: Path) -> None:
        """Write the graph, beside the file of its weights."""
        partial = path.with_suffix(".partial")
        onnx.save_model(self.model(), str(partial))
        partial.replace(path)


@contextmanager
def new_weights(path: Path) -> Iterator[WeightFile]:
    """A file of weights that is kept if the block ends well, and vanishes if not."""
    weights = WeightFile(path)
    try:
        yield weights
    except BaseException:
        weights.close(keep=False)
        raise
    weights.close()


@contextmanager
def new_graph(
    path: Path, dialect: Dialect = "ort", weights: WeightFile | None = None
) -> Iterator[GraphBuilder]:
    """A graph that is saved if the block ends well, and vanishes if not.

    Its weights go to `weights`, which other graphs in the same folder may share, or to a file of
    its own, `<path>.data`.
    """
    if weights is None:
        with new_weights(Path(f"{path}.data")) as own, new_graph(path, dialect, own) as graph:
            yield graph
        return
    graph = GraphBuilder(path.stem, weights, dialect)
    yield graph
    graph.save(path)


def _onnx_type(dtype: npt.DTypeLike) -> int:
    return int(_TYPES[np.dtype(dtype)])
