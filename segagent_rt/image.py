"""Pixels: reading, resizing, painting the mask, run lengths. Deterministic and golden-tested."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.errors import ImageUnreadable
from segagent_rt.types import Mask, RgbImage, Size

GREEN = (0, 255, 0)
MAX_MEGAPIXELS = 100.0
"""Larger pictures are refused unless the limit is raised: a small file can unpack to gigabytes."""


def load_image(path: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> RgbImage:
    """Read a picture as RGB, upright (EXIF orientation applied), transparency over white.

    16-bit grey is scaled to 8 bits, palettes, grey and CMYK are converted.

    Raises:
        ImageUnreadable: no such file, no picture, a damaged one, or one above the limit.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageUnreadable(f"{path} is a folder", hint="name an image file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ImageUnreadable(f"there is no file {path}", hint="check the path") from None
    except OSError as error:
        raise ImageUnreadable(f"{path} cannot be read: {error.strerror}") from error
    if not content:
        raise ImageUnreadable(f"{path} is empty", hint="was it copied completely?")
    return decode_image(content, str(path), max_megapixels)


def decode_image(
    content: bytes, name: str = "the image", max_megapixels: float = MAX_MEGAPIXELS
) -> RgbImage:
    """As `load_image`, from the bytes of a file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked below, before any pixel is decoded
    try:
        with Image.open(io.BytesIO(content)) as picture:
            megapixels = picture.width * picture.height / 1e6
            if megapixels > max_megapixels:
                raise ImageUnreadable(
                    f"{name} has {megapixels:.0f} megapixels, the limit is {max_megapixels:g}",
                    hint=f"raise it with --max-megapixels {megapixels + 1:.0f}",
                )
            upright: Any = ImageOps.exif_transpose(picture)
            return np.asarray(_to_rgb(upright), np.uint8)
    except UnidentifiedImageError:
        raise ImageUnreadable(
            f"{name} is not a picture that can be read", hint="JPEG, PNG, WebP, BMP and TIFF work"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageUnreadable(
            f"{name} is damaged: {error}", hint="was it copied completely?"
        ) from error


def _to_rgb(picture: Any) -> Any:
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        picture = Image.fromarray(np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layered)
    return picture.convert("RGB")


_TINTED = ((np.arange(256)[None, :, None] + (0, 255, 0)) >> 1).astype(np.uint8)
"""Every value of each channel, halfway to green."""


def overlay(image: RgbImage, mask: Mask) -> RgbImage:
    """The image with the mask over it in half-transparent green, as SegAgent shows it to its MLLM.

    Exactly `(I + colour) >> 1` for each channel under the mask; elsewhere unchanged.
    """
    painted, shown = image.copy(), mask.view(np.uint8)
    x, y, width, height = cv2.boundingRect(shown)
    if width:
        within = slice(y, y + height), slice(x, x + width)
        window = painted[within]
        cv2.copyTo(cv2.LUT(window, _TINTED), shown[within], window)
    return painted


def jpeg_round_trip(image: RgbImage, quality: int = 75) -> RgbImage:
    """What is left of an image after a JPEG file, 4:2:0, as SegAgent's own code passes it on."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(stream), np.uint8)


def squash(image: RgbImage, side: int) -> RgbImage:
    """Resize to `side` x `side` whatever the aspect: by area when shrinking, else linearly."""
    if image.shape[:2] == (side, side):
        return image
    how = cv2.INTER_AREA if min(image.shape[:2]) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (side, side), interpolation=how), np.uint8)


def resize_logits(logits: npt.NDArray[np.float32], size: Size) -> npt.NDArray[np.float32]:
    """Bilinear, half-pixel centres, float32 [h, w] -> [H, W]."""
    if logits.shape == size:
        return logits
    resized = cv2.resize(logits, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def resize_mask(mask: Mask, size: Size) -> Mask:
    """A mask drawn at another size: a pixel is set if half of its area is."""
    if mask.shape == size:
        return mask
    shrinking = size[0] < mask.shape[0] or size[1] < mask.shape[1]
    how = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    soft = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=how)
    return np.asarray(soft >= 0.5)


def mask_to_rle(mask: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths: `{"size": [H, W], "counts": str}`, column-major."""
    flat = np.ascontiguousarray(mask.T).reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    if flat.size and flat[0]:
        counts = np.concatenate([[0], counts])
    return {"size": [int(n) for n in mask.shape], "counts": _pack_counts(counts.tolist())}


def rle_to_mask(rle: dict[str, Any]) -> Mask:
    """The inverse of `mask_to_rle`; plain lists of counts are read too.

    Raises:
        ValueError: the counts do not fill the size.
    """
    height, width = (int(n) for n in rle["size"])
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        counts = _unpack_counts(counts.encode("ascii") if isinstance(counts, str) else counts)
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths do not fill {height} x {width} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _pack_counts(counts: list[int]) -> str:
    """COCO's string: from the third count on, differences to the one before last."""
    letters = bytearray()
    for at, count in enumerate(counts):
        value = count - counts[at - 2] if at > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(48 + (bits | 32 if more else bits))
    return letters.decode("ascii")


def _unpack_counts(letters: bytes) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for letter in letters:
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("run lengths hold a letter or a number that COCO does not use")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("run lengths end in the middle of a number")
    return counts
