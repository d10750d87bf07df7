"""From a role of a part to a loaded graph: which backend runs it, which variant, which engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from segagent_rt.backends.cores import oversubscribed
from segagent_rt.backends.registry import AUTO, get_backend, kind_of
from segagent_rt.backends.session import (
    SessionOptions,
    backend_problem,
    first_working,
    open_session,
    report_backend,
)
from segagent_rt.bundle.graph import Graph
from segagent_rt.errors import BundleMissing
from segagent_rt.types import Session


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a graph runs in the end, as which variant, and what was refused before that."""

    backend: str
    variant: str
    precision: str
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenedGraph:
    """A loaded graph."""

    session: Session
    graph: Graph
    placement: Placement


def open_role(graphs: Sequence[Graph], runtime: SessionOptions, engines: Path) -> OpenedGraph:
    """Load one of the graphs of a role; `engines` is the folder of the engine cache.

    Raises:
        BackendError: the backend named does not work here.
        BundleMissing: the bundle has no graph for it.
        EngineRefused: there is no engine for this machine, or none that passes its check.
    """
    if runtime.backend != "auto":
        return _open_on(runtime, graphs, engines)
    names = [name for name in AUTO if _worth_trying(name, graphs, engines)]
    opened, taken, refused = first_working(
        names, lambda name: _open_on(replace(runtime, backend=name), graphs, engines)
    )
    report_backend(taken, refused)
    said = {name: str(error) for name, error in refused.items()} | dict(opened.placement.refused)
    place = opened.placement
    placed = Placement(place.backend, place.variant, place.precision, said)
    return OpenedGraph(opened.session, opened.graph, placed)


def _worth_trying(name: str, graphs: Sequence[Graph], engines: Path) -> bool:
    """Whether `auto` tries a backend: an optional one only where it has an engine, as its library
    takes time to import."""
    row = get_backend(name)
    if not row.optional:
        return True
    if not engines.is_dir():
        return False
    from segagent_rt.engine_cache.store import EngineCache

    cache = EngineCache(engines)
    return any(
        cache.has_engine(graph.digest, row.library)
        for graph in graphs
        if kind_of(graph.variant) in row.takes
    )


def _open_on(runtime: SessionOptions, graphs: Sequence[Graph], engines: Path) -> OpenedGraph:
    name, failed = runtime.backend, dict[str, str]()
    candidates = compatible_graphs(graphs, name)
    if get_backend(name).builds:
        from segagent_rt.backends.engine_library import load_library

        library = load_library(name, runtime.threads)  # first: most machines do not have it
        from segagent_rt.engine_cache.selection import EngineSelector
        from segagent_rt.engine_cache.store import EngineCache

        session, rung, failed = EngineSelector(library, EngineCache(engines)).open(candidates)
        graph, precision = rung.graph, rung.precision
    else:
        graph, precision = candidates[0], candidates[0].variant.precision
        integers = graph.role in graph.variant.integers
        # While the MLLM reads the picture.
        aside = graph.role == "encoder" and not oversubscribed(runtime.threads)
        how = replace(runtime, integer_compute=integers, share_cores=aside)
        session = open_session(graph.path, how)
    placement = Placement(name, graph.name, precision, failed)
    return OpenedGraph(session, graph, placement)


def compatible_graphs(graphs: Sequence[Graph], backend: str) -> list[Graph]:
    """The graphs that a backend takes: those that suit it best, then the others, each kind in the
    manifest's order.

    Raises:
        BackendError: the backend does not work here.
        BundleMissing: it takes none of them.
    """
    kinds = get_backend(backend).takes
    if found := [graph for kind in kinds for graph in graphs if kind_of(graph.variant) == kind]:
        return found
    raise backend_problem(backend) or nothing_for(graphs, backend)


def nothing_for(graphs: Sequence[Graph], backend: str) -> BundleMissing:
    """The error for a role that has no graph which a backend takes."""
    has = ", ".join(f"{graph.name} ({graph.variant.device})" for graph in graphs)
    wanted = "gpu-fp16" if get_backend(backend).nvidia else "reference"
    return BundleMissing(
        f"{graphs[0].path.parent.parent} has no {graphs[0].role} for {backend}",
        hint=f"it has {has}; `segagent-rt export RECIPE --variant {wanted}` writes one",
    )
