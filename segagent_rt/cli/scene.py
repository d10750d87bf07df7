"""Draw a generated scene, and print expressions for its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from segagent_rt.cli import console
from segagent_rt.cli.parameters import (
    MOST_SCENES,
    RESULTS,
    JsonOption,
    OverwriteOption,
    option,
)


def command(
    seed: Annotated[int, option("Number of the scene.")] = 0,
    output: Annotated[
        Path | None,
        option(
            "Image file (default: scene.png), or with --count a folder.",
            "--output",
            "-o",
            panel=RESULTS,
        ),
    ] = None,
    count: Annotated[
        int | None,
        option(
            "Write this many scenes, with a data file for eval and trajectories.",
            min=1,
            max=MOST_SCENES,
        ),
    ] = None,
    side: Annotated[int, option("Width and height in pixels.", min=64, max=4096)] = 512,
    expressions: Annotated[int, option("Largest number of expressions.", min=1)] = 12,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Writes a PNG file, and prints expressions and masks (COCO run lengths) as JSON.

    With --count, it writes a folder and prints the path of its data file.
    """
    from segagent_rt.draw import png
    from segagent_rt.image import mask_to_rle
    from segagent_rt.io import write_result
    from segagent_rt.scenes import GENERATOR, make_scene

    if count is not None:
        from segagent_rt.data.synthetic import write_scenes

        seeds = range(seed, seed + count)
        scenes = (make_scene(number, side, expressions) for number in seeds)
        path = write_scenes(output or Path("scenes"), scenes, overwrite=overwrite)
        if as_json:
            console.show_json({"generator": GENERATOR, "data": str(path), "scenes": count})
        else:
            console.show(path)
        return
    output = output or Path("scene.png")
    scene = make_scene(seed, side, expressions)
    write_result(output, png(scene.image), overwrite=overwrite)
    document = {
        "generator": GENERATOR,
        "seed": seed,
        "image": str(output),
        "objects": [
            {
                "shape": o.shape,
                "colour": o.colour,
                "size": o.size,
                "mask": mask_to_rle(scene.mask(i)),
            }
            for i, o in enumerate(scene.objects)
        ],
        "expressions": [
            {"text": e.text, "kind": e.kind, "object": e.target} for e in scene.expressions
        ],
    }
    console.show_json(document)
