"""OpenVINO: ONNX in, engines for this processor out. Given the library's module; imports none.

Where the processor has bfloat16, OpenVINO computes in it, and convolutions take less than half the
time of fp32. So its engines are built and compared like those of a GPU.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segagent_rt.backends.checked_session import check_process, closed
from segagent_rt.backends.cores import platform_name, thread_count
from segagent_rt.backends.engine_library import Built, Machine, Progress
from segagent_rt.backends.host_buffer import HostBuffer, on_host
from segagent_rt.bundle.manifest import Profile
from segagent_rt.errors import EngineRefused, Interrupted
from segagent_rt.timing import current_deadline
from segagent_rt.types import Buffers, Feeds, Names

DEVICE = "CPU"


class OpenVino:
    """The library, on the CPU."""

    def __init__(
        self, backend: str, module: Any, threads: int | None = None, form: str | None = None
    ) -> None:
        self.backend, self._threads = backend, threads
        self._openvino, self._core = module, module.Core()
        self.form = form or self._formats()[0]
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": thread_count(threads),
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[self.form],
        }

    def _formats(self) -> list[str]:
        """What the processor computes in itself, the fastest first."""
        known = self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        return ["bf16", "fp32"] if "BF16" in known else ["fp32"]

    def forms(self) -> Sequence[OpenVino]:
        return [
            OpenVino(self.backend, self._openvino, self._threads, form) for form in self._formats()
        ]

    @property
    def version(self) -> str:
        return f"openvino {self._openvino.__version__.partition('-releases')[0]}"

    def machine(self) -> Machine:
        name = str(self._core.get_property(DEVICE, "FULL_DEVICE_NAME"))
        return Machine(self.version, platform_name(), name, self.form, driver=0)

    def build(
        self, graph: Path, profiles: Sequence[Profile], timing: bytes, progress: Progress
    ) -> Built:
        """As `EngineLibrary.build`. An engine takes every shape that its graph does, and nothing is
        learnt of the device."""
        try:
            progress("parse")
            model = self._core.read_model(str(graph))
            progress("compile")
            compiled = self._core.compile_model(model, DEVICE, self._options)
            return Built(compiled.export_model().getvalue())
        except RuntimeError as error:
            raise EngineRefused(
                f"{self.version} does not take {graph.name}: {_reason(error)}",
                hint="use --backend cpu",
            ) from error

    def open(self, plan: bytes, name: str, kernels: Path | None = None) -> OpenVinoSession:
        try:
            compiled = self._core.import_model(BytesIO(plan), DEVICE, self._options)
        except RuntimeError as error:
            raise EngineRefused(
                f"{self.version} does not load {name}: {_reason(error)}",
                hint="build it again: segagent-rt build --backend openvino",
            ) from error
        return OpenVinoSession(compiled, name)


class OpenVinoSession:
    """One engine. Each thread that calls it meanwhile has a request of its own.

    `name` is what errors call the engine.
    """

    def __init__(self, compiled: Any, name: str) -> None:
        self._compiled, self._name = compiled, name
        self.inputs = [each.any_name for each in compiled.inputs]
        self._idle: deque[Any] = deque()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        check_process(self._process, self._name)
        request = self._request()
        arrays = {name: np.ascontiguousarray(on_host(feed)) for name, feed in feeds.items()}
        deadline = current_deadline()
        try:
            with deadline.stopping(request.cancel) if deadline else nullcontext():
                request.infer(arrays, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            if deadline is not None and deadline.remaining == 0:
                raise Interrupted("the deadline has passed") from None
            raise EngineRefused(
                f"{self._name} failed in a run: {_reason(error)}", hint="use --backend cpu"
            ) from error
        for name, target in (into or {}).items():
            assert isinstance(target, HostBuffer), "a buffer of another backend"
            target.array[...] = request.get_tensor(name).data
        found = {name: np.array(request.get_tensor(name).data) for name in outputs}
        with self._lock:
            self._idle.append(request)
        return {name: HostBuffer(a) if name in keep else a for name, a in found.items()}

    def _request(self) -> Any:
        with self._lock:
            if self._compiled is None:
                raise closed(self._name)
            return self._idle.pop() if self._idle else self._compiled.create_infer_request()

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def close(self) -> None:
        """Release the engine; once more does nothing, nor does it in another process."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._idle.clear()
            self._compiled = None


def _reason(error: RuntimeError) -> str:
    """What the library said, in one line: its last one, as those before name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "".join(c if c.isprintable() else "?" for c in lines[-1][:200]) if lines else "no reason"
