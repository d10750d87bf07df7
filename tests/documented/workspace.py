"""The files and bundles that the pages speak of, made of generated scenes and the demo bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.packing import pack
from segagent_rt.bundle.store import bundles_folder
from segagent_rt.draw import png
from segagent_rt.image import mask_to_rle
from segagent_rt.scenes import make_scene
from tests.data import datasets
from tests.documented.pages import ROOT, words_of

SCENE = make_scene(7)
EXPRESSION = SCENE.expressions[0].text
STANDS_FOR = {
    "BUNDLE": "tiny",
    "[BUNDLE]": "tiny",
    "NAME": "tiny",
    "RECIPE": "mine.toml",
    "FOLDER": "FOLDER/thin",
    "the mug": EXPRESSION,
    "the mug behind the laptop": EXPRESSION,
}
"""What a reader fills in."""

AFTER = {
    ("--board", "NAME"): "orin-nx-16",
    ("--images", "DIR"): "photos",
    ("--count", "500"): "2",
    ("--count", "2000"): "2",
    ("--scenes", "100"): "2",
    ("--scenes", "500"): "2",
    ("--scenes", "1000"): "2",
}
"""The same behind an option; few scenes, as the tests have seconds."""

MADE_BEFORE = ("t.trajectories.json", "val.trajectories.json")
"""Files that another command wrote, wherever the reader has put them."""

PLACED = ("mine", "engines/mine", "mine.segagent")
"""Bundles that are there from the start; a command that writes one of them replaces it."""


def make_workspace(folder: Path) -> None:
    """Write everything into an empty folder."""
    picture, mask = png(SCENE.image), png(SCENE.mask(SCENE.expressions[0].target))
    names = ("photo.jpg", "your-photo.jpg", "a.png", "b.png", "photos/one.png", "PHOTOS/one.png")
    for name in (*names, "photos/two.png", "PHOTOS/two.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture)
    (folder / "mask.png").write_bytes(mask)
    entry = {"image": "photo.jpg", "expression": EXPRESSION}
    (folder / "list.jsonl").write_text(json.dumps(entry) + "\n")
    _write_video(folder / "clip.mp4")
    _write_data(folder)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
    bundle = _write_bundle(folder / "engines" / "mine")
    shutil.copytree(bundle, folder / "mine")
    pack(open_bundle(bundle), folder / "mine.segagent")


def _write_video(path: Path) -> None:
    size = SCENE.image.shape[1], SCENE.image.shape[0]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, size)
    for _ in range(2):
        video.write(SCENE.image[..., ::-1])
    video.release()


def _write_data(folder: Path) -> None:
    """Data sets: COCO, a split of RefCOCO as SegAgent has it, and a folder of masks."""
    (folder / "coco.json").write_text(json.dumps(_coco("one.png", "two.png")))
    datasets.split(folder / "DATA")
    shutil.copytree(folder / "DATA", folder / "IMAGES")
    datasets.thin(folder / "FOLDER")


def _coco(*names: str) -> dict[str, Any]:
    """Annotations of the first object on each of these copies of the scene."""
    expression, (height, width) = SCENE.expressions[0], SCENE.image.shape[:2]
    images = [
        {"id": at, "file_name": name, "height": height, "width": width}
        for at, name in enumerate(names)
    ]
    mask = mask_to_rle(SCENE.mask(expression.target))
    annotation = {"category_id": 1, "caption": [EXPRESSION], "segmentation": mask, "iscrowd": 0}
    annotations = [annotation | {"id": at, "image_id": at} for at, _ in enumerate(names)]
    categories = [{"id": 1, "name": "thing"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write_bundle(folder: Path) -> Path:
    """The demo bundle as an export for GPUs: its graphs for anything are called `gpu-fp16`."""
    shutil.copytree(open_bundle().folder, folder)
    for part, name in (("segmenter", "cpu-8bit"), ("mllm", "portable")):
        path = folder / part / "manifest.json"
        manifest = json.loads(path.read_text())
        variant = manifest["variants"].pop(name) | {"device": "gpu", "dialect": "portable"}
        manifest["variants"]["gpu-fp16"] = variant
        path.write_text(json.dumps(manifest))
    return folder


def filled_in(line: str, url: str) -> list[str]:
    """The words of a command with what a reader fills in, for few small scenes.

    Args:
        line: the command as it is printed.
        url: of the server that plays http://127.0.0.1:8000.
    """
    words = words_of(line)
    pairs = list(zip(["", *words], words, strict=False))
    words = [AFTER.get(pair, STANDS_FOR.get(pair[1], pair[1])) for pair in pairs]
    words = [word.replace("http://127.0.0.1:8000", url) for word in words]
    for word in set(words) & set(MADE_BEFORE):
        for made in Path().glob("segagent-trajectories/*.trajectories.json"):
            shutil.copy(made, word)
    if "--count" in words:
        words += ["--side", "96", *(() if "--expressions" in words else ("--expressions", "1"))]
    return words


def written_by(words: list[str]) -> Path | None:
    """The new bundle or file that a command writes, and that must not be there before."""
    if words[0] not in ("export", "pack", "unpack") or {"--print-recipe", "--list"} & set(words):
        return None
    if "-o" in words:
        return Path(words[words.index("-o") + 1])
    if words[0] == "export":
        return None if "--target" in words else bundles_folder() / Path(words[1]).stem
    return Path("engines", Path(words[1]).stem) if words[0] == "unpack" else None


def make_room(words: list[str]) -> None:
    """Remove what stood for the bundle that this command writes itself.

    A later command may use the same name: a reader follows such a page on two machines, or chooses
    one of two commands.
    """
    target = written_by(words)
    if target is not None and target.as_posix() in PLACED:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def stand_in(words: list[str]) -> None:
    """Put a bundle where an export would write one."""
    target = written_by(words)
    if target is not None and not target.exists():
        shutil.copytree("mine", target)
