"""Sessions on engines of TensorRT and TensorRT-RTX."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.backends.checked_session import check_process, closed
from segagent_rt.backends.cuda import Cuda, CudaGraphCache, DeviceArray, PinnedBuffer
from segagent_rt.errors import EngineRefused
from segagent_rt.timing import current_deadline
from segagent_rt.types import Buffers, DeviceTensor, Feed, Feeds, Names

Shape: TypeAlias = tuple[int, ...]

_DTYPES = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "UINT8": np.uint8,
    "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of an engine; `on_host`: it is read on the host, to decide on shapes."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool
    on_host: bool

    def size(self, shape: Shape) -> int:
        """Bytes."""
        return math.prod(shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _BoundTensor:
    """A tensor in one run."""

    tensor: Tensor
    shape: Shape
    address: int

    @property
    def size(self) -> int:
        return self.tensor.size(self.shape)


class ContextSource(Protocol):
    """Makes the execution contexts of one engine."""

    def new(self) -> Any: ...

    def close(self) -> None: ...


class EngineSession:
    """One engine. Calls from several threads wait for each other.

    `name` is what errors call the engine.
    """

    def __init__(self, engine: Any, cuda: Cuda, name: str, source: ContextSource) -> None:
        self._engine, self._cuda, self._name, self._source = engine, cuda, name, source
        self._tensors = {tensor.name: tensor for tensor in _tensors(engine, name)}
        self.inputs = [tensor.name for tensor in self._tensors.values() if tensor.is_input]
        self._staging = {tensor: PinnedBuffer(cuda) for tensor in self._tensors}
        self._contexts: dict[int, Any] = {}
        self._output_shapes: dict[Any, dict[str, Shape]] = {}
        self._stream = cuda.stream()
        self._replays = CudaGraphCache(cuda, self._stream)
        self._lock = threading.Lock()
        self._process = os.getpid()

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        deadline = current_deadline()
        check_process(self._process, self._name)
        # Nothing stops a GPU in the middle of a call; but the next one is not begun.
        with self._lock, deadline.stopping(lambda: None) if deadline else nullcontext():
            if self._engine is None:
                raise closed(self._name)
            given = [self._give(self._tensors[name], feed) for name, feed in feeds.items()]
            profile = self._profile(given)
            targets = {name: _ours(buffer) for name, buffer in (into or {}).items()}
            spare = self._spare(targets, feeds)
            made = [
                self._take(self._tensors[name], shape, spare.get(name, targets.get(name)))
                for name, shape in self._shapes(profile, given).items()
            ]
            self._execute(profile, given, made, [name for name in outputs if name not in keep])
            asked = [bound for bound in made if bound.tensor.name in outputs]
            results = {bound.tensor.name: self._result(bound, keep) for bound in asked}
            self._cuda.wait(self._stream)
            for name, array in spare.items():
                targets[name].exchange(array)
            return {name: results[name]() for name in outputs}

    def _give(self, tensor: Tensor, feed: Feed) -> _BoundTensor:
        """Bind an input: arrays of ours where they lie, others through the staging memory."""
        if isinstance(feed, DeviceArray):
            self._staging[tensor.name].close()  # the check at load passed it through the host
            return _BoundTensor(tensor, feed.shape, feed.address)
        array = feed if isinstance(feed, np.ndarray) else feed.numpy()
        staging = self._staging[tensor.name]
        staging.reserve(tensor.size(array.shape))
        np.copyto(staging.view(array.shape, tensor.dtype), array, casting="same_kind")
        return _BoundTensor(tensor, array.shape, staging.host if tensor.on_host else staging.device)

    def _spare(
        self, targets: Mapping[str, DeviceArray], feeds: Mapping[str, Feed]
    ) -> dict[str, DeviceArray]:
        """Other memory for outputs that replace an input: an engine does not work in place."""
        read = {id(feed) for feed in feeds.values()}
        return {
            name: DeviceArray(self._cuda, target.shape, target.dtype)
            for name, target in targets.items()
            if id(target) in read
        }

    def _take(self, tensor: Tensor, shape: Shape, target: DeviceArray | None) -> _BoundTensor:
        """Bind an output: into an array of ours, or the staging memory."""
        if target is not None:
            if target.nbytes != tensor.size(shape):
                raise EngineRefused(f"{self._name}: {tensor.name} is {shape}, not {target.shape}")
            self._staging[tensor.name].close()
            return _BoundTensor(tensor, shape, target.address)
        staging = self._staging[tensor.name]
        staging.reserve(tensor.size(shape))
        return _BoundTensor(tensor, shape, staging.device)

    def _profile(self, given: Sequence[_BoundTensor]) -> int:
        """The first profile that takes these shapes."""
        for number in range(self._engine.num_optimization_profiles):
            if all(self._fits(bound, number) for bound in given):
                return number
        found = ", ".join(f"{bound.tensor.name} {list(bound.shape)}" for bound in given)
        raise EngineRefused(
            f"{self._name} was not built for {found}", hint="use --backend cuda or cpu for these"
        )

    def _fits(self, bound: _BoundTensor, profile: int) -> bool:
        name, fixed = bound.tensor.name, tuple(self._engine.get_tensor_shape(bound.tensor.name))
        if -1 not in fixed:
            return fixed == bound.shape
        ranges = self._engine.get_tensor_profile_shape(name, profile)
        least, _, most = (tuple(shape) for shape in ranges)
        if len(least) != len(bound.shape):
            return False
        return all(a <= b <= c for a, b, c in zip(least, bound.shape, most, strict=True))

    def _shapes(self, profile: int, given: Sequence[_BoundTensor]) -> dict[str, Shape]:
        """Shapes of all outputs, asked of TensorRT once for each set of input shapes."""
        key = (profile, *(bound.shape for bound in given))
        if key not in self._output_shapes or any(bound.tensor.on_host for bound in given):
            context = self._context(profile)
            _bind(context, given)
            names = [t.name for t in self._tensors.values() if not t.is_input]
            shapes = {name: tuple(context.get_tensor_shape(name)) for name in names}
            self._output_shapes[key] = shapes
        return self._output_shapes[key]

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context, stream = self._source.new(), int(self._stream)
            if context is None or not context.set_optimization_profile_async(profile, stream):
                raise EngineRefused(f"{self._name} cannot be run", hint="build it again")
            self._contexts[profile] = context
        return self._contexts[profile]

    def _execute(
        self,
        profile: int,
        given: Sequence[_BoundTensor],
        made: Sequence[_BoundTensor],
        wanted: Sequence[str],
    ) -> None:
        context, stream, staging = self._context(profile), self._stream, self._staging
        staged = [b for b in given if b.address == staging[b.tensor.name].device]
        fetched = [b for b in made if b.tensor.name in wanted]

        def work() -> None:
            _bind(context, given)
            _bind(context, made)
            for bound in staged:
                staging[bound.tensor.name].upload(bound.size, stream)
            if not context.execute_async_v3(int(stream)):
                raise EngineRefused(f"{self._name} failed in a run", hint="build it again")
            for bound in fetched:
                staging[bound.tensor.name].download(bound.size, stream)

        if any(bound.tensor.on_host for bound in given) or not _capturable(context, stream):
            work()
            return
        shapes = (profile, *((b.tensor.name, b.shape) for b in given))
        hosts = [staging[bound.tensor.name].host for bound in (*staged, *fetched)]
        self._replays.run(shapes, (*given, *made, *hosts), work)

    def _result(self, bound: _BoundTensor, keep: Collection[str]) -> Callable[[], Any]:
        """What becomes of an output, to be called when the stream is done."""
        name, dtype = bound.tensor.name, bound.tensor.dtype
        if name not in keep:
            return lambda: np.array(self._staging[name].view(bound.shape, dtype))
        array = DeviceArray(self._cuda, bound.shape, dtype)
        self._cuda.copy(array.address, bound.address, bound.size, self._stream)
        return lambda: array

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        array = DeviceArray(self._cuda, tuple(shape), dtype)
        self._cuda.clear(array.address, array.nbytes, self._stream)
        self._cuda.wait(self._stream)
        return array

    def close(self) -> None:
        if self._process != os.getpid():
            return
        with self._lock:
            if self._engine is None:
                return
            self._replays.close()
            self._source.close()
            self._contexts.clear()
            for staging in self._staging.values():
                staging.close()
            self._cuda.end(self._stream)
            self._engine = None


def _bind(context: Any, tensors: Sequence[_BoundTensor]) -> None:
    for bound in tensors:
        if bound.tensor.is_input:
            context.set_input_shape(bound.tensor.name, bound.shape)
        context.set_tensor_address(bound.tensor.name, bound.address)


def _capturable(context: Any, stream: Any) -> bool:
    """Whether the library allows it; only TensorRT-RTX may say no."""
    ask = getattr(context, "is_stream_capturable", None)
    return ask is None or bool(ask(int(stream)))


def _ours(buffer: DeviceTensor) -> DeviceArray:
    assert isinstance(buffer, DeviceArray), "a buffer of another backend"
    return buffer


def _tensors(engine: Any, name: str) -> list[Tensor]:
    """The engine's inputs and outputs.

    Raises:
        EngineRefused: one has a type that NumPy does not know.
    """
    found = []
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(tensor).name
        if kind not in _DTYPES:
            raise EngineRefused(f"{name}: {tensor} is {kind}", hint="export it with fp32 inputs")
        is_input = engine.get_tensor_mode(tensor).name == "INPUT"
        on_host = engine.get_tensor_location(tensor).name == "HOST"
        found.append(Tensor(tensor, np.dtype(_DTYPES[kind]), is_input, on_host))
    return found
