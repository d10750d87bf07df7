"""TensorRT and TensorRT-RTX: ONNX in, engines out. The only file that imports them.

Precision lives in the graph: networks are strongly typed, no builder flag asks for a precision. So
one text serves TensorRT 10.3 to 11 and TensorRT-RTX.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from segagent_rt.backends.cores import platform_name
from segagent_rt.backends.cuda import cuda
from segagent_rt.backends.driver import gpu
from segagent_rt.backends.engine import EngineSession
from segagent_rt.backends.engine_library import BATCH, POINTS, Built, Machine, Progress
from segagent_rt.backends.registry import get_backend
from segagent_rt.bundle.manifest import Profile, Range
from segagent_rt.errors import BackendUnavailable, EngineRefused, OutputError
from segagent_rt.io import atomic_write


class TensorRt:
    """One of the two libraries; they share their API."""

    form = ""

    def __init__(self, backend: str, module: Any) -> None:
        self.backend, self._trt, self._said = backend, module, list[str]()
        self._logger = _logger(module, self._said)
        self._runtime: Any = None

    def forms(self) -> Sequence[TensorRt]:
        return [self]

    @property
    def version(self) -> str:
        return f"{get_backend(self.backend).library} {self._trt.__version__}"

    def machine(self) -> Machine:
        found = gpu()
        return Machine(self.version, platform_name(), found.name, found.sm, found.cuda[0])

    def build(
        self, graph: Path, profiles: Sequence[Profile], timing: bytes, progress: Progress
    ) -> Built:
        """Parse a graph and build an engine; needs minutes, and for TensorRT-RTX no GPU.

        Raises:
            EngineRefused: the parser or the builder does not take the graph.
        """
        self._said.clear()
        builder = self._builder()
        network = builder.create_network(self._typed())
        parser = self._trt.OnnxParser(network, self._logger)
        progress("parse")
        if not parser.parse_from_file(str(graph)):
            raise self._refused(graph, _parse_problems(parser))
        config = builder.create_builder_config()
        if (most := _workspace()) is not None:
            config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, most)
        monitor = _monitor(self._trt, progress)
        config.progress_monitor = monitor
        self._add_profiles(builder, network, config, profiles)
        learns = get_backend(self.backend).learns
        if learns:
            config.set_timing_cache(config.create_timing_cache(timing), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refused(graph, self._said)
        learnt = config.get_timing_cache() if learns else None
        return Built(bytes(plan), b"" if learnt is None else bytes(learnt.serialize()))

    def _builder(self) -> Any:
        try:
            return self._trt.Builder(self._logger)
        except TypeError:  # what TensorRT raises where CUDA does not start
            gpu()
            raise BackendUnavailable(
                f"{self.version} does not start: {_reason(self._said)}",
                hint="its CUDA version must not be newer than the driver's",
            ) from None

    def _typed(self) -> int:
        """Creation flags for a strongly typed network; TensorRT 11 knows no other."""
        flags = self._trt.NetworkDefinitionCreationFlag
        return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0

    def _add_profiles(
        self, builder: Any, network: Any, config: Any, profiles: Sequence[Profile]
    ) -> None:
        inputs = [network.get_input(at) for at in range(network.num_inputs)]
        shapes = {x.name: tuple(x.shape) for x in inputs if -1 in tuple(x.shape)}
        if not shapes:
            return
        for ranges in profiles or ({},):
            profile = builder.create_optimization_profile()
            for name, shape in shapes.items():
                span = ranges.get(name) or _unknown(shape)
                profile.set_shape(name, span.least, span.typical, span.most)
            config.add_optimization_profile(profile)

    def open(self, plan: bytes, name: str, kernels: Path | None = None) -> EngineSession:
        """Load an engine. TensorRT-RTX compiles when it loads, and keeps that in `kernels`.

        Raises:
            BackendError: there is no GPU, or no cuda-python.
            EngineRefused: the engine is not for this machine, or damaged.
        """
        device = cuda()
        self._said.clear()
        self._runtime = self._runtime or self._trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineRefused(
                f"{self.version} does not load {name}: {_reason(self._said)}",
                hint="build it again: segagent-rt build",
            )
        return EngineSession(engine, device, name, Contexts(engine, kernels))

    def _refused(self, graph: Path, problems: Sequence[str]) -> EngineRefused:
        hint = "export the bundle again with this version's exporter"
        if any("OutOfMemory" in text or "out of memory" in text for text in problems):
            hint = (
                "a layer needs more memory than this GPU has to spare: export a smaller variant, "
                "or with fewer most_pixels in the recipe"
            )
        text = f"{self.version} does not take {graph.name}: {_reason(problems)}"
        return EngineRefused(text, hint=hint)


class Contexts:
    """Makes an engine's execution contexts. Where the library compiles kernels at load, as
    TensorRT-RTX does, they are kept in a file for the next time.
    """

    def __init__(self, engine: Any, kernels: Path | None) -> None:
        self._engine, self._kernels = engine, kernels
        self._cache: Any = None
        config: Any = getattr(engine, "create_runtime_config", lambda: None)()
        if kernels is not None and hasattr(config, "create_runtime_cache"):
            self._config, self._cache = config, config.create_runtime_cache()
            if kernels.is_file():
                self._cache.deserialize(kernels.read_bytes())  # refuses what is not of this machine
            config.set_runtime_cache(self._cache)

    def new(self) -> Any:
        """An execution context, None if the library cannot make one."""
        if self._cache is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._config)

    def close(self) -> None:
        """Keep what was compiled; a disk that is full only costs time."""
        if self._cache is not None and self._kernels is not None:
            with suppress(OutputError):
                atomic_write(self._kernels, bytes(self._cache.serialize()))
        self._cache = self._engine = None


def _workspace() -> int | None:
    """The most scratch memory that one layer may ask for, in bytes: half of this GPU's memory,
    which engines, processor and screen may share. None, which is the library's own limit, where
    there is no GPU and a graph is only tried."""
    try:
        return gpu().memory // 2
    except BackendUnavailable:
        return None


def _unknown(shape: Sequence[int]) -> Range:
    """The range of an input, from its shape in the graph; -1 stands for axes of any length."""
    found = []
    for batch, points in zip(BATCH, POINTS, strict=True):
        lengths = [batch if at == 0 and len(shape) == 4 else points for at in range(len(shape))]
        found.append(
            tuple(n if side == -1 else side for n, side in zip(lengths, shape, strict=True))
        )
    return Range(*found)


def _parse_problems(parser: Any) -> list[str]:
    """What the parser said; of operators that it does not know at all, only that."""
    errors = [parser.get_error(at) for at in range(parser.num_errors)]
    said = [
        f"it has no {e.node_operator()}" if e.desc().strip() == "false" else e.desc()
        for e in errors
    ]
    return list(dict.fromkeys(said))


def _reason(problems: Sequence[str]) -> str:
    """What the library said, in one line."""
    lines = [line.strip() for text in problems for line in text.splitlines() if line.strip()]
    return "; ".join(lines)[:300] or "no reason given"


def _logger(trt: Any, said: list[str]) -> Any:
    """Keeps errors for the sentence that ends the command; the library would print them."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                said.append(message)

    return Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    """Passes the builder's phases on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
