"""Pixels: reading, resizing, painting the mask, run lengths. Deterministic and golden-tested."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.errors import ImageUnreadable, InputError
from segagent_rt.io import open_regular, read_bounded
from segagent_rt.types import Mask, RgbImage, Size

MAX_MEGAPIXELS = 100.0
"""Larger pictures are refused unless the limit is raised: a small file can unpack to gigabytes."""

MAX_BYTES = 512 << 20
"""Size of the largest file that is opened as a picture: 100 megapixels need 300 MB unpacked."""

FORMATS = ("Jpeg", "Png", "WebP", "Tiff", "Bmp", "Gif", "Avif", "Ppm")
"""Pillow's names of the formats that are read. It knows more, and starts Ghostscript for one."""

_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
"""Modes of Pillow whose colours are multiplied by alpha, and those that say the same without it."""

Range: TypeAlias = tuple[float, float]
"""The values that stand for black and for white."""

_BAND = 1 << 22
"""Pixels that are converted at a time, which bounds the memory that a large picture takes."""


def load_image(
    source: Any, max_megapixels: float = MAX_MEGAPIXELS, *, value_range: Range | None = None
) -> RgbImage:
    """Read an image as RGB, upright (EXIF orientation applied), transparency over white.

    What can mean one thing only is converted: grey, palettes, CMYK, RGBA, one bit. Float and 16-bit
    images need `value_range`, because their brightness depends on it.

    Args:
        source: a path; `-` for standard input; the bytes of a file; a Pillow image; or a numpy
            array or anything with `__array__`, as [H, W], [H, W, 1], [H, W, 3] in RGB or
            [H, W, 4] in RGBA.
        max_megapixels: larger files are refused before they are unpacked. Arrays may have any size.
        value_range: the values that stand for black and white, such as (0, 1) or (0, 65535). Values
            outside are clipped.

    Returns:
        uint8 [H, W, 3]; an array that is one already is not copied.

    Raises:
        ImageUnreadable: no such file, no picture, a damaged one, or one above the limit; values
            that are not finite, or of an unknown range; an array of another layout.
    """
    _check_range(value_range)
    with opened(source, "the image", max_megapixels) as (found, name):
        if isinstance(found, np.ndarray):
            return _rgb_of_array(found, name, value_range)
        return _rgb_of_picture(found, name, value_range)


def decode_image(
    content: bytes, name: str = "the image", max_megapixels: float = MAX_MEGAPIXELS
) -> RgbImage:
    """As `load_image`, from the bytes of a file; `name` stands for it in messages."""
    with opened(content, name, max_megapixels) as (picture, _):
        return _rgb_of_picture(picture, name, None)


@contextmanager
def opened(
    source: Any, name: str, max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[tuple[Any, str]]:
    """Open whatever `load_image` takes.

    Args:
        source: see `load_image`.
        name: stands in messages for a source that is no file.
        max_megapixels: larger pictures are refused.

    Yields:
        A numpy array, or a Pillow image that is not decoded yet, and the name for messages.

    Raises:
        ImageUnreadable: it cannot be opened; or anything that goes wrong while it is used.
    """
    if isinstance(source, (str, os.PathLike)):
        name = "standard input" if os.fspath(source) == "-" else os.fspath(source)
    try:
        if isinstance(source, (str, os.PathLike)):
            with _stream_of(source) as stream:
                yield _open_picture(stream, name, max_megapixels), name
        elif isinstance(source, (bytes, bytearray, memoryview)):
            yield _open_picture(io.BytesIO(source), name, max_megapixels), name
        elif hasattr(source, "getbands"):  # a Pillow image
            _check_pixels(source, name, max_megapixels)
            plain = _PREMULTIPLIED.get(source.mode)
            yield source.convert(plain) if plain else source, name
        elif hasattr(source, "__array__"):
            yield _array_of(source, name), name
        else:
            raise ImageUnreadable(
                f"{name} is given as {type(source).__name__}, which cannot be read",
                hint="give a path, bytes, a Pillow image or a numpy array",
            )
    except InputError:
        raise
    except MemoryError:
        raise ImageUnreadable(
            f"{name} needs more memory than there is", hint="make it smaller"
        ) from None
    except Exception as error:  # a damaged picture can fail in any way
        said = " ".join(str(error).split()) or type(error).__name__
        raise ImageUnreadable(
            f"{name} is damaged: {said}", hint="check that the file is complete"
        ) from error


def _array_of(source: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(source)
    except Exception as error:  # tensors on a GPU raise what they like
        raise ImageUnreadable(
            f"{name} cannot be turned into an array: {' '.join(str(error).split())}",
            hint="give a numpy array, uint8 [height, width, 3]",
        ) from error


def _stream_of(source: str | os.PathLike[str]) -> BinaryIO:
    if os.fspath(source) != "-":
        stream = open_regular(Path(source), ImageUnreadable)
        if os.fstat(stream.fileno()).st_size <= MAX_BYTES:
            return stream
        stream.close()
        raise ImageUnreadable(
            f"{source} has more than {MAX_BYTES >> 20} MiB", hint="give an image file"
        )
    if sys.stdin.isatty():
        raise ImageUnreadable(
            "there is no image on standard input", hint="send it there: ... < photo.jpg"
        )
    content = read_bounded(sys.stdin.buffer, MAX_BYTES, "standard input", ImageUnreadable)
    return io.BytesIO(content)


def _open_picture(stream: BinaryIO, name: str, max_megapixels: float) -> Any:
    """A Pillow image in one of `FORMATS`.

    `PIL.Image.open` is no help here: its limit of pixels is a setting of the whole process.
    """
    from PIL import Image

    prefix = stream.read(16)
    if not prefix:
        raise ImageUnreadable(f"{name} is empty", hint="check that the file is complete")
    for kind in FORMATS:
        try:
            import_module(f"PIL.{kind}ImagePlugin")
        except ImportError:  # older versions of Pillow know no AVIF
            continue
        factory, accept = Image.OPEN[kind.upper()]
        accepted = accept(prefix) if accept else True
        if accepted and not isinstance(accepted, str):  # text says that a library is missing
            stream.seek(0)
            picture = factory(stream, "")
            _check_pixels(picture, name, max_megapixels)
            return picture
    raise ImageUnreadable(
        f"{name} is not an image that can be read",
        hint="JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF and PPM are read",
    )


def _check_pixels(picture: Any, name: str, max_megapixels: float) -> None:
    megapixels = picture.width * picture.height / 1e6
    if megapixels > max_megapixels:
        raise ImageUnreadable(
            f"{name} has {round(megapixels, 2):g} megapixels, the limit is {max_megapixels:g}",
            hint=f"make it smaller, or allow it with --max-megapixels {megapixels + 1:.0f}",
        )


def _rgb_of_picture(picture: Any, name: str, value_range: Range | None) -> RgbImage:
    deep = is_deep(picture)
    if picture.format == "PPM":  # the file says what is white, and Pillow scales to 16 bits
        value_range = (0, 65535) if deep else None
    elif deep and value_range is None:
        # Before version 11, Pillow called a PNG of 16 bits "I". No PNG has 32.
        mode = "I;16" if picture.format == "PNG" else picture.mode
        kind = {"F": "floating-point", "I": "32-bit"}.get(mode, "16-bit")
        raise _no_range(name, f"{kind} values")
    if deep and len(picture.getbands()) > 1:  # Pillow would keep the upper eight bits only
        return _rgb_of_array(_decode_deep(picture, name), name, value_range)
    return by_bands(picture, 3, lambda band: _rgb_of_band(band, name, value_range))


def by_bands(
    picture: Any, channels: int, convert: Callable[[Any], npt.NDArray[np.uint8]]
) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image band by band, so that memory holds it only twice.

    Args:
        picture: the image.
        channels: C, of the result.
        convert: what makes uint8 [h, w, C or 1] of a band of h rows.

    Returns:
        uint8 [H, W, C], upright.
    """
    picture.load()
    width, height = picture.size
    rows = max(1, _BAND // width)
    pixels = np.empty((height, width, channels), np.uint8)
    for top in range(0, height, rows):
        band = picture if rows >= height else picture.crop((0, top, width, min(height, top + rows)))
        pixels[top : top + rows] = convert(band)
    return np.ascontiguousarray(_upright(pixels, picture.getexif().get(_ORIENTATION, 1)))


def _rgb_of_band(band: Any, name: str, value_range: Range | None) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3], or [H, W, 1] of a grey one."""
    from PIL import Image

    if is_deep(band) or (value_range is not None and band.mode in ("1", "L", "RGB")):
        values = _scaled(np.asarray(band), name, value_range)
        return values if values.ndim == 3 else values[..., None]
    if band.has_transparency_data:  # not by the name of a band: the A of LAB is a colour
        layered = band.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        band = Image.alpha_composite(white, layered)
    return np.asarray(band.convert("RGB"))


def is_deep(picture: Any) -> bool:
    """Whether a Pillow image, decoded or not, has more than eight bits for each value."""
    modes = [picture.mode, *(str(tile[3]) for tile in getattr(picture, "tile", ()))]
    return picture.mode in ("I", "F") or any(map(_DEEP_MODE.search, modes))


_DEEP_MODE = re.compile(r"\b(?:I|L|LA|RGB[AX]*|CMYK);(?:12|16)")
"""Pillow's names of such values. (`BGR;16` has five or six bits for each colour.)"""


def _decode_deep(picture: Any, name: str) -> npt.NDArray[Any]:
    """A 16-bit picture with colours, uint16 [H, W, 3 or 4] in RGB or RGBA."""
    picture.fp.seek(0)
    content = read_bounded(picture.fp, MAX_BYTES, name, ImageUnreadable)
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.shape[2] not in (3, 4):
        raise ImageUnreadable(f"{name} cannot be decoded", hint="convert it to 8 bits")
    turned = 1 if picture.format == "TIFF" else picture.getexif().get(_ORIENTATION, 1)
    order = (2, 1, 0) if values.shape[2] == 3 else (2, 1, 0, 3)
    return _upright(np.asarray(values)[..., order], turned)


_ORIENTATION = 0x0112
"""EXIF tag."""


def _upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Undo an EXIF orientation: 1 upright, 2 mirrored, 3 upside down, 6 and 8 lying."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _rgb_of_array(values: npt.NDArray[Any], name: str, value_range: Range | None) -> RgbImage:
    from_last = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or from_last not in (1, 3, 4) or 0 in values.shape:
        first = values.ndim == 3 and values.shape[0] in (1, 3, 4)
        raise ImageUnreadable(
            f"{name} is an array of the shape {list(values.shape)}, not [height, width, 3]",
            hint="move the channels to the end: np.moveaxis(array, 0, -1)"
            if first
            else "give one image, RGB, as uint8 [height, width, 3]",
        )
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype != np.uint8 or value_range is not None:
        if values.dtype.kind not in "uif":
            raise ImageUnreadable(
                f"{name} is an array of {values.dtype}, not of numbers", hint="give uint8 values"
            )
        values = _scaled(values, name, value_range)
    if from_last == 4:
        from PIL import Image

        return _rgb_of_picture(Image.fromarray(np.ascontiguousarray(values)), name, None)
    if from_last == 1:
        values = np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(values)


def _scaled(
    values: npt.NDArray[Any], name: str, value_range: Range | None
) -> npt.NDArray[np.uint8]:
    """Values as uint8 of the same shape, the range spread over 0 to 255."""
    if value_range is None:
        raise _no_range(name, f"{values.dtype} values")
    low, high = value_range
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND // max(1, math.prod(values.shape[1:])))
    for top in range(0, len(values), rows):
        band = values[top : top + rows].astype(np.float64)
        if not np.isfinite(band).all():
            raise ImageUnreadable(
                f"{name} has values that are not finite (NaN or infinity)",
                hint="replace them, for instance by np.nan_to_num",
            )
        scaled[top : top + rows] = np.rint(np.clip((band - low) * (255 / (high - low)), 0, 255))
    return scaled


def _no_range(name: str, kind: str) -> ImageUnreadable:
    return ImageUnreadable(
        f"{name} has {kind}, and the values of black and white are unknown",
        hint="convert it to 8 bits, or give --value-range 0,65535, "
        "in Python load_image(..., value_range=(0, 65535))",
    )


def _check_range(value_range: Range | None) -> None:
    if value_range is None:
        return
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"the range {low:g} to {high:g} is none", hint="give the lower value first: 0,65535"
        )


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
