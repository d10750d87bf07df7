"""Folders of pictures and masks: HQSeg-44K's data sets, DIS5K, ThinObject5K, or anybody's own.

Each mask is one object. Pictures and masks carry the same name, in two folders beside each other
or in one. What is said of an object is, line by line, in a text file beside the picture with the
same name; without one it is the class that the picture's name begins with, and a warning says so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from segagent_rt.data.masks import load_mask
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import captions, read_bytes
from segagent_rt.data.record import RunLengths, Sample
from segagent_rt.errors import DataInvalid, SegagentWarning

PAIRS = (
    ("im", "gt"),  # DIS5K
    ("images_test", "masks_test"),  # ThinObject5K
    ("images_train", "masks_train"),
    ("images", "masks"),  # COIFT, and the plain case
    ("images", "masks_max255"),  # HRSOD
    ("image", "mask"),
    ("imgs", "masks"),
)
"""Names of a folder of pictures and of the folder of their masks."""

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASKS = (".png", ".bmp", ".tif", ".tiff")

_DIS_NAME = re.compile(r"\d+#[^#]+#\d+#([^#]+)#.*")
_NUMBERED = re.compile(r"(.*?[^\W\d_])[\s_\-#.]*\d[\w\-#.]*")


def looks_like_folder(folder: Path) -> bool:
    """Whether a folder has the pictures and masks of this format."""
    return any((folder / p).is_dir() and (folder / m).is_dir() for p, m in PAIRS) or bool(
        next(_beside(folder), None)
    )


def read_folder(folder: Path, context: ReadContext) -> list[Sample]:
    """The samples of a folder, sorted by name.

    A picture without a mask is an error, and so is a mask without a picture; a picture that is
    missing for other reasons is found when it is looked at.

    Raises:
        DataInvalid: no masks, one half of a pair, or something that is no mask.
    """
    samples = []
    for number, (picture, mask) in enumerate(_pairs(folder, context), 1):
        with context.entry():
            samples.append(
                Sample(
                    id=number,
                    name=picture.relative_to(folder).as_posix(),
                    image=picture,
                    mask=_object_in(mask, context.mask_label),
                    expressions=_expressions(picture, context),
                    source=str(mask),
                )
            )
    return samples


def _object_in(path: Path, label: int | None) -> RunLengths:
    with warnings.catch_warnings():  # an object without pixels is an error here
        warnings.simplefilter("ignore", SegagentWarning)
        mask = load_mask(path, label)
    if not mask.any():
        raise DataInvalid(f"{path} is empty: no pixel is set")
    return RunLengths.of(mask)


def _pairs(folder: Path, context: ReadContext) -> list[tuple[Path, Path]]:
    for pictures, masks in PAIRS:
        if (folder / pictures).is_dir() and (folder / masks).is_dir():
            return _matched(folder / pictures, folder / masks, context)
    found = list(_beside(folder))
    if not found:
        raise DataInvalid(
            f"{folder} holds no masks",
            hint="pictures in `images` and masks of the same names in `masks`, as PNG",
        )
    return found


def _matched(pictures: Path, masks: Path, context: ReadContext) -> list[tuple[Path, Path]]:
    shown, drawn = _by_stem(pictures, PICTURES), _by_stem(masks, MASKS)
    if not drawn:
        raise DataInvalid(f"{masks} holds no masks", hint="masks are PNG files")
    for lonely, other, what in (
        (sorted(shown.keys() - drawn.keys()), masks, "mask"),
        (sorted(drawn.keys() - shown.keys()), pictures, "picture"),
    ):
        for stem in lonely:
            with context.entry():
                raise DataInvalid(f"{other} holds no {what} of the name {stem}")
    return [(shown[stem], drawn[stem]) for stem in sorted(drawn.keys() & shown.keys())]


def _beside(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs in one folder: a JPEG, and a PNG of the same name (DUTS, ECSSD, FSS, MSRA-10K)."""
    masks = _by_stem(folder, (".png",))
    for stem, picture in _by_stem(folder, (".jpg", ".jpeg")).items():
        if stem in masks:
            yield picture, masks[stem]


def _by_stem(folder: Path, kinds: tuple[str, ...]) -> dict[str, Path]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds]
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise DataInvalid(f"{folder} holds both {found[path.stem].name} and {path.name}")
        found[path.stem] = path
    return found


def _expressions(picture: Path, context: ReadContext) -> tuple[str, ...]:
    text = picture.with_suffix(".txt")
    if not text.is_file():
        named = class_name(picture.stem)
        context.from_names.append(named)
        return (named,)
    try:
        lines = read_bytes(text).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataInvalid(f"{text} is not text in UTF-8") from None
    return captions([line.strip() for line in lines if line.strip()], str(text))


def class_name(stem: str) -> str:
    """What a file's name says of its object.

    `2#Aircraft#7#UAV#3522034` is a `UAV` (DIS5K), `fire_hydrant_0012` a `fire hydrant`.
    """
    of_dis = _DIS_NAME.fullmatch(stem)
    numbered = _NUMBERED.fullmatch(stem)
    words = of_dis[1] if of_dis else numbered[1] if numbered else stem
    return " ".join(words.replace("_", " ").replace("-", " ").split()) or stem
