"""Train the models that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from segagent_rt.bundle import open_bundle
from segagent_rt.errors import ExtraMissing


def command(
    what: Annotated[str, typer.Argument(help="segmenter, mllm or all.")] = "all",
    folder: Annotated[
        Path, typer.Option("--folder", help="Checkpoints and logs; an earlier run continues.")
    ] = Path("training"),
    seed: Annotated[int, typer.Option(help="Another seed gives another model.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0.0001, help="Share of the full number of samples.")
    ] = 1.0,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 2,
    init: Annotated[
        Optional[str],  # noqa: UP045 (Typer reads the annotation at run time)
        typer.Option(
            metavar="BUNDLE",
            help="A bundle's folder or name, such as tiny: its weights are the start of what has "
            "no checkpoint yet.",
        ),
    ] = None,
) -> None:
    """Resumable: run it again after a kill. Needs the extra `export`."""
    try:
        from segagent_rt_export.train.main import Plan, train
    except ModuleNotFoundError:
        raise ExtraMissing("train", "export") from None
    if what not in ("segmenter", "mllm", "all"):
        raise typer.BadParameter("say segmenter, mllm or all")
    start = None if init is None else open_bundle(init).folder
    train(Plan(what, folder, seed, scale, processes, start))  # type: ignore[arg-type]
