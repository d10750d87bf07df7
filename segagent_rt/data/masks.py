"""Masks kept as pictures."""

from __future__ import annotations

import warnings
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.errors import DataInvalid, ImageUnreadable, SegagentWarning
from segagent_rt.image import by_bands, is_deep, opened
from segagent_rt.types import Mask

OPTION = "--mask-label"

_FLAT = 0.1
"""Share of values between the darkest and the brightest that may lie in areas of one value. Soft
edges have none such areas, and the classes of a label map little else."""


def load_mask(source: Any, label: int | None = None, *, name: str = "the mask") -> Mask:
    """Read a mask, bool [H, W].

    What can mean one thing only is read: pictures of black and one other value; transparency, where
    it varies; and grey pictures with soft edges, of which the bright half is the mask.

    Args:
        source: whatever `load_image` takes: a path, `-`, bytes, a Pillow image, or an array as
            [H, W], [H, W, 1], [H, W, 3] in RGB or [H, W, 4] in RGBA.
        label: the value that is the mask, in a picture whose values are classes or objects.
        name: stands in messages for a source that is no file.

    Raises:
        DataInvalid: no such file, no picture, a damaged one, one that is too large, or one that
            is not clearly a mask.

    Warns:
        SegagentWarning: the mask is empty.
    """
    try:
        with opened(source, name) as (found, name):
            mask = _mask_of(found, label, name)
    except ImageUnreadable as error:
        raise DataInvalid(
            f"{error}, so it is not a mask",
            hint="a mask has the size of the image, with the object white and the rest black",
        ) from None
    if not mask.any():
        warnings.warn(f"{name} is empty: no pixel is set", SegagentWarning, stacklevel=2)
    return mask


def _mask_of(found: Any, label: int | None, name: str) -> Mask:
    values = found if isinstance(found, np.ndarray) else _values_of(found, label is not None, name)
    if values.ndim not in (2, 3) or 0 in values.shape or values.shape[2:] not in (
        (), (1,), (3,), (4,),
    ):  # fmt: skip
        raise DataInvalid(
            f"{name} is an array of the shape {list(values.shape)}",
            hint="a mask is bool [height, width]",
        )
    if values.ndim == 3:
        values = _one_channel(values, name)
    if values.dtype.kind not in "buif" or not np.isfinite(values).all():
        raise DataInvalid(
            f"{name} has values that are no finite numbers", hint="a mask is bool [height, width]"
        )
    if label is not None:
        return np.asarray(values == label)
    return _binary(values, name)


def _values_of(picture: Any, labelled: bool, name: str) -> npt.NDArray[Any]:
    """The values of a Pillow image; of one with a palette its colours, if they are few or grey."""
    if is_deep(picture) and len(picture.getbands()) > 1:
        raise DataInvalid(f"{name} has 16 bits for each colour", hint="save it as a grey picture")
    if picture.mode == "P" and not labelled and "transparency" not in picture.info:
        used = [at for at, count in enumerate(picture.histogram()) if count]
        colours = np.asarray(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        if len(used) > 2 and (used[-1] >= len(colours) or np.ptp(colours[used], axis=1).any()):
            raise _several(name, used[1])
        if len(used) > 2 or sum(not any(colours[at]) for at in used if at < len(colours)) == 1:
            return _converted(picture, "RGB")  # otherwise 0 is the background
    single = picture.mode in ("1", "L", "P") or is_deep(picture)
    if single and (labelled or "transparency" not in picture.info):
        return np.asarray(picture)
    alpha = picture.has_transparency_data
    return _converted(picture, "RGBA" if alpha else "RGB")


def _converted(picture: Any, mode: str) -> npt.NDArray[np.uint8]:
    return by_bands(picture, len(mode), lambda band: np.asarray(band.convert(mode)))


def _one_channel(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Alpha where it varies, else grey; of black and one colour, 0 and 1."""
    if values.shape[2] == 4:
        alpha = values[..., 3]
        if alpha.min() != alpha.max():
            return np.asarray(alpha >= (alpha.max() / 2 if alpha.max() > 1 else 0.5))
        values = values[..., :3]
    if values.shape[2] == 1 or not np.ptp(values, axis=2).any():
        return values[..., 0]
    if values.dtype == np.uint8 and np.ptp(values, axis=2).max() <= _COLOURLESS:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(values), cv2.COLOR_RGB2GRAY))
    shown = values.any(axis=2)
    colours = values[shown]
    if shown.all() or (colours != colours[0]).any():
        raise DataInvalid(
            f"{name} has several colours, and nothing says which of them is the mask",
            hint="paint the object white and the rest black",
        )
    return np.asarray(shown)


_COLOURLESS = 8
"""Largest difference of the channels of a grey that JPEG has been at."""


def _binary(values: npt.NDArray[Any], name: str) -> Mask:
    """Where values are set, if there is only one way to see that."""
    if values.dtype == np.bool_:
        return values
    brightest, between = values.max(), (values != 0) & (values != values.max())
    if brightest > 0 and not between.any():
        return np.asarray(values != 0)
    if not values.any():
        return np.zeros(values.shape, np.bool_)
    most = np.iinfo(values.dtype).max if values.dtype.kind in "u" else 0
    smallest = values[between].min()
    if brightest < most / 2 or not most or _flat_share(values, between) > _FLAT:
        raise _several(name, smallest)
    return np.asarray(values > most // 2)


def _flat_share(values: npt.NDArray[Any], where: Mask) -> float:
    """Of some pixels, the share whose neighbours all have the same value."""
    seen = np.ascontiguousarray(values)
    block = np.ones((3, 3), np.uint8)
    flat = cv2.erode(seen, block) == cv2.dilate(seen, block)
    return float(np.count_nonzero(flat & where) / np.count_nonzero(where))


def _several(name: str, example: Any) -> DataInvalid:
    return DataInvalid(
        f"{name} has several values besides 0, such as {example:g}: it looks like a label map",
        hint=f"say which value is the object: {OPTION} {example:g}",
    )
