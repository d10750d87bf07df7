"""Graphs in ONNX Runtime, bound to memory of the device, as a benchmark needs them.

The runtime's own sessions take what they are given from the host. To see what a graph alone takes,
its inputs and outputs stay here where it runs, at the same addresses in every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from segagent_rt.backends.checked_session import SessionWrapper
from segagent_rt.backends.driver import gpu
from segagent_rt.backends.host_buffer import on_host
from segagent_rt.backends.onnxruntime import OrtBuffer, OrtSession
from segagent_rt.errors import BackendUnavailable
from segagent_rt.types import Array, Buffers, Feeds, Names, Session


@dataclass(frozen=True, slots=True)
class GraphHost:
    """How ONNX Runtime runs a graph.

    Attributes:
        device: `cuda` or `cpu`.
        tf32: whether products of 32-bit floats may round their factors to 19 bits, which is ONNX
            Runtime's default.
        cuda_graph: whether the work is captured once and then launched as a whole.
    """

    device: str
    tf32: bool = True
    cuda_graph: bool = False

    def open(self, path: Path) -> OrtSession:
        """Load a graph; on the GPU, or not at all.

        Raises:
            BackendUnavailable: the provider does not work here.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self.device == "cpu":
            options.intra_op_num_threads = torch.get_num_threads()
            providers: list[Any] = ["CPUExecutionProvider"]
        else:
            gpu()
            flags = {"use_tf32": self.tf32, "enable_cuda_graph": self.cuda_graph}
            chosen = {name: str(int(flag)) for name, flag in flags.items()}
            providers = [("CUDAExecutionProvider", chosen)]
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        wanted = providers[0] if self.device == "cpu" else "CUDAExecutionProvider"
        if session.get_providers()[0] != wanted:
            raise BackendUnavailable(
                f"ONNX Runtime cannot use {wanted} on this machine",
                hint="`segagent-rt doctor` shows what is missing",
            )
        return OrtSession(session, self.device, path.name)

    def buffer(self, content: Array) -> OrtBuffer:
        """The content in the device's memory."""
        array = np.ascontiguousarray(content)
        return OrtBuffer(ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """What a session was given in one call, and the arrays that came out."""

    feeds: Feeds
    into: Buffers
    results: Mapping[str, Any]


@dataclass(slots=True)
class LastCall(SessionWrapper):
    """A session that keeps its last call."""

    session: Session
    last: RecordedCall | None = None

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        results = self.session.run(feeds, outputs, into=into, keep=keep)
        self.last = RecordedCall(dict(feeds), dict(into or {}), results)
        return results


@lru_cache(maxsize=4)
def _opened(host: GraphHost, path: Path) -> OrtSession:
    """A graph that serves several calls is loaded once."""
    return host.open(path)


def repeated(path: Path, call: RecordedCall, host: GraphHost) -> Callable[[], object]:
    """The same call again and again, between places of the device's memory that do not change."""
    session = _opened(host, path)
    feeds = {
        name: host.buffer(feed) if isinstance(feed, np.ndarray) else feed
        for name, feed in call.feeds.items()
    }
    results = {name: on_host(result) for name, result in call.results.items()}
    into = dict(call.into) | {
        name: session.allocate(result.shape, result.dtype) for name, result in results.items()
    }
    return lambda: session.run(feeds, (), into=into)


def captured(path: Path, call: RecordedCall, device: str) -> Callable[[], object]:
    """As `repeated`, with the work captured in a CUDA graph; on the CPU there is nothing to
    capture, and only the shapes are fixed."""
    fixed = with_known_shapes(path, call)
    return repeated(fixed, call, GraphHost(device, cuda_graph=device == "cuda"))


def with_known_shapes(path: Path, call: RecordedCall) -> Path:
    """The same graph for inputs of one shape, beside it: what it computes from their shapes is
    known when it is loaded. Otherwise the host would compute it, and a graph in which the host
    takes part cannot be captured."""
    model = onnx.load(str(path), load_external_data=False)
    graph, inline = model.graph, onnx.TensorProto.DEFAULT
    shapes = {n: f.shape for n, f in call.feeds.items() if isinstance(f, np.ndarray)}
    known: dict[str, Array] = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_location == inline
    }
    for node in list(graph.node):
        if (value := _known(node, shapes, known)) is not None:
            known[node.output[0]] = value
            graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
            graph.node.remove(node)
    fixed = path.with_name(f"fixed-{'x'.join(map(str, _lengths(shapes)))}-{path.name}")
    fixed.write_bytes(model.SerializeToString())
    return fixed


def _known(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Array]
) -> Array | None:
    """What a node that reads lengths, or counts up to them, computes; None of any other."""
    if node.op_type == "Shape" and node.input[0] in shapes:
        return np.array(shapes[node.input[0]], np.int64)
    if node.op_type not in ("Gather", "Range") or not all(name in known for name in node.input):
        return None
    values = [known[name] for name in node.input]
    if node.op_type == "Range":
        return np.arange(*(value.item() for value in values), dtype=values[0].dtype)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return np.take(values[0], values[1], axis)


def _lengths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Of the largest input, which tells shapes of one graph apart."""
    return max(shapes.values(), key=math.prod)


def stored_bytes(graph: Path) -> int:
    """Bytes of a graph with its weights."""
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))


def cache_bytes(call: RecordedCall) -> int:
    """Bytes of the keys and values that a call of a decoder reads."""
    return sum(
        on_host(feed).nbytes for name, feed in call.feeds.items() if name.startswith("past.")
    )
