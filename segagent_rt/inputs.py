"""What a batch is about: pictures in files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from segagent_rt.errors import InputError
from segagent_rt.types import AnnotationItem, ObjectPrompt

ENDINGS = (
    ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".ppm", ".pgm",
)  # fmt: skip
"""Of the pictures that are found in folders."""

OWN_PICTURE = ".segagent."
"""Part of the name of every picture that we write; a folder's results are not its pictures."""


def looks_like_picture(argument: str) -> bool:
    """Whether an argument ends as the name of a picture does, be it there or not."""
    return argument.lower().endswith(ENDINGS)


def stands_for_many(argument: str) -> bool:
    """Whether an argument is a folder, or a pattern and no file."""
    return is_folder(argument) or (glob.has_magic(argument) and not os.path.exists(argument))  # noqa: PTH110


def is_folder(argument: str) -> bool:
    """Whether there is such a folder; an empty argument names none, though `Path` reads it as `.`.

    Unlike `Path.is_dir` it also takes what no file can be called, such as 5,000 letters.
    """
    return os.path.isdir(argument)  # noqa: PTH112


def find_pictures(source: str) -> list[Path]:
    """The pictures that an argument stands for, sorted by name.

    Args:
        source: a picture, a folder (without the folders in it), or a pattern with `*`, `?` or `[`,
            in which `**` stands for folders of any depth.

    Raises:
        InputError: a folder or a pattern has no picture.
    """
    if is_folder(source):
        found = [each for each in sorted(Path(source).iterdir()) if _is_picture(each)]
    elif not stands_for_many(source):
        return [Path(source)]
    else:
        found = [Path(each) for each in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
        found = [each for each in found if _is_picture(each)]
    if not found:
        raise InputError(
            f"{source} {'holds' if is_folder(source) else 'stands for'} no picture",
            hint=f"images end in {', '.join(ENDINGS)}",
        )
    return found


def _is_picture(path: Path) -> bool:
    return looks_like_picture(path.name) and OWN_PICTURE not in path.name and path.is_file()


def gather_items(
    sources: Sequence[str], listed: Iterable[AnnotationItem], prompts: Sequence[ObjectPrompt]
) -> list[AnnotationItem]:
    """All images of a batch, each once, in their order.

    Args:
        sources: see `find_pictures`.
        listed: entries of a list. Those without a prompt get `prompts`.
        prompts: what is asked of every image of the sources.

    Raises:
        InputError: there is no image, or one has no prompt.
    """
    asked = dict[Path, dict[ObjectPrompt, None]]()
    for source in sources:
        for path in find_pictures(source):
            asked.setdefault(path, {}).update(dict.fromkeys(prompts))
    for item in listed:
        own = dict.fromkeys(item.prompts or prompts)
        asked.setdefault(Path(item.image), {}).update(own)
    if not asked:
        raise InputError("the input names no image", hint="add an image to the list")
    lacking = next((path for path, own in asked.items() if not own), None)
    if lacking is not None:
        raise InputError(
            f"there is no expression, click or box for {lacking}",
            hint="give an expression, or --click and --box, for the images that have none",
        )
    return [AnnotationItem(path, tuple(own)) for path, own in asked.items()]
