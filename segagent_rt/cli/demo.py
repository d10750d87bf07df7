"""Cut one object out of a packaged image, and say what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import (
    BundleOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    QuietOption,
)

SEED = 7


def command(
    output: OutputOption = Path("segagent-demo"),
    bundle: BundleOption = None,
    seed: Annotated[int, typer.Option(help="Another seed gives another image.")] = SEED,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draws a scene, segments one object by its expression, and writes mask and overlay."""
    from segagent_rt.cli import run
    from segagent_rt.draw import png
    from segagent_rt.io import write_result
    from segagent_rt.results import ResultFiles
    from segagent_rt.runtime import load
    from segagent_rt.scenes import make_scene
    from segagent_rt.search import SearchConfig

    image = output / "scene.png"
    files = ResultFiles.plan(output, image, 1, overwrite=overwrite)
    scene = make_scene(seed)
    write_result(image, png(scene.image), overwrite=overwrite)
    text = scene.expressions[0].text
    console.say(f'segagent-rt run {image} "{text}" -o {output}')
    with load(bundle) as runtime:
        found = run.annotate(runtime, scene.image, [text], SearchConfig(candidates=1))
        about = run.about_run(image, scene.image, runtime)
    run.finish(files, scene.image, found, about, as_json=as_json)
    console.say(f"\nthe image:    {image}")
    console.say(f"the overlay:  {files.paths[-1]}")
    console.say("\nnext:")
    for other in scene.expressions[1:3]:
        console.say(f'  segagent-rt run {image} "{other.text}" -o {output}')
    console.say(f"  segagent-rt run your-photo.jpg --click +120,80 -o {output}")
    console.say("  segagent-rt --help")
