"""Build ONNX graphs node by node; weights stream to disk instead of gathering in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Weight = npt.NDArray[Any]

Dialect: TypeAlias = Literal["ort", "portable"]
"""`ort` may use ONNX Runtime's own operators; `portable` uses ONNX's alone, for TensorRT."""

OPSET, IR_VERSION = 21, 10
"""The newest that ONNX Runtime 1.20 reads."""

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


class GraphBuilder:
    """Collects nodes; weights are appended to `<name>.onnx.data` the moment they are given.

    Without a path (`None`) everything stays inside the model, for small graphs and tests.
    """

    def __init__(self, name: str, path: Path | None = None, dialect: Dialect = "ort") -> None:
        self._name, self._path, self.dialect = name, path, dialect
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[bytes, str] = {}
        self._count = 0
        self.shared: dict[str, list[str]] = {}
        """Values that several nodes may use, by what they are."""
        self._data = None if path is None else Path(f"{path}.data").open("wb")  # noqa: SIM115

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
        small = values.nbytes <= INLINE_LIMIT or self._data is None
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
        assert self._data is not None
        assert self._path is not None
        padding = -self._data.tell() % 64
        self._data.write(b"\0" * padding)
        place = {
            "location": f"{self._path.name}.data",
            "offset": self._data.tell(),
            "length": values.nbytes,
        }
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        values.tofile(self._data)

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, self._weights
        )
        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in domains)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="segagent-rt"
        )

    def save(self) -> None:
        """Write the graph; a .data file without content is not kept."""
        assert self._path is not None
        assert self._data is not None
        empty = self._data.tell() == 0
        self._data.close()
        if empty:
            Path(f"{self._path}.data").unlink()
        partial = self._path.with_suffix(".partial")
        onnx.save_model(self.model(), str(partial))
        partial.replace(self._path)

    def discard(self) -> None:
        """Forget what was written of a graph that will not be finished."""
        if self._data is not None:
            self._data.close()
            Path(f"{self._path}.data").unlink(missing_ok=True)


@contextmanager
def new_graph(path: Path, dialect: Dialect = "ort") -> Iterator[GraphBuilder]:
    """A graph that is saved if the block ends well, and vanishes if not."""
    graph = GraphBuilder(path.stem, path, dialect)
    try:
        yield graph
    except BaseException:
        graph.discard()
        raise
    graph.save()


def _onnx_type(dtype: npt.DTypeLike) -> int:
    return int(_TYPES[np.dtype(dtype)])
