"""The wire format of protocol buffers, as far as ONNX models need it read; nothing is copied."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def message_fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and place of each field that has a length, of the message between two places.

    Raises:
        ValueError: it is not in the format.
        IndexError: the content ends too early.
    """
    at = start
    while at < end:
        tag, at = _varint(content, at, 5)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, at = _varint(content, at, 10)
            if length > end - at:
                raise ValueError("it ends too early")
            yield number, at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(content, at, 10)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("it is not in the format")
        if not 0 < number < 1 << 29 or at > end:
            raise ValueError("it is not in the format")


def _varint(content: mmap.mmap, at: int, longest: int) -> tuple[int, int]:
    """A number of at most so many bytes, and the place behind it."""
    value = 0
    for count in range(longest):
        byte = content[at]
        at += 1
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, at
    raise ValueError("it is not in the format")
