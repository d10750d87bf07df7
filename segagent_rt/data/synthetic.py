"""Synthetic scenes as a data set: pictures in a folder, and SegAgent's data file beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from segagent_rt.data.record import RunLengths, Sample
from segagent_rt.data.segagent import write_segagent
from segagent_rt.draw import png
from segagent_rt.io import check_replaceable, write_result
from segagent_rt.scenes import Scene


def write_scenes(folder: Path, scenes: Iterable[Scene], *, overwrite: bool = False) -> Path:
    """Write the scenes; returns the data file, `scenes.json`, which is written last.

    Raises:
        OutputError: a file cannot be written.
    """
    path = folder / "scenes.json"
    check_replaceable([path], overwrite=overwrite)
    samples: list[Sample] = []
    for scene in scenes:
        picture = folder / f"{scene.seed:06d}.png"
        write_result(picture, png(scene.image), overwrite=overwrite)
        samples += _samples(scene, picture)
    write_segagent(path, samples, overwrite=overwrite)
    return path


def _samples(scene: Scene, picture: Path) -> Iterator[Sample]:
    """One for each object that something is said of."""
    said: dict[int, list[str]] = {}
    for expression in scene.expressions:
        said.setdefault(expression.target, []).append(expression.text)
    for number, texts in said.items():
        mask = RunLengths.of(scene.mask(number))
        yield Sample(number, picture.name, picture, mask, tuple(texts), picture.name)
