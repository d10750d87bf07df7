"""Load graphs: the options of a session, and which backend runs it.

A named backend is the one that runs, or there is an error. `auto` takes the first that works.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from segagent_rt.backends.registry import AUTO, BACKENDS, get_backend
from segagent_rt.errors import (
    BackendError,
    BackendMissing,
    BundleError,
    EngineRefused,
    SegagentError,
)
from segagent_rt.types import Session

T = TypeVar("T")

Refused = Mapping[str, SegagentError]
"""Backends that were tried first, and what kept each from working."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Where graphs run: the backend, and how many threads it may use (None: every core).

    `profile` begins the path of a file that ONNX Runtime writes, when a session is closed, with
    what each node did. `skip_prepack`: the session runs so few times that arranging weights for
    speed does not pay. `integer_compute`: quantised operators multiply integers, their weights are
    not unpacked. `share_cores`: another graph runs meanwhile, so threads that wait leave it the
    cores.
    """

    backend: str = "auto"
    threads: int | None = None
    profile: Path | None = None
    skip_prepack: bool = False
    integer_compute: bool = False
    share_cores: bool = False


def open_session(graph: Path, runtime: SessionOptions) -> Session:
    """Load an ONNX graph, or a plan where the backend is TensorRT; `auto` takes ONNX graphs.

    Raises:
        BackendMissing: the library is not installed.
        BackendUnavailable: it is, but cannot work here; a named backend never falls back.
        EngineRefused: the library does not accept the graph.
    """
    if runtime.backend == "auto":
        names = [name for name in AUTO if not BACKENDS[name].builds]
        session, taken, refused = first_working(
            names, lambda name: open_session(graph, replace(runtime, backend=name))
        )
        report_backend(taken, refused)
        return session
    if get_backend(runtime.backend).builds:
        from segagent_rt.backends.engine_library import load_library

        library = load_library(runtime.backend, runtime.threads)
        return library.open(graph.read_bytes(), graph.name)
    from segagent_rt.backends import onnxruntime

    return onnxruntime.open_session(graph, runtime)


def first_working(names: Iterable[str], attempt: Callable[[str], T]) -> tuple[T, str, Refused]:
    """What the first backend gives that does not refuse, its name, and what refused before it."""
    refused: dict[str, SegagentError] = {}
    for name in names:
        try:
            return attempt(name), name, refused
        except (BackendError, BundleError) as error:
            refused[name] = error
    raise refused[name]


def report_backend(taken: str, refused: Refused) -> None:
    """Say once what `auto` took, and loudly if something that is installed was passed over."""
    passed = [
        f"{name}: {error}"
        for name, error in refused.items()
        if not isinstance(error, BackendMissing) and not BACKENDS[name].optional
    ]
    _say(f"auto takes {taken}" + "".join(f"; not {text}" for text in passed), bool(passed))


@lru_cache
def _say(text: str, loud: bool) -> None:
    logging.getLogger("segagent_rt").log(logging.WARNING if loud else logging.INFO, text)


def backend_problem(name: str) -> SegagentError | None:
    """What keeps a backend from working here, None if it works."""
    try:
        if get_backend(name).builds:
            from segagent_rt.backends.engine_library import load_library

            load_library(name).machine()
        else:
            from segagent_rt.backends import onnxruntime

            onnxruntime.check(name)
    except (BackendError, EngineRefused) as error:
        return error
    return None


def probe_backends() -> dict[str, str | None]:
    """Every backend with what keeps it from working here, None if it works."""
    found = {name: backend_problem(name) for name in BACKENDS}
    return {name: None if error is None else str(error) for name, error in found.items()}
