"""Build engines for this machine's GPU from a bundle's graphs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from segagent_rt.errors import BatchFailed, EngineRefused, GateFailed

if TYPE_CHECKING:
    from segagent_rt.backends.tensorrt import Library
    from segagent_rt.bundle import Bundle, Part
    from segagent_rt.engines import Graph


def command(
    bundle: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A bundle's folder or name; the shipped one if left out."),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="tensorrt or rtx; the one installed if left out.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only see whether every graph is accepted.")
    ] = False,
) -> None:
    """Engines go to the user's cache. Each must compute what ONNX Runtime computes on the CPU."""
    from segagent_rt.backends.driver import gpu
    from segagent_rt.bundle import open_bundle

    library = _library(backend)
    opened = open_bundle(bundle)
    for part in opened.parts.values():
        part.verify_once()
    if dry_run:
        _try_all(opened, library)
    else:
        gpu()
        _build_all(opened, library)


def _library(backend: str) -> Library:
    from segagent_rt.backends.table import BACKENDS, row
    from segagent_rt.backends.tensorrt import load
    from segagent_rt.errors import BackendMissing, BackendUnavailable

    names = [name for name, found in BACKENDS.items() if found.builds]
    if backend != "auto":
        if not row(backend).builds:
            raise BackendUnavailable(
                f"nothing is built for {backend}", hint="choose " + " or ".join(names)
            )
        return load(backend)
    for name in names:
        try:
            return load(name)
        except BackendMissing:
            continue
    raise BackendMissing(
        "neither TensorRT nor TensorRT-RTX is installed",
        hint='pip install "segagent-rt[rtx]" on a PC; a Jetson has TensorRT from JetPack',
    )


def _try_all(bundle: Bundle, library: Library) -> None:
    """Parse and build every graph that the library may be given, and keep nothing."""
    from segagent_rt.backends.table import kind_of, row

    refused = total = 0
    for part, role in _roles(bundle):
        for graph in part.graphs(role):
            if kind_of(graph.variant) not in row(library.backend).takes:
                typer.echo(f"{graph}\tnot for {library.backend}")
                continue
            total += 1
            start = time.monotonic()
            try:
                _check_memory(part, graph)
                built = library.build(graph.path, graph.profiles, b"", _telling(str(graph)))
            except EngineRefused as error:
                refused += 1
                typer.echo(f"{graph}\trefused\t{error}")
                continue
            seconds = time.monotonic() - start
            typer.echo(f"{graph}\taccepted\t{len(built.plan) / 1e6:.1f} MB\t{seconds:.1f} s")
    if refused:
        raise BatchFailed(
            f"{library.version} refused {refused} of {total} graphs",
            hint="export the bundle again with this version's exporter",
        )


def _build_all(bundle: Bundle, library: Library) -> None:
    """For each role the fastest engine that computes what it should."""
    from segagent_rt.bundle import cache_folder
    from segagent_rt.engines import EngineCache
    from segagent_rt.errors import BundleMissing
    from segagent_rt.examples import record
    from segagent_rt.ladder import Ladder
    from segagent_rt.sessions import suited

    ladder, failures = Ladder(library, EngineCache(cache_folder() / "engines")), []
    for part in bundle.parts.values():
        try:
            examples = record(part, library.backend)
        except BundleMissing as error:
            typer.echo(f"{part.manifest.kind}\tnothing to build\t{error}")
            continue
        for role in part.roles:
            rungs = list(_affordable(part, suited(part.graphs(role), library.backend)))
            name = f"{part.manifest.kind} {role}"
            try:
                made, failed = ladder.build(rungs, examples[role], _telling(name))
            except EngineRefused as error:
                failures.append(name)
                typer.echo(f"{name}\tfailed\t{error}")
                continue
            for variant, why in failed.items():
                typer.echo(f"{name} ({variant})\tnot used\t{why}")
            typer.echo(f"{made.graph}\tready\t{made.seconds:.1f} s")
    if failures:
        raise GateFailed(
            f"no engine of {', '.join(failures)} can be used",
            hint="--backend auto takes another backend for what has no engine",
        )


def _roles(bundle: Bundle) -> Iterator[tuple[Part, str]]:
    for part in bundle.parts.values():
        for role in part.roles:
            yield part, role


def _affordable(part: Part, rungs: list[Graph]) -> Iterator[Graph]:
    """The graphs that can be built in the memory that is free, which must be one at least."""
    from segagent_rt.errors import BackendUnavailable

    for number, graph in enumerate(rungs):
        try:
            _check_memory(part, graph)
        except BackendUnavailable as error:
            if number == 0:
                raise
            typer.echo(f"{graph}\tleft out\t{error}")
            continue
        yield graph


def _check_memory(part: Part, graph: Graph) -> None:
    from segagent_rt.memory import check_build

    file = graph.variant.graphs[graph.role]
    sizes = [part.manifest.files[name].size for name in (file, *part.weights(file))]
    check_build(sum(sizes), str(graph))


def _telling(what: str) -> Any:
    """Progress on stderr: a line that changes on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        typer.echo(f"building the {what}", err=True)
        return lambda phase: None
    return lambda phase: typer.echo(f"\r{what}: {phase[:60]:60s}", nl=False, err=True)
