"""Build engines for this machine's GPU (TensorRT) or its CPU (OpenVINO)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from segagent_rt.cli import console
from segagent_rt.cli.parameters import BundleArgument, option
from segagent_rt.errors import BatchFailed, BundleMissing, EngineRefused, GateFailed

if TYPE_CHECKING:
    from segagent_rt.backends.engine_library import EngineLibrary
    from segagent_rt.bundle.bundle import Bundle, Part
    from segagent_rt.bundle.graph import Graph
    from segagent_rt.engine_cache.selection import EngineSelector
    from segagent_rt.engine_cache.store import EngineRecord
    from segagent_rt.types import Session


def command(
    bundle: BundleArgument = None,
    backend: Annotated[
        Literal["auto", "tensorrt", "rtx", "openvino"],
        option(
            "Library to build with. auto takes the one for GPUs that is installed; "
            "openvino is for CPUs.",
            "--backend",
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, option("Only check that the library accepts every graph.", "--dry-run")
    ] = False,
) -> None:
    """Engines go to the user's cache. Each is compared with ONNX Runtime on the CPU. One for the
    CPU is kept only if it is faster than that, too."""
    from segagent_rt.bundle.bundle import open_bundle

    library = _library(backend)
    opened = open_bundle(bundle)
    for part in opened.parts.values():
        part.verify_once()
    if dry_run:
        _try_all(opened, library)
    else:
        library.machine()  # fails here, not after minutes, if the device is missing
        _build_all(opened, library)


def _library(backend: str) -> EngineLibrary:
    from segagent_rt.backends.engine_library import load_library
    from segagent_rt.backends.registry import BACKENDS
    from segagent_rt.errors import BackendMissing, install_hint

    names = [name for name, found in BACKENDS.items() if found.builds and found.nvidia]
    if backend != "auto":
        return load_library(backend)
    for name in names:
        try:
            return load_library(name)
        except BackendMissing:
            continue
    raise BackendMissing(
        "neither TensorRT nor TensorRT-RTX is installed",
        hint=f"{install_hint('rtx')} on a PC; a Jetson has TensorRT from JetPack",
    )


def _try_all(bundle: Bundle, library: EngineLibrary) -> None:
    """Parse and build every graph that the library may be given, and keep nothing."""
    from segagent_rt.backends.registry import get_backend, kind_of
    from segagent_rt.bundle.placement import nothing_for

    refused, total, missing = list[EngineRefused](), 0, list[BundleMissing]()
    for part, role in _roles(bundle):
        graphs = part.graphs(role)
        taken = [g for g in graphs if kind_of(g.variant) in get_backend(library.backend).takes]
        for graph in graphs:
            if graph not in taken:
                console.show_row(graph, f"not for {library.backend}")
                continue
            start = time.monotonic()
            try:
                _check_memory(part, graph)
                built = library.build(graph.path, graph.profiles, b"", _telling(str(graph)))
            except EngineRefused as error:
                refused.append(error)
                console.show_row(graph, "refused", error)
                continue
            seconds = time.monotonic() - start
            size = f"{len(built.plan) / 1e6:.1f} MB"
            console.show_row(graph, "accepted", size, f"{seconds:.1f} s")
        total += len(taken)
        if not taken:
            missing.append(nothing_for(graphs, library.backend))
    if refused:
        raise BatchFailed(
            f"{library.version} refused {len(refused)} of {total} graphs", hint=refused[0].hint
        )
    if missing:
        raise missing[0]


def _build_all(bundle: Bundle, library: EngineLibrary) -> None:
    """For each role the fastest engine that computes what it should."""
    from segagent_rt.backends.registry import get_backend
    from segagent_rt.bundle.placement import compatible_graphs
    from segagent_rt.bundle.store import cache_folder
    from segagent_rt.engine_cache.selection import EngineSelector
    from segagent_rt.engine_cache.store import EngineCache

    selector = EngineSelector(library, EngineCache(cache_folder() / "engines"))
    without, missing = list[str](), list[BundleMissing]()
    for part in bundle.parts.values():
        try:
            graphs = {
                role: compatible_graphs(part.graphs(role), library.backend) for role in part.roles
            }
        except BundleMissing as error:
            missing.append(error)
            console.show_row(part.manifest.kind, "nothing to build", error)
            continue
        without += _build_part(part, graphs, selector)
    if get_backend(library.backend).optional and len(missing) < len(bundle.parts):
        return  # ONNX Runtime takes what has no engine, and is the faster one there
    if without:
        raise GateFailed(
            f"no engine of {', '.join(without)} can be used",
            hint="--backend auto takes another backend for what has no engine",
        )
    if missing:
        raise missing[0]


def _build_part(
    part: Part, graphs: Mapping[str, list[Graph]], selector: EngineSelector
) -> list[str]:
    """Build what the candidates for each role give; returns what has no engine in the end."""
    from segagent_rt.engine_cache.golden_io import record_golden

    backend, without = selector.library.backend, list[str]()
    without_golden = any(graph.golden is None for found in graphs.values() for graph in found)
    examples = record_golden(part, backend) if without_golden else {}
    for role, suitable in graphs.items():
        candidates, name = list(_affordable(part, suitable)), f"{part.manifest.kind} {role}"
        given = examples.get(role, ())
        with _to_beat(part, role, backend) as rival:
            try:
                made, failed = selector.build(candidates, given, _telling(name), rival)
            except EngineRefused as error:
                without.append(name)
                console.show_row(name, "failed" if rival is None else "not used", error)
                continue
        for variant, why in failed.items():
            console.show_row(f"{name} ({variant})", "not used", why)
        console.show_row(made.graph, "ready", f"{made.seconds:.1f} s", *_speed(made))
    return without


@contextmanager
def _to_beat(part: Part, role: str, backend: str) -> Iterator[Session | None]:
    """The session that an engine must be faster than: ONNX Runtime's, where both are on the CPU."""
    from segagent_rt.backends.registry import get_backend
    from segagent_rt.backends.session import SessionOptions
    from segagent_rt.bundle.placement import open_role
    from segagent_rt.bundle.store import cache_folder

    if not get_backend(backend).optional:
        yield None
        return
    graphs, cpu = part.graphs(role), SessionOptions("cpu")
    with closing(open_role(graphs, cpu, cache_folder() / "engines").session) as session:
        yield session


def _speed(made: EngineRecord) -> list[str]:
    """The times that were compared, if they were."""
    if made.milliseconds is None:
        return []
    ours, theirs = made.milliseconds
    return [f"{ours:.1f} ms, ONNX Runtime {theirs:.1f} ms"]


def _roles(bundle: Bundle) -> Iterator[tuple[Part, str]]:
    for part in bundle.parts.values():
        for role in part.roles:
            yield part, role


def _affordable(part: Part, candidates: list[Graph]) -> Iterator[Graph]:
    """The graphs that can be built in the memory that is free, which must be one at least."""
    from segagent_rt.errors import BackendUnavailable

    for number, graph in enumerate(candidates):
        try:
            _check_memory(part, graph)
        except BackendUnavailable as error:
            if number == 0:
                raise
            console.show_row(graph, "left out", error)
            continue
        yield graph


def _check_memory(part: Part, graph: Graph) -> None:
    from segagent_rt.memory import check_build

    file = graph.variant.graphs[graph.role]
    sizes = [part.manifest.files[name].size for name in (file, *part.weights(file))]
    check_build(sum(sizes), str(graph), graph.variant.precision)


def _telling(what: str) -> Callable[[str], None]:
    """Progress on stderr, seldom in a log."""
    report_progress = console.phases(f"building the {what}", every=console.EVERY_LINE)
    report_progress("begun")
    return report_progress
