"""From a role of a part to a loaded graph: which backend runs it, which variant, which engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from segagent_rt.backends.cores import crowded
from segagent_rt.backends.registry import AUTO, kind_of, row
from segagent_rt.backends.session import (
    SessionOptions,
    first_that_works,
    open_session,
    problem,
    tell,
)
from segagent_rt.engine_cache.key import Graph
from segagent_rt.engine_cache.selection import Ladder
from segagent_rt.engine_cache.store import EngineCache
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
class Opened:
    """A loaded graph."""

    session: Session
    graph: Graph
    placement: Placement


def open_role(graphs: Sequence[Graph], runtime: SessionOptions, engines: Path) -> Opened:
    """Load one of the graphs of a role; `engines` is the folder of the engine cache.

    Raises:
        BackendError: the backend named does not work here.
        BundleMissing: the bundle has no graph for it.
        EngineRefused: there is no engine for this machine, or none that passes its check.
    """
    if runtime.backend != "auto":
        return _open_on(runtime, graphs, engines)
    opened, taken, refused = first_that_works(
        AUTO, lambda name: _open_on(replace(runtime, backend=name), graphs, engines)
    )
    tell(taken, refused)
    said = {name: str(error) for name, error in refused.items()} | dict(opened.placement.refused)
    place = opened.placement
    placed = Placement(place.backend, place.variant, place.precision, said)
    return Opened(opened.session, opened.graph, placed)


def _open_on(runtime: SessionOptions, graphs: Sequence[Graph], engines: Path) -> Opened:
    name, failed = runtime.backend, dict[str, str]()
    rungs = suited(graphs, name)
    if row(name).builds:
        from segagent_rt.backends.tensorrt import load

        session, graph, failed = Ladder(load(name), EngineCache(engines)).open(rungs)
    else:
        graph = rungs[0]
        integers = graph.role in graph.variant.integers
        # While the MLLM reads the picture.
        aside = graph.role == "encoder" and not crowded(runtime.threads)
        how = replace(runtime, integers=integers, aside=aside)
        session = open_session(graph.path, how)
    placement = Placement(name, graph.name, graph.variant.precision, failed)
    return Opened(session, graph, placement)


def suited(graphs: Sequence[Graph], backend: str) -> list[Graph]:
    """The graphs that a backend takes: those that suit it best, then the others, each kind in the
    manifest's order.

    Raises:
        BackendError: the backend does not work here.
        BundleMissing: it takes none of them.
    """
    kinds = row(backend).takes
    if found := [graph for kind in kinds for graph in graphs if kind_of(graph.variant) == kind]:
        return found
    if error := problem(backend):
        raise error
    has = ", ".join(f"{graph.name} ({graph.variant.device})" for graph in graphs)
    raise BundleMissing(
        f"{graphs[0].path.parent} has no {graphs[0].role} for {backend}",
        hint=f"it has {has}; `segagent-rt export RECIPE --variant gpu-fp16` writes one for GPUs",
    )
