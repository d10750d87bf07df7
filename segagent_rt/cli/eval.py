"""Measure how good a bundle is."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from segagent_rt.cli.parameters import BackendOption, BundleOption, JsonOption, ThreadsOption


def command(
    scenes: Annotated[int, typer.Option(min=1, help="How many synthetic scenes.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the first scene; the others follow.")] = 1000,
    max_clicks: Annotated[int, typer.Option(min=1, help="The most clicks per expression.")] = 7,
    ablate: Annotated[
        str, typer.Option(help="none, remove or shuffle the expressions: does the model read?")
    ] = "none",
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walks synthetic scenes that no training has seen, and prints the figures."""
    from segagent_rt.eval.scenes import SceneSuite, evaluate_scenes
    from segagent_rt.loop import Rules
    from segagent_rt.runtime import load

    if ablate not in ("none", "remove", "shuffle"):
        raise typer.BadParameter("--ablate is none, remove or shuffle")
    suite = SceneSuite(scenes, seed, ablate=ablate)  # type: ignore[arg-type]
    with load(bundle, backend=backend, threads=threads) as runtime:
        figures = evaluate_scenes(runtime, suite, Rules(max_clicks), _progress(scenes))
    typer.echo(json.dumps(figures) if as_json else text(figures))


def _progress(total: int) -> Any:
    def tell(done: int) -> None:
        if done % 10 == 0 or done == total:
            typer.echo(f"\r{done} of {total} scenes", err=True, nl=done == total)

    return tell


def text(figures: dict[str, Any]) -> str:
    """The figures, one to a line."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = " ".join(f"{item:.3f}" for item in value)
        lines.append(f"{name:26s} {value}")
    return "\n".join(lines)
