"""Pictures that are cut off, flipped, too large, of another format, and arrays of odd kinds."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from tests.hostile.case import EITHER, REFUSED, Case, damaged_bytes, flipped

SCENE = make_scene(7, 96)
TEXT = SCENE.expressions[0].text
Content: TypeAlias = "bytes | Callable[[], bytes]"
CLICK = ("--click=+20,20", "-o", "out")


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def good_pictures() -> dict[str, bytes]:
    """A readable file of each format and of its layouts."""
    scene = Image.fromarray(SCENE.image)
    grey = scene.convert("L")
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) + 7)
    frames = [scene, scene.rotate(90), scene.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {
        "jpeg": encoded(scene, "JPEG", exif=exif),
        "progressive jpeg": encoded(scene, "JPEG", progressive=True),
        "cmyk jpeg": encoded(scene.convert("CMYK"), "JPEG"),
        "png": encoded(scene, "PNG"),
        "palette png": encoded(scene.convert("P"), "PNG", transparency=0),
        "rgba png": encoded(scene.convert("RGBA"), "PNG"),
        "16-bit png": encoded(deep, "PNG"),
        "tiff": encoded(scene, "TIFF"),
        "lzw tiff": encoded(scene, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": encoded(scene, "TIFF", compression="jpeg"),
        "tiff of pages": encoded(scene, "TIFF", save_all=True, append_images=frames),
        "float tiff": encoded(grey.convert("F"), "TIFF"),
        "bmp": encoded(scene, "BMP"),
        "palette bmp": encoded(scene.convert("P"), "BMP"),
        "gif": encoded(scene.convert("P"), "GIF"),
        "animated gif": encoded(scene, "GIF", save_all=True, append_images=frames),
        "ppm": encoded(scene, "PPM"),
        "pfm": encoded(grey.convert("F"), "PPM"),
    }
    for name, kind in (("webp", "WEBP"), ("avif", "AVIF")):
        if f".{name}" in Image.registered_extensions():
            found[name] = encoded(scene, kind)
    if "webp" in found:
        found["lossless webp"] = encoded(scene, "WEBP", lossless=True)
        found["animated webp"] = encoded(scene, "WEBP", save_all=True, append_images=frames)
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


def png_of(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of any size; its content is what the further chunks say."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IEND", b"")


def tiff_of(*entries: tuple[int, int, int, int], following: int = 0, more: bytes = b"") -> bytes:
    """A little-endian TIFF with one directory of entries: tag, type, count, value."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    return head + body + following.to_bytes(4, "little") + more


PLAIN = ((256, 4, 1, 50), (257, 4, 1, 40), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n(x) (w) file\nshowpage\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


@lru_cache(maxsize=1)
def zeros() -> bytes:
    """Little that unpacks to much."""
    return zlib.compress(bytes(200 << 20), 9)


def bombs() -> dict[str, Content]:
    short = chunk(b"IDAT", zlib.compress(bytes(100)))
    return {
        "png of 10 gigapixels": png_of(100_000, 100_000, short),
        "png of the largest size": png_of(2**31 - 1, 2**31 - 1, short),
        "png of no size": png_of(0, 0, short),
        "png of one row": png_of(99_000_000, 1, short),
        "png that goes on for 200 MB": lambda: png_of(50, 40, chunk(b"IDAT", zeros())),
        "png with a long profile": lambda: png_of(
            50, 40, chunk(b"iCCP", b"x\0\0" + zeros()), short),
        "png with a long text": lambda: png_of(50, 40, chunk(b"zTXt", b"x\0\0" + zeros()), short),
        "png with a long unicode text": lambda: png_of(
            50, 40, chunk(b"iTXt", b"x\0\1\0\0\0" + zeros()), short),
        "png of 64 bits": png_of(50, 40, short, depth=64),
        "png of an unknown colour": png_of(50, 40, short, colour=5),
        "png without content": png_of(50, 40),
        "png with chunks of 2 GB": b"\x89PNG\r\n\x1a\n\x7f\xff\xff\xffIHDR",
        "png with a negative chunk": b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR" + bytes(30),
        "png with 100,000 chunks": png_of(50, 40, *[chunk(b"tEXt", b"a\0b")] * 100_000, short),
        "png that moves": png_of(50, 40, chunk(b"acTL", b"\x7f\xff\xff\xff" * 2), short),
        "grey of 99 megapixels": lambda: encoded(Image.new("1", (9900, 9990)), "PNG"),
        "rgb of 99 megapixels": lambda: encoded(
            Image.new("RGB", (9900, 9990)), "PNG", compress_level=1),
        "gif of 4 gigapixels": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "gif of frames outside": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0x80, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 60000, 60000, 60000, 60000, 0) + b"\2\1\0\0;",
        "gif without an end": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!\xfe\1a" * 9999,
        "bmp of 4 gigapixels": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0"
        + struct.pack("<iiHHI", 65535, 65535, 1, 24, 0) + bytes(20),
        "bmp of negative size": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0"
        + struct.pack("<iiHHI", -5, -(2**31), 1, 24, 0) + bytes(20),
        "bmp with a large header": b"BM" + bytes(8) + b"\xff\xff\xff\xff\xff\xff\xff\xff",
        "ppm of 10 gigapixels": b"P6 100000 100000 255\n" + bytes(100),
        "ppm with long numbers": b"P6 " + b"9" * 5000 + b" 1 255\n",
        "ppm with endless comments": b"P6\n" + b"#\n" * 100_000,
        "ppm of letters": b"P3 5 5 255\n" + b"a " * 75,
        "ppm above its largest value": b"P3 5 5 9\n" + b"99999 " * 75,
        "pfm of NaN": b"Pf\n5 5\n-1.0\n" + b"\xff" * 100,
        "pfm of scale NaN": b"Pf\n5 5\nnan\n" + bytes(100),
        "tiff of 4 gigapixels": tiff_of((256, 4, 1, 65535), (257, 4, 1, 65535), *PLAIN[2:]),
        "tiff of the largest size": tiff_of((256, 4, 1, 2**32 - 1), (257, 4, 1, 1), *PLAIN[2:]),
        "tiff in a circle": tiff_of(*PLAIN, following=8),
        "tiff of 4 billion strips": tiff_of(*PLAIN, (273, 4, 2**32 - 1, 8), (279, 4, 1, 2000)),
        "tiff with strips outside": tiff_of(*PLAIN, (273, 4, 1, 2**32 - 1), (279, 4, 1, 2000)),
        "tiff of 60,000 channels": tiff_of(
            *PLAIN[:4], (262, 3, 1, 2), (277, 3, 1, 60000), (273, 4, 1, 8)),
        "tiff of an unknown compression": tiff_of(*PLAIN[:3], (259, 3, 1, 4711), PLAIN[4]),
        "tiff of tiles of no size": tiff_of(*PLAIN, (322, 4, 1, 0), (323, 4, 1, 0), (324, 4, 1, 8)),
        "tiff of no entries": tiff_of(),
        "tiff with an entry of 4 GB": tiff_of(*PLAIN, (270, 2, 2**32 - 1, 8)),
        "bigtiff": b"II+\0\x08\0\0\0" + b"\xff" * 60,
        "webp of the largest size": b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\x0a\0\0\0" + b"\xff" * 10,
        "webp of nothing": b"RIFF\x04\0\0\0WEBP",
        "avif of nothing": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
        "avif with a box of 2 GB": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf\x7f\xff\xff\xffmeta",
        "jpeg of 4 gigapixels": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03"
        + bytes([1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1]) + b"\xff\xd9",
        "jpeg of markers alone": b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000,
        "jpeg of fill bytes": b"\xff\xd8" + b"\xff" * 1_000_000,
        "jpeg without an end": b"\xff\xd8\xff",
    }  # fmt: skip


OTHERS = {
    "eps": EPS,
    "eps in a dos frame": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS,
    "pdf": b"%PDF-1.7\n1 0 obj<<>>endobj\n",
    "svg": SVG,
    "compressed svg": b"\x1f\x8b\x08\0" + bytes(20),
    "html": b"<html>404</html>",
    "zip": b"PK\3\4" + bytes(60),
    "elf": b"\x7fELF" + bytes(60),
    "psd": b"8BPS\0\1" + bytes(60),
    "ico": b"\0\0\1\0\1\0" + bytes(60),
    "tga": bytes([0, 0, 2]) + bytes(9) + b"\x05\0\x05\0\x18\0" + bytes(75),
    "pcx": b"\x0a\5\1\x08" + bytes(124),
    "xpm": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000", "a"};',
    "xbm": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {0};",
    "fli": bytes(4) + b"\x12\xaf" + bytes(122),
    "dds": b"DDS |\0\0\0" + bytes(120),
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
    "mpo": b"\xff\xd8\xff\xe2\0\x10MPF\0" + bytes(40),
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 9 +X 9\n",
    "npy": b"\x93NUMPY\1\0v\0",
    "a line": b"image.png\n",
    "one byte": b"\x89",
    "nothing": b"",
}  # fmt: skip


class Tensor:
    """Something with `__array__` that fails."""

    def __array__(self, *_: object) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


REFUSED_ARRAYS: dict[str, Callable[[], Any]] = {
    "float 0 to 1": lambda: np.random.default_rng(0).random((40, 50, 3)),
    "float 0 to 255": lambda: SCENE.image.astype(np.float32),
    "NaN": lambda: np.full((40, 50, 3), np.nan),
    "16 bits": lambda: SCENE.image.astype(np.uint16) << 8,
    "16 bits, dark": lambda: SCENE.image.astype(np.uint16),
    "signed": lambda: SCENE.image.astype(np.int64),
    "complex": lambda: SCENE.image.astype(np.complex64),
    "objects": lambda: np.array([[None, {}], [1, 2]], object),
    "texts": lambda: np.array([["a", "b"], ["c", "d"]]),
    "dates": lambda: np.zeros((4, 5), "datetime64[s]"),
    "records": lambda: np.zeros((4, 5), [("r", "u1"), ("g", "u1")]),
    "channels first": lambda: np.zeros((3, 40, 50), np.uint8),
    "a batch": lambda: np.zeros((2, 40, 50, 3), np.uint8),
    "two channels": lambda: np.zeros((40, 50, 2), np.uint8),
    "no rows": lambda: np.zeros((0, 50, 3), np.uint8),
    "no columns": lambda: np.zeros((40, 0, 3), np.uint8),
    "a number": lambda: np.array(7, np.uint8),
    "a vector": lambda: np.zeros(50, np.uint8),
    "five axes": lambda: np.zeros((1, 1, 1, 1, 1), np.uint8),
    "a list": lambda: [[1, 2], [3, 4]],
    "a ragged list": lambda: [[1, 2], [3]],
    "none": lambda: None,
    "a number of Python": lambda: 7,
    "bytes of text": lambda: b"hello",
    "no bytes": lambda: b"",
    "a view of nothing": lambda: memoryview(b""),
    "a tensor of a GPU": Tensor,
    "a class": lambda: Tensor,
    "an open file": lambda: io.BytesIO(png(SCENE.image)),
}  # fmt: skip
READ_ARRAYS: dict[str, Callable[[], Any]] = {
    "transposed": lambda: SCENE.image.transpose(1, 0, 2),
    "backwards": lambda: SCENE.image[::-1, ::-1, ::-1],
    "every other": lambda: SCENE.image[::2, ::3],
    "columns first": lambda: np.asfortranarray(SCENE.image),
    "read only": lambda: np.frombuffer(SCENE.image.tobytes(), np.uint8).reshape(SCENE.image.shape),
    "one value for all": lambda: np.broadcast_to(np.uint8(9), (40, 50, 3)),
    "bool": lambda: SCENE.image[..., 0] > 100,
    "grey": lambda: SCENE.image[..., :1],
    "rgba": lambda: np.dstack([SCENE.image, SCENE.image[..., 0]]),
    "a pixel": lambda: SCENE.image[:1, :1],
    "a bilevel picture": lambda: Image.fromarray(SCENE.image).convert("1"),
    "a picture of Lab": lambda: Image.fromarray(SCENE.image).convert("LAB"),
    "a picture of HSV": lambda: Image.fromarray(SCENE.image).convert("HSV"),
    "a picture of YCbCr": lambda: Image.fromarray(SCENE.image).convert("YCbCr"),
}


def masks() -> dict[str, tuple[bytes, Any]]:
    """Pictures that are no masks of the scene, or hardly any; and the exit codes."""
    side = SCENE.image.shape[0]
    rng = np.random.default_rng(0)
    classes = Image.fromarray(rng.integers(0, 5, (side, side), dtype=np.uint8))
    half = np.zeros((side, side), np.uint8)
    half[: side // 2] = 255
    good = png(half > 0)
    return {
        "mask of another size": (png(half[:50] > 0), REFUSED),
        "mask of classes": (encoded(classes, "PNG"), REFUSED),
        "mask of noise": (encoded(Image.fromarray(rng.integers(
            0, 256, (side, side, 3), dtype=np.uint8)), "PNG"), REFUSED),
        "mask that is a photo": (png(SCENE.image), REFUSED),
        "mask of 10 gigapixels": (png_of(100_000, 100_000), REFUSED),
        "mask of colour": (encoded(Image.new("RGB", (side, side), (9, 200, 3)), "PNG"), REFUSED),
        "mask of 16-bit colour": (png_of(side, side, chunk(b"IDAT", zlib.compress(
            bytes(side * (side * 6 + 1)))), depth=16), REFUSED),
        "mask of floats that are NaN": (b"Pf\n%d %d\n-1.0\n" % (side, side)
                                        + b"\xff" * side * side * 4, REFUSED),
        "mask of eps": (EPS, REFUSED),
        "mask of nothing": (b"", REFUSED),
        "empty mask": (png(half > 300), EITHER),
        "full mask": (png(half < 300), EITHER),
        **{f"mask cut at {at}": (good[:at], REFUSED) for at in (5, 20, 40, 70)},
        "mask without an end": (good[:-12], EITHER),
        **{f"mask flipped {at}": (flipped(random.Random(at), good, 3), EITHER) for at in range(8)},
    }  # fmt: skip


def odd_places() -> dict[str, Callable[[Path], object]]:
    return {
        "a named pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a link to nothing": lambda path: path.symlink_to("nothing"),
        "a link in a circle": lambda path: path.symlink_to(path.name),
        "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
        "a link to memory": lambda path: path.symlink_to("/proc/self/mem"),
        "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
        "a file of 8 TB": lambda path: _sparse(path, 1 << 43),
        "a socket": _socket,
    }


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


def _socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        listening.bind(path.name)
        os.chdir(here)


def cases() -> list[Case]:
    arrays = [_array(name, make, REFUSED) for name, make in REFUSED_ARRAYS.items()]
    arrays += [_array(name, make, (0,)) for name, make in READ_ARRAYS.items()]
    marked = [_mask(name, content, codes) for name, (content, codes) in masks().items()]
    placed = [_placed(name, put) for name, put in odd_places().items()]
    return [*_files(), *arrays, *marked, *placed]


def _files() -> Iterator[Case]:
    good = good_pictures()
    for name, content in good.items():
        rng = random.Random(name)
        for share in (0.02, 0.5, 0.98):
            yield _file(f"{name} cut at {share}", content[: int(share * len(content))])
        for number in range(4):
            yield _file(f"{name} flipped {number}", flipped(rng, content, 1 + 4 * number))
        yield _file(f"{name} with a flipped head", flipped(rng, content[:64], 2) + content[64:])
        yield _file(f"{name} damaged", damaged_bytes(rng, content))
    for name, content in bombs().items():
        yield _file(name, content)
    for name, content in OTHERS.items():
        for ending in ("png", "jpg")[: 2 if name in ("eps", "svg", "pdf") else 1]:
            yield _file(f"{name} named {ending}", content, REFUSED, ending)
    for ending, name in (("jpg", "png"), ("eps", "png"), ("svg", "jpeg"), ("txt", "gif")):
        yield _file(f"{name} named {ending}", good[name], (0, 5), ending)


def _file(name: str, content: Content, codes: Any = EITHER, ending: str = "png") -> Case:
    def action(folder: Path) -> list[object]:
        path = folder / f"photo.{ending}"
        path.write_bytes(content() if callable(content) else content)
        return ["run", path, *CLICK]

    return Case(name, action, codes)


def _placed(name: str, put: Callable[[Path], object]) -> Case:
    def action(folder: Path) -> list[object]:
        path = folder / "photo.png"
        put(path)
        return ["run", path, *CLICK]

    return Case(name, action, REFUSED)


def _array(name: str, make: Callable[[], Any], codes: Any) -> Case:
    def action(folder: Path) -> None:
        from segagent_rt import runtime
        from segagent_rt.types import Click

        canvas = runtime.load().open(make())
        canvas.segment([Click(0, 0, positive=True)])

    return Case(f"array: {name}", action, codes)


def _mask(name: str, content: bytes, codes: Any) -> Case:
    def action(folder: Path) -> list[object]:
        (folder / "photo.png").write_bytes(png(SCENE.image))
        (folder / "mask.png").write_bytes(content)
        return ["score", folder / "photo.png", folder / "mask.png", TEXT]

    return Case(name, action, codes)
