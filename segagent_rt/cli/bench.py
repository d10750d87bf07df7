"""Measure latency by stage, percentiles, accuracy and this machine's ceilings, in one document."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from segagent_rt.cli.parameters import BackendOption, JsonOption, ThreadsOption


def command(
    bundle: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A bundle's folder or name; the shipped one if left out."),
    ] = None,
    scenario: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--scenario", "-s", help="A packaged scenario, or a TOML file; repeatable."),
    ] = None,
    list_scenarios: Annotated[bool, typer.Option("--list", help="Name the scenarios.")] = False,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Write the document here as well.", readable=False),
    ] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Warm-up is apart; every figure says of how many runs it is."""
    from segagent_rt.bench.machine import describe_machine, measure_ceilings, peak_bytes
    from segagent_rt.bench.measure import run_scenario
    from segagent_rt.bench.meter import GraphMeter
    from segagent_rt.bench.scenario import packaged_scenarios, read_scenario
    from segagent_rt.files import write_whole
    from segagent_rt.runtime import load

    if list_scenarios:
        typer.echo("\n".join(packaged_scenarios()))
        return
    chosen = [read_scenario(name) for name in scenario or ["one", "many", "deadline"]]
    meter = GraphMeter()
    start = time.perf_counter()
    with load(bundle, backend=backend, threads=threads) as runtime:
        runtime.wrap = meter.wrap
        _ = runtime.segmenter, runtime.annotator
        document: dict[str, Any] = {
            "schema": 1,
            "machine": describe_machine(),
            "ceilings": measure_ceilings(),
            "bundle": {"name": runtime.bundle.index.name, "digest": runtime.bundle.digest},
            "backend": backend,
            "threads": threads,
            "load_ms": round(1000 * (time.perf_counter() - start), 1),
            "scenarios": {s.name: run_scenario(runtime, meter, s, _tell) for s in chosen},
        }
    document["peak_megabytes"] = round((peak_bytes() or 0) / 1e6, 1)
    text = json.dumps(document, indent=1)
    if output is not None:
        write_whole(output, (text + "\n").encode())
    typer.echo(text if as_json else _table(document))


def _tell(what: str) -> None:
    typer.echo(f"\r{what:40s}", err=True, nl=False)


def _table(document: dict[str, Any]) -> str:
    """The main figures as text."""
    machine = document["machine"]
    lines = ["", f"{machine['processor']}, {machine['cores']} cores, {document['bundle']['name']}"]
    for name, figures in document["scenarios"].items():
        lines += ["", f"{name}:"]
        for path, spread in _spreads(figures):
            row = "  ".join(f"{key} {spread[key]:9.2f}" for key in ("p50", "p90", "p99", "max"))
            lines.append(f"  {path:34s} {row}  n {spread['n']}")
        for key in ("miou", "clicks_mean", "glue_share"):
            if key in figures:
                lines.append(f"  {key:34s} {figures[key]}")
    return "\n".join(lines)


def _spreads(figures: dict[str, Any], path: str = "") -> Any:
    for key, value in figures.items():
        if isinstance(value, dict):
            here = f"{path}{key}"
            if "p50" in value:
                yield here, value
            else:
                yield from _spreads(value, f"{here}.")
