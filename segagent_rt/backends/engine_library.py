"""Libraries that build engines: what each of them offers, and which one is behind a backend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from segagent_rt.backends.registry import get_backend
from segagent_rt.bundle.manifest import Profile
from segagent_rt.errors import BackendMissing
from segagent_rt.types import Session

BATCH, POINTS = (1, 2, 2), (1, 4, 32)
"""Least, typical and largest length of an axis that no profile names: the first one of images,
which come alone or with their mirror image, and any other, which counts clicks."""

TELEMETRY = "openvino_telemetry"
"""With it, `import openvino` reports to Google Analytics; without it, the import works as well."""

Progress = Callable[[str], None]
"""Told each phase of a build as it begins."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine depends on beside its graph.

    Attributes:
        library: name and version.
        platform: system and processor architecture.
        gpu: the device that it runs on; with OpenVINO the processor.
        capability: the GPU's, or the number format that the processor computes in.
        driver: the driver's CUDA version, 0 without a GPU.
    """

    library: str
    platform: str
    gpu: str
    capability: str
    driver: int


@dataclass(frozen=True, slots=True)
class Built:
    """A serialised engine, and what the builder learnt of the device's timing."""

    plan: bytes
    timing: bytes = b""


class EngineLibrary(Protocol):
    """Builds engines from ONNX graphs, and loads them."""

    backend: str
    form: str
    """The number format that it computes in, empty if the graph says that."""

    def forms(self) -> Sequence[EngineLibrary]:
        """The library in each number format that it can compute in here, the fastest first."""

    @property
    def version(self) -> str:
        """Name and full version: `tensorrt_rtx 1.7.1.116`."""

    def machine(self) -> Machine:
        """This machine, as far as engines depend on it.

        Raises:
            BackendUnavailable: the device that the library needs is not there.
        """

    def build(
        self, graph: Path, profiles: Sequence[Profile], timing: bytes, progress: Progress
    ) -> Built:
        """Build an engine.

        Args:
            graph: an ONNX file.
            profiles: the shapes that it has to take.
            timing: what an earlier build learnt.
            progress: is told each phase.

        Raises:
            EngineRefused: the library does not take the graph.
        """

    def open(self, plan: bytes, name: str, kernels: Path | None = None) -> Session:
        """Load an engine.

        Args:
            plan: what `build` made on this machine.
            name: what errors call the engine.
            kernels: a file for what the library compiles when it loads.

        Raises:
            BackendError: the device does not work.
            EngineRefused: the engine is not for this machine, or damaged.
        """


def _import_silently(library: str) -> Any:
    """Import a library while the package is hidden that would report the import to its maker."""
    known = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        return import_module(library)
    finally:
        del sys.modules[TELEMETRY]
        if known is not None:
            sys.modules[TELEMETRY] = known


@lru_cache
def load_library(backend: str, threads: int | None = None) -> EngineLibrary:
    """The library behind a backend that builds engines.

    Args:
        backend: its name.
        threads: how many an engine on the CPU uses; None for every core.

    Raises:
        BackendMissing: it is not installed.
    """
    found = get_backend(backend)
    try:
        module = _import_silently(found.library)
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be loaded"
        raise BackendMissing(f"{found.library} {why}", hint=found.install) from error
    if found.library == "openvino":
        from segagent_rt.backends.amx import keep_onednn_off_amx
        from segagent_rt.backends.openvino import OpenVino

        keep_onednn_off_amx()

        return OpenVino(backend, module, threads)
    from segagent_rt.backends.tensorrt import TensorRt

    return TensorRt(backend, module)
