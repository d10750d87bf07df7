"""Graphs that are too large for the memory, run partition by partition.

A graph is cut where enough weights have come together. All calls that are made at the same time
pass through a partition before the next one is loaded. So weights are read once for all of them,
and only one partition with its activations is in memory.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.types import Array, Buffers, Feeds, Names, Session

PARTITION_BYTES = 400_000_000
"""Bytes of weights in a piece; a piece holds at least one node."""

CPU = SessionOptions("cpu")

T = TypeVar("T")
Values: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GraphPartition:
    """Neighbouring nodes of a graph: the values that they need, those that they give to later
    pieces or as outputs, and those that nobody needs after them."""

    nodes: tuple[onnx.NodeProto, ...]
    weights: tuple[onnx.TensorProto, ...]
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    done_with: frozenset[str]


@dataclass(frozen=True, slots=True)
class GraphCall:
    """One call of a graph; `into` are buffers for some outputs, `values` what is known by now."""

    values: Values
    outputs: tuple[str, ...]
    into: Mapping[str, Array]


class PartitionedGraph:
    """A graph on disk, cut. Its folder must be writable while it is run."""

    def __init__(self, path: Path, budget: int | None = None) -> None:
        self.name, self.folder = path.stem, path.parent
        self._path = path
        model = onnx.load(path, load_external_data=False)
        self._opsets = tuple(model.opset_import)
        self._version = model.ir_version
        self.inputs = [given.name for given in model.graph.input]
        self._outputs = {output.name for output in model.graph.output}
        self.graph_parts = tuple(cut(model.graph, budget or PARTITION_BYTES))

    def run_calls(self, calls: Sequence[GraphCall]) -> list[Values]:
        """Pass all questions through all pieces."""
        for partition in self.graph_parts:
            session = self._open(partition, calls[0].values)
            for call in calls:
                self._pass(partition, session, call)
            session.close()
        return [{name: q.values[name] for name in q.outputs} for q in calls]

    def _pass(self, partition: GraphPartition, session: Session, call: GraphCall) -> None:
        values, wanted = call.values, {*call.outputs, *call.into}
        names = [n for n in partition.gives if n in wanted or n not in self._outputs]
        values |= session.run({name: values[name] for name in partition.needs}, names)
        for name in set(names) & set(call.into):
            call.into[name][...] = values[name]
        for name in partition.done_with.difference(call.outputs):
            values.pop(name, None)

    def _open(self, partition: GraphPartition, values: Values) -> Session:
        """Load one piece; the weights stay where they are, in the file beside the graph."""
        inputs = [_describe(name, values[name]) for name in partition.needs]
        outputs = [onnx.ValueInfoProto(name=name) for name in partition.gives]
        graph = helper.make_graph(partition.nodes, "piece", inputs, outputs, partition.weights)
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._version)
        path = self._path.with_name(f".{self._path.stem}-piece.onnx")
        try:
            path.write_bytes(model.SerializeToString())
            # Quantised products are much slower with weights as they lie in the file.
            plain = not any(node.domain for node in partition.nodes)
            return open_session(path, SessionOptions("cpu", skip_prepack=plain))
        finally:
            path.unlink(missing_ok=True)


def _describe(name: str, value: Array) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * value.ndim)


def cut(graph: onnx.GraphProto, budget: int) -> list[GraphPartition]:
    """The nodes of a graph, in their order, in pieces of at most `budget` bytes of weights."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    groups, held = [list[onnx.NodeProto]()], dict[str, int]()
    for node in graph.node:
        own = {name: size_of(weights[name]) for name in node.input if name in weights}
        if groups[-1] and sum((held | own).values()) > budget:
            groups.append([])
            held = {}
        groups[-1].append(node)
        held |= own
    last = {name: at for at, nodes in enumerate(groups) for n in nodes for name in n.input}
    outputs = {output.name for output in graph.output}
    return [_piece(nodes, at, weights, last, outputs) for at, nodes in enumerate(groups)]


def _piece(
    nodes: Sequence[onnx.NodeProto],
    at: int,
    weights: Mapping[str, onnx.TensorProto],
    last: Mapping[str, int],
    outputs: Collection[str],
) -> GraphPartition:
    """`last` says in which piece a value is needed for the last time."""
    made = dict.fromkeys(name for node in nodes for name in node.output if name)
    used = dict.fromkeys(name for node in nodes for name in node.input if name)
    return GraphPartition(
        tuple(nodes),
        tuple(weights[name] for name in used if name in weights),
        tuple(name for name in used if name not in weights and name not in made),
        tuple(name for name in made if name in outputs or last.get(name, at) > at),
        frozenset(name for name in (*used, *made) if last.get(name, at) <= at),
    )


def size_of(tensor: onnx.TensorProto) -> int:
    """Bytes of a weight, wherever it lies."""
    places = {entry.key: entry.value for entry in tensor.external_data}
    return int(places.get("length", len(tensor.raw_data)))


class LockstepRunner:
    """Runs tasks at the same time and batches what they ask of a graph.

    `report_progress` is told of every pass of questions through a graph.
    """

    def __init__(self, report_progress: Callable[[str], None]) -> None:
        self._asked: SimpleQueue[_PendingCall | None] = SimpleQueue()
        self._report_progress, self._passes = report_progress, 0

    def ask(self, graph_parts: PartitionedGraph, call: GraphCall) -> Values:
        """The answer, as soon as every other task asks for something too, or has ended."""
        asked = _PendingCall(graph_parts, call, Future())
        self._asked.put(asked)
        return asked.answer.result()

    def run_all(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run tasks that call `ask`; returns what they return, in their order."""
        with ThreadPoolExecutor(len(tasks)) as pool:
            ends = [pool.submit(task) for task in tasks]
            for end in ends:
                end.add_done_callback(lambda _: self._asked.put(None))
            going, waiting = len(tasks), list[_PendingCall]()
            while going:
                asked = self._asked.get()
                going -= asked is None
                waiting += [] if asked is None else [asked]
                if waiting and len(waiting) == going:
                    self._answer(waiting)
                    waiting = []
        return [end.result() for end in ends]

    def _answer(self, waiting: Sequence[_PendingCall]) -> None:
        """Answer everything that is asked, graph by graph."""
        for graph_parts in dict.fromkeys(asked.graph_parts for asked in waiting):
            together = [asked for asked in waiting if asked.graph_parts is graph_parts]
            self._passes += 1
            self._report_progress(
                f"pass {self._passes}: {len(together)} at once through the {graph_parts.name}"
            )
            try:
                answers = graph_parts.run_calls([asked.call for asked in together])
            except BaseException as error:
                for asked in together:
                    asked.answer.set_exception(error)
                continue
            for asked, found in zip(together, answers, strict=True):
                asked.answer.set_result(found)


@dataclass(frozen=True, slots=True)
class _PendingCall:
    graph_parts: PartitionedGraph
    call: GraphCall
    answer: Future[Values]


class MmapBuffer:
    """A buffer in a file without a name: what many questions remember takes no memory."""

    def __init__(self, shape: Sequence[int], dtype: npt.DTypeLike, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, later it is a signal
                size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
                os.posix_fallocate(file.fileno(), 0, size)
            self._values = np.memmap(file, dtype, "w+", shape=tuple(shape))

    def numpy(self) -> Array:
        return np.asarray(self._values)


class LockstepSession:
    """A session that runs a graph partition by partition, together with the runner's other
    tasks."""

    def __init__(self, path: Path, runner: LockstepRunner) -> None:
        self._pieces, self._runner = PartitionedGraph(path), runner
        self.inputs = self._pieces.inputs

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        assert not keep
        values = {n: f if isinstance(f, np.ndarray) else f.numpy() for n, f in feeds.items()}
        buffers = {name: buffer.numpy() for name, buffer in (into or {}).items()}
        return self._runner.ask(self._pieces, GraphCall(values, tuple(outputs), buffers))

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> MmapBuffer:
        return MmapBuffer(shape, dtype, self._pieces.folder)

    def close(self) -> None: ...
