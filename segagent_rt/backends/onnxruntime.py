"""Sessions on ONNX Runtime. The only file that imports it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import io
import json
import os
import re
import tempfile
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from segagent_rt.backends.checked_session import check_process, closed
from segagent_rt.backends.cores import thread_count
from segagent_rt.backends.host_buffer import on_host
from segagent_rt.backends.registry import Backend, get_backend
from segagent_rt.backends.session import SessionOptions
from segagent_rt.errors import (
    BackendMissing,
    BackendUnavailable,
    EngineRefused,
    Interrupted,
    SegagentError,
)
from segagent_rt.timing import current_deadline
from segagent_rt.types import Array, Buffers, Feed, Feeds, Names

KEPT = 2
"""Bindings that a session keeps: a trajectory alternates between the caches of two pictures."""

_OF_EIGHT_BITS = re.compile(rb"MatMulInteger(?!ToFloat)")

IN_PLACE = "CPUExecutionProvider"
"""The provider that reads arrays where they lie, in every run; others copy them when bound."""


class OrtBuffer:
    """An `OrtValue`: stays on its device, may be bound as input and output."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def numpy(self) -> Array:
        return np.asarray(self.value.numpy())


class OrtSession:
    """One graph in ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession, device: str, name: str) -> None:
        self._held, self._device, self._name = session, device, name
        self.inputs = [node.name for node in session.get_inputs()]
        self._spare: deque[_IoBinding] = deque(maxlen=KEPT)
        self._process = os.getpid()
        _LOADED.add(self)

    @property
    def _session(self) -> ort.InferenceSession:
        """The library's session.

        Raises:
            RuntimeClosed: it is closed, or its threads were left behind in another process.
        """
        check_process(self._process, self._name)
        if self._held is None:
            raise closed(self._name)
        return self._held

    @property
    def provider(self) -> str:
        """The execution provider in effect."""
        return str(self._session.get_providers()[0])

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        try:
            return self._run(feeds, outputs, into or {}, keep)
        except SegagentError:
            raise
        except Exception as error:  # the library's exceptions share no public base class
            raise EngineRefused(
                f"ONNX Runtime {ort.__version__} cannot run {self._name}: {_first_line(error)}",
                hint="export the bundle again, or ask its author",
            ) from error

    def _run(self, feeds: Feeds, outputs: Names, into: Buffers, keep: Names) -> dict[str, Any]:
        if not into and not keep and not any(isinstance(f, OrtBuffer) for f in feeds.values()):
            return self._run_plain(feeds, outputs)
        bound = self._bound(outputs, into, keep)
        bound.take(feeds)
        for name in outputs:
            bound.binding.bind_output(name, self._device if name in keep else "cpu")
        with self._stoppable() as options:
            self._call(self._session.run_with_iobinding, bound.binding, options)
        values = bound.binding.get_outputs_as_ortvaluevector()
        found = {
            name: OrtBuffer(ort.OrtValue(values[at])) if name in keep else values[at].numpy()
            for at, name in enumerate(outputs)
        }
        self._spare.append(bound)
        return found

    def _bound(self, outputs: Names, into: Buffers, keep: Names) -> _IoBinding:
        """A binding with the buffers in their places: one of the last runs', if it had the same.

        Threads may run one session: while a binding is in use, it is no longer to be had.
        """
        for _ in range(KEPT):
            try:
                last = self._spare.pop()
            except IndexError:
                break
            if last.serves(outputs, into):
                return last
            self._spare.appendleft(last)
        binding = self._session.io_binding()
        for name in outputs:  # first, as results come in the order of binding
            binding.bind_output(name, self._device if name in keep else "cpu")
        for name, held in into.items():
            assert isinstance(held, OrtBuffer)
            binding.bind_ortvalue_output(name, held.value)
        return _IoBinding(binding, tuple(outputs), dict(into), in_place=self.provider == IN_PLACE)

    def _run_plain(self, feeds: Feeds, outputs: Names) -> dict[str, Any]:
        with self._stoppable() as options:
            arrays = {name: on_host(feed) for name, feed in feeds.items()}
            values = self._call(self._session.run, outputs, arrays, options)
        return dict(zip(outputs, values, strict=True))

    def _stoppable(self) -> Any:
        """Run options that the current deadline can terminate; none if there is no deadline."""
        deadline = current_deadline()
        return nullcontext(None) if deadline is None else _Terminable(deadline)

    @staticmethod
    def _call(run: Any, *arguments: Any) -> Any:
        try:
            return run(*arguments)
        except Exception as error:  # the library's exceptions share no public base class
            options = arguments[-1]
            if options is not None and options.terminate:
                raise Interrupted("the deadline has passed") from None
            raise error

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> OrtBuffer:
        zeros = np.zeros(shape, dtype)
        return OrtBuffer(ort.OrtValue.ortvalue_from_numpy(zeros, self._device, 0))

    def close(self) -> None:
        """Release the graph; once more does nothing, nor does it in another process."""
        if self._held is None or self._process != os.getpid():
            return
        if self._held.get_session_options().enable_profiling:
            self._held.end_profiling()
        self._spare.clear()
        self._held = None


_LOADED: WeakSet[OrtSession] = WeakSet()


def _keep_after_fork() -> None:
    """In a forked process, never release the parent's sessions: that waits for threads which are
    not there."""
    for loaded in _LOADED:
        if loaded._held is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(loaded._held))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_after_fork)


@dataclass(slots=True)
class _IoBinding:
    """A binding, what it writes, what it writes that into, and what it was fed last."""

    binding: Any
    asked: tuple[str, ...]
    into: Buffers
    in_place: bool
    fed: dict[str, Feed | None] = field(default_factory=dict)

    def serves(self, asked: Names, into: Buffers) -> bool:
        """Whether a run with these outputs finds a place for each."""
        return self.asked == tuple(asked) and self.into == into

    def take(self, feeds: Feeds) -> None:
        """Bind what is not in its place already."""
        for name, feed in feeds.items():
            if self.fed.get(name) is feed:
                continue
            if isinstance(feed, OrtBuffer):
                self.binding.bind_ortvalue_input(name, feed.value)
                self.fed[name] = feed
            else:
                array = np.ascontiguousarray(on_host(feed))
                self.binding.bind_cpu_input(name, array)
                self.fed[name] = array if self.in_place else None


class _Terminable:
    """`RunOptions` whose `terminate` is set when the deadline passes."""

    def __init__(self, deadline: Any) -> None:
        self._options = ort.RunOptions()
        self._watch = deadline.stopping(self._stop)

    def _stop(self) -> None:
        self._options.terminate = True

    def __enter__(self) -> ort.RunOptions:
        self._watch.__enter__()
        return self._options

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)


def open_session(graph: Path | bytes, runtime: SessionOptions) -> OrtSession:
    """Load a graph on the execution provider of the backend named, and on no other.

    Raises:
        BackendMissing: this ONNX Runtime has no such provider.
        BackendUnavailable: it has, but the provider does not work here.
        EngineRefused: the graph is not accepted.
    """
    name = "a graph" if isinstance(graph, bytes) else str(graph)
    options = _options(runtime)
    if _may_overflow(graph):
        # x86 without VNNI adds pairs of products in int16, where weights of 8 bits overflow: 4 to
        # 10 % of a linear layer's result was wrong. With this switch such CPUs use other kernels.
        # It is for such graphs alone: it breaks weights that are stored in blocks, and those of
        # 7 bits, which this version's exporter makes, do not need it.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return OrtSession(_load(graph, runtime, options), get_backend(runtime.backend).memory, name)


def _may_overflow(graph: Path | bytes) -> bool:
    """Whether a graph has products of integer matrices whose weights may have 8 bits; those of
    MatMulIntegerToFloat have 7."""
    if isinstance(graph, bytes):
        return _OF_EIGHT_BITS.search(graph) is not None
    try:
        with graph.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
            return _OF_EIGHT_BITS.search(content) is not None
    except (OSError, ValueError):
        return False  # the library says what is wrong with the file


def _load(
    graph: Path | bytes, runtime: SessionOptions, options: ort.SessionOptions
) -> ort.InferenceSession:
    backend = get_backend(runtime.backend)
    providers = _choose(backend, options)
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        # Without this switch the library prints to stdout and goes on without the provider, when
        # it loads a graph and again in the middle of a run.
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # the library's exceptions share no public base class
        raise EngineRefused(
            f"ONNX Runtime {ort.__version__} cannot load {source!r:.200} "
            f"with {backend.provider}: {_first_line(error)}",
            hint="export the bundle again with this version's exporter",
        ) from error
    if session.get_providers()[0] != backend.provider:
        raise BackendUnavailable(
            f"ONNX Runtime cannot use {backend.provider} on this machine",
            hint=f"`segagent-rt doctor` shows what is missing; {backend.install}",
        )
    return session


def _options(runtime: SessionOptions) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; printed, they could steer a terminal
    options.intra_op_num_threads = thread_count(runtime.threads)
    if not runtime.integer_compute:
        # Weights stored in 8 bits are unpacked once, at load, not in every run.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    # By default, products with weights of 8 bits round the other factor to 8 bits, too. What a
    # graph does not quantise itself is computed in fp32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # A loop goes from graph to graph: threads of the one before, still spinning, would take the
    # cores from the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if runtime.share_cores:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if runtime.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(runtime.profile)
    if runtime.skip_prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _choose(backend: Backend, options: ort.SessionOptions) -> list[str] | None:
    """What a session is told about its providers; None if its options say it."""
    if backend.plugin is not None:
        options.add_provider_for_devices(_plugin_devices(backend.plugin, backend), {})
        return None
    # The list says what was compiled in, not what works.
    if backend.provider not in ort.get_available_providers():
        raise BackendMissing(
            f"the installed ONNX Runtime has no {backend.provider}{_hidden()}", hint=backend.install
        )
    if backend.nvidia:
        from segagent_rt.backends.driver import gpu

        gpu()
        with redirect_stdout(io.StringIO()):  # it prints what it does not find
            getattr(ort, "preload_dlls", lambda: None)()
    return [backend.provider]


def _hidden() -> str:
    """The usual reason why a provider is not there though it was installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for name in ("onnxruntime", "onnxruntime-gpu"):
            importlib.metadata.version(name)
        return ": onnxruntime and onnxruntime-gpu are both installed, and the first one wins"
    return ""


def _plugin_devices(module: str, backend: Backend) -> list[Any]:
    """Register a provider that is a library of its own; returns the devices that it finds."""
    try:
        library = import_module(module).get_library_path()
    except ImportError:
        raise BackendMissing(f"{module} is not installed", hint=backend.install) from None
    if backend.nvidia:
        from segagent_rt.backends.driver import gpu

        gpu()
    with suppress(Exception):  # registered before, or broken: its devices tell
        ort.register_execution_provider_library(module, library)
    devices = [device for device in ort.get_ep_devices() if device.ep_name == backend.provider]
    if not devices:
        raise BackendUnavailable(
            f"{backend.provider} finds no device here", hint="use --backend auto or cpu"
        )
    return devices


def check(name: str) -> None:
    """Run a graph of one node on a backend.

    Raises:
        BackendError: it does not work here.
    """
    open_session(_ONE_NODE, SessionOptions(name)).run({"x": np.zeros(1, np.float32)}, ["y"])


def nodes_by_provider(
    graph: Path, runtime: SessionOptions, feeds: Mapping[str, Array]
) -> dict[str, int]:
    """How many nodes each execution provider ran, profiled in one run.

    A session on a GPU is one that put its first node there; the rest may be on the CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = _options(replace(runtime, profile=Path(folder) / "run"))
        session = _load(graph, runtime, options)
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    ran = {
        (event["name"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and "provider" in event["args"]
    }
    return dict(Counter(provider for _, provider in ran))


# A model with one node, y = -x, float32 [1]: IR 8, opset 13.
_ONE_NODE = bytes.fromhex(
    "08083a320a0b0a017812017922034e65671201705a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


def _first_line(error: Exception) -> str:
    """What the library said, in one line; it may quote the graph."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else "?" for c in lines[0][:200])
