"""Memory, streams and graphs of the CUDA runtime. The only file that imports cuda-python."""

from __future__ import annotations

import ctypes
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from segagent_rt.backends.driver import gpu
from segagent_rt.errors import BackendMissing, BackendUnavailable
from segagent_rt.types import Array

_MAPPED = 2
"""cudaHostAllocMapped: the GPU sees the memory at the same address."""

_OUT_OF_MEMORY = 2

SPARE = 64 << 20
"""Bytes of freed device memory that wait even if an array of another size is wanted."""

GRAPHS = 8
"""Captured graphs that are kept, the least used dropped first."""


@lru_cache(1)
def cuda() -> Cuda:
    """The CUDA runtime on the first GPU.

    Raises:
        BackendMissing: cuda-python is not installed.
        BackendUnavailable: there is no GPU.
    """
    shared = gpu().integrated
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return Cuda(import_module(name), shared)
        except ImportError:
            continue
    raise BackendMissing("cuda-python is not installed", hint="pip install cuda-python")


class Cuda:
    """Checked calls. Freed device memory waits for the next array of its size.

    So nothing is allocated in a loop, and addresses repeat, which captured graphs live on. If none
    of the size waits, and more than `SPARE` bytes do, all of them are given up: what is held does
    not grow with every new size of picture.
    `shared`: the GPU works in the host's memory, and nothing needs to be copied to it.
    """

    def __init__(self, runtime: Any, shared: bool) -> None:
        self._runtime, self.shared = runtime, shared
        self._free: dict[int, list[int]] = {}
        self._waiting = 0
        self._lock = threading.Lock()

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        if int(error) == _OUT_OF_MEMORY:
            raise BackendUnavailable(
                "the GPU's memory is full", hint="close other programs, or use a smaller variant"
            )
        if int(error) != 0:
            raise BackendUnavailable(f"{function} failed with CUDA error {int(error)}")
        return values[0] if values else None

    def allocate(self, size: int) -> int:
        """Device memory; its content is undefined."""
        with self._lock:
            if waiting := self._free.get(size):
                self._waiting -= size
                return waiting.pop()
            given_up = list(chain(*self._free.values())) if self._waiting > SPARE else []
            if given_up:
                self._free, self._waiting = {}, 0
        for address in given_up:
            self._call("cudaFree", address)
        return int(self._call("cudaMalloc", max(size, 1)))

    def release(self, address: int, size: int) -> None:
        """Give device memory back."""
        with self._lock:
            self._free.setdefault(size, []).append(address)
            self._waiting += size

    def pinned(self, size: int) -> int:
        """Host memory that the GPU reads and writes without a copy in between."""
        return int(self._call("cudaHostAlloc", max(size, 1), _MAPPED))

    def unpin(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Copy in a stream, from anywhere to anywhere."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def stream(self) -> Any:
        return self._call("cudaStreamCreate")

    def wait(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """Record what `work` puts into the stream, without doing it, as a graph to launch."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        finally:
            recorded = self._call("cudaStreamEndCapture", stream)
        graph = self._call("cudaGraphInstantiate", recorded, 0)
        self._call("cudaGraphDestroy", recorded)
        return graph

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def drop(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def end(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)


class DeviceArray:
    """An array on the GPU; its memory goes back when nobody holds it any more."""

    __slots__ = ("__weakref__", "_cuda", "address", "dtype", "shape")

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._cuda, self.shape, self.dtype = cuda, shape, np.dtype(dtype)
        self.address = cuda.allocate(self.nbytes)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> Array:
        content = np.empty(self.shape, self.dtype)
        stream = self._cuda.stream()
        self._cuda.copy(content.ctypes.data, self.address, self.nbytes, stream)
        self._cuda.wait(stream)
        self._cuda.end(stream)
        return content

    def exchange(self, other: DeviceArray) -> None:
        """Swap contents with an array of the same size, without a copy."""
        assert self.nbytes == other.nbytes
        self.address, other.address = other.address, self.address

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.release(self.address, self.nbytes)


class PinnedBuffer:
    """Where an input or output of a graph passes between host and GPU; grows when it must."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self._size = cuda, 0
        self.host = self.device = 0

    def reserve(self, size: int) -> None:
        if size <= self._size:
            return
        self.close()
        self.host = self._cuda.pinned(size)
        self.device = self.host if self._cuda.shared else self._cuda.allocate(size)
        self._size = size

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """The host's side as an array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.host)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def upload(self, size: int, stream: Any) -> None:
        if self.device != self.host:
            self._cuda.copy(self.device, self.host, size, stream)

    def download(self, size: int, stream: Any) -> None:
        if self.device != self.host:
            self._cuda.copy(self.host, self.device, size, stream)

    def close(self) -> None:
        if self._size:
            if self.device != self.host:
                self._cuda.release(self.device, self._size)
            self._cuda.unpin(self.host)
            self._size = self.host = self.device = 0


class CudaGraphCache:
    """Does work plainly the first time, captures it as a graph, and launches that from then on."""

    def __init__(self, cuda: Cuda, stream: Any) -> None:
        self._cuda, self._stream = cuda, stream
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()
        self._settled: Hashable = None

    def run(self, shapes: Hashable, addresses: Hashable, work: Callable[[], None]) -> None:
        """`work` is captured only right after a run with the same shapes.

        TensorRT puts off some of what follows a change of shapes until the next run.
        """
        key = (shapes, addresses)
        graph = self._graphs.pop(key, None)
        if graph is None and shapes == self._settled:
            graph = self._cuda.capture(self._stream, work)
        if graph is None:
            work()
            self._settled = shapes
            return
        self._cuda.launch(graph, self._stream)
        self._graphs[key] = graph
        if len(self._graphs) > GRAPHS:
            self._cuda.drop(self._graphs.popitem(last=False)[1])

    def close(self) -> None:
        while self._graphs:
            self._cuda.drop(self._graphs.popitem()[1])
