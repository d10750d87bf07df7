"""Masks kept as pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from segagent_rt.data.reading import read_bytes
from segagent_rt.errors import DataInvalid
from segagent_rt.image import MAX_MEGAPIXELS
from segagent_rt.types import Mask


def load_mask(path: Path) -> Mask:
    """Read a mask picture as bool [H, W]; see `decode_mask`.

    Raises:
        DataInvalid: no such file, no picture, a damaged one, or one that is too large.
    """
    return decode_mask(read_bytes(path), str(path))


def decode_mask(content: bytes, name: str) -> Mask:
    """A mask from the bytes of a picture, bool [H, W].

    Palettes and pictures whose brightest value is 1 are set wherever they are not 0; of all others
    the bright half is.

    Raises:
        DataInvalid: no picture, a damaged one, or one that is too large.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_MEGAPIXELS * 1e6:
                raise DataInvalid(f"{name} has more than {MAX_MEGAPIXELS:g} megapixels")
            return _to_mask(picture)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataInvalid(f"{name} is not a picture of a mask: {error}") from None


def _to_mask(picture: Any) -> Mask:
    deep = picture.mode.startswith("I") or picture.mode == "F"
    if picture.mode not in ("1", "L", "P") and not deep:
        picture = picture.convert("RGB").convert("L")
    values = np.asarray(picture)
    brightest = values.max(initial=0)
    if picture.mode in ("1", "P") or brightest <= 1:
        return np.asarray(values > 0)
    return np.asarray(values >= (32768 if deep and brightest > 255 else 128))
