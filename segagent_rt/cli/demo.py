"""Segment one object of a packaged image, without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from segagent_rt.cli import console
from segagent_rt.cli.parameters import (
    BundleOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    option,
)

SEED = 7


def command(
    output: OutputOption = Path("segagent-demo"),
    bundle: BundleOption = None,
    seed: Annotated[int, option("Number of the generated image.")] = SEED,
    photo: Annotated[
        bool, option("Use a photo and clicks instead of a generated image and words.", "--photo")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Writes the image, the mask, an overlay and a JSON file, and prints what to try next."""
    if photo:
        _photo(output, bundle, overwrite=overwrite, as_json=as_json)
        return
    from segagent_rt.cli.run_output import finish, shown
    from segagent_rt.draw import png
    from segagent_rt.io import write_result
    from segagent_rt.results import ResultFiles, SaveOptions, about_run
    from segagent_rt.runtime import load
    from segagent_rt.scenes import make_scene
    from segagent_rt.types import ObjectPrompt

    image = output / "scene.png"
    files = ResultFiles.plan(output, image, 1, saved=SaveOptions(overwrite=overwrite))
    scene = make_scene(seed)
    write_result(image, png(scene.image), overwrite=overwrite)
    text = scene.expressions[0].text
    console.say(f'segagent-rt run {image} "{text}" -o {output}')
    with load(bundle) as runtime:
        canvas = runtime.open(scene.image)
        found = canvas.annotate_prompts([ObjectPrompt(text)], watch=shown)
        about = about_run(image, scene.image, runtime)
    finish(files, scene.image, found, about, as_json=as_json)
    console.say(f"\nthe image:    {image}")
    console.say(f"the overlay:  {files.paths[-1]}")
    console.say("\nnext:")
    for other in scene.expressions[1:3]:
        console.say(f'  segagent-rt run {image} "{other.text}" -o {output}')
    console.say("\nThe demo model knows coloured shapes only. For your own photos:")
    console.say(f"  segagent-rt run your-photo.jpg --click +120,80 -o {output}")
    console.say("  segagent-rt export --list            models that find words on photos")
    console.say("  segagent-rt --help")


def _photo(output: Path, bundle: str | None, *, overwrite: bool, as_json: bool) -> None:
    """Segment an object of the packaged photo by given clicks."""
    from segagent_rt.bundle.bundle import open_photo_bundle
    from segagent_rt.bundle.store import PHOTO
    from segagent_rt.cli.parameters import parse_click
    from segagent_rt.cli.run_output import finish
    from segagent_rt.image import load_image
    from segagent_rt.io import parse_json, write_result
    from segagent_rt.results import ResultFiles, SaveOptions, about_run
    from segagent_rt.runtime import load
    from segagent_rt.types import ObjectPrompt

    packaged = open_photo_bundle().folder
    about_photo = parse_json((packaged / "demo.json").read_bytes())
    content = (packaged / "demo.jpg").read_bytes()
    image = output / "photo.jpg"
    files = ResultFiles.plan(output, image, 1, saved=SaveOptions(overwrite=overwrite))
    write_result(image, content, overwrite=overwrite)
    options = " ".join(f"--click {text}" for text in about_photo["clicks"])
    console.say(f"segagent-rt run {image} {options} -o {output}")
    clicks, pixels = tuple(map(parse_click, about_photo["clicks"])), load_image(content)
    with load(PHOTO if bundle is None else bundle, parts=["segmenter"]) as runtime:
        found = runtime.open(pixels).annotate_prompts([ObjectPrompt("", clicks)])
        about = about_run(image, pixels, runtime)
    finish(files, pixels, found, about, as_json=as_json)
    console.say(f"\nthe photo:    {image} ({about_photo['attribution']})")
    console.say(f"the overlay:  {files.paths[-1]}")
    console.say("\nnext:")
    console.say(f"  segagent-rt run your-photo.jpg --click +120,80 -o {output}")
    console.say(f"  segagent-rt run your-photo.jpg --box 40,30,200,180 -o {output}")
    console.say("\nThis segmenter takes clicks and boxes. Words on photos need a model:")
    console.say("  segagent-rt export --list            models for this machine")
    console.say("  segagent-rt run --help               a model on a server: --endpoint")
