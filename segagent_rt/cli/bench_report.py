"""Turn the results of benchmarks into pages with tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import OverwriteOption, option
from segagent_rt.errors import ExtraMissing, GateFailed


def command(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder with results/. The pages and plots/ go there, too.", readable=False
        ),
    ] = Path("benchmarks"),
    check: Annotated[
        bool, option("Write nothing; fail if the pages are not up to date.", "--check")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Reads results/*.json, writes README.md, percentiles.md and plots/*.svg.

    Needs the extra `bench`.
    """
    from segagent_rt.bench import report
    from segagent_rt.errors import OutputError
    from segagent_rt.io import atomic_write

    results = report.read_results(folder / "results")
    answers = report.sections(results)
    pages = {
        folder / "README.md": report.page(results),
        folder / "percentiles.md": report.percentiles_page(results),
    }
    if check:
        for page, text in pages.items():
            plots = (folder / answer.plot for answer in answers)
            if (
                not page.is_file()
                or page.read_text("utf-8") != text
                or not all(map(Path.is_file, plots))
            ):
                raise GateFailed(
                    f"{page} is not up to date with {folder / 'results'}",
                    hint=f"write it again: segagent-rt bench report {folder}",
                )
        return
    for page in pages:
        known = page.read_text("utf-8", "replace") if page.exists() else report.HEAD
        if not overwrite and "`segagent-rt bench report`" not in known:
            raise OutputError(
                f"{page} exists, and `bench report` did not write it",
                hint="name another folder, or replace it with --overwrite",
            )
    try:
        from segagent_rt.bench.plots import draw
    except ModuleNotFoundError:
        raise ExtraMissing("bench report", "bench") from None
    for path, content in draw(answers).items():
        atomic_write(folder / path, content)
    for page, text in pages.items():
        atomic_write(page, text.encode())
        console.show(page)
