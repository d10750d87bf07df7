"""Cut one object out of a packaged picture, and say what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.cli.parameters import BundleOption, OutputOption

SEED = 7


def command(
    output: OutputOption = Path("segagent-demo"),
    bundle: BundleOption = None,
    seed: Annotated[int, typer.Option(help="Another seed gives another picture.")] = SEED,
) -> None:
    """Draws a scene, segments one object by its expression, and writes mask and overlay."""
    from segagent_rt.cli import run
    from segagent_rt.draw import png
    from segagent_rt.files import atomic_write, check_writable
    from segagent_rt.scenes import make_scene

    check_writable(output)
    scene = make_scene(seed)
    picture = output / "scene.png"
    atomic_write(picture, png(scene.image))
    said = scene.expressions[0].text
    typer.echo(f'segagent-rt run {picture} "{said}" -o {output}', err=True)
    run.command(picture, [said], bundle=bundle, output=output)
    typer.echo(f"\nthe picture:  {picture}", err=True)
    typer.echo(f"the overlay:  {output / 'scene.1.overlay.png'}", err=True)
    typer.echo("\nnext:", err=True)
    for other in scene.expressions[1:3]:
        typer.echo(f'  segagent-rt run {picture} "{other.text}" -o {output}', err=True)
    typer.echo(f"  segagent-rt run your-photo.jpg --click +120,80 -o {output}", err=True)
    typer.echo("  segagent-rt --help", err=True)
