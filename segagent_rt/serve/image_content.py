"""Pictures and masks in the bodies of requests."""

from __future__ import annotations

import base64
import binascii
import warnings

from segagent_rt.data.masks import load_mask
from segagent_rt.errors import InputError, SegagentWarning
from segagent_rt.image import opened, rle_to_mask
from segagent_rt.segmenters.prediction import GivenMask


def decode_base64(text: str, what: str) -> bytes:
    """The bytes behind base64 or a base64 data URL.

    Args:
        text: what the client sent.
        what: names it in messages.

    Raises:
        InputError: it is neither.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InputError(f"{what} is a data URL without base64", hint="encode it in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{what} is not in base64", hint="encode the file's bytes") from None


def mask_of_picture(text: str, megapixels: float) -> GivenMask:
    """A mask that came as a picture, in base64 or as a data URL.

    Raises:
        InputError: it is no picture, too large, or not clearly a mask.
    """
    content = decode_base64(text, "the mask")
    with opened(content, "the mask", megapixels):  # its size, before anything is unpacked
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SegagentWarning)
        return GivenMask(load_mask(content))


def mask_of_rle(size: tuple[int, int], counts: str | list[int], megapixels: float) -> GivenMask:
    """A mask that came as COCO's run lengths.

    Raises:
        InputError: it is too large, or they do not fill the size.
    """
    if not 0 < size[0] * size[1] <= megapixels * 1e6:
        raise InputError("the mask is empty or too large", hint="give one of the image's size")
    try:
        return GivenMask(rle_to_mask({"size": size, "counts": counts}))
    except (ValueError, OverflowError):
        raise InputError(
            "the mask's run lengths do not fill its size", hint="give COCO's run lengths"
        ) from None
