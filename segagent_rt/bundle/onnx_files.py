"""Which files an ONNX graph names: read from its protocol buffers, without the package `onnx`.

ONNX Runtime opens whatever a graph names as the place of its weights, older versions even outside
of the graph's folder. So the names are compared with the manifest before a session is made. Only
the messages on the way to them are visited; weights are skipped, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from segagent_rt.bundle.integrity import Stamp, open_checked
from segagent_rt.errors import ManifestInvalid

DEEPEST = 64
"""Graphs within graphs."""

_Message: TypeAlias = Mapping[int, str]

_FIELDS: Mapping[str, _Message] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
"""The fields that lead to the names of files, by kind of message and number (onnx.proto)."""

_TEXT = ("operator", "key", "value")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Range:
    """A message between two places of a file."""

    kind: str
    start: int
    end: int
    depth: int


def external_files(path: Path, name: str, sizes: Mapping[str, int], stamp: Stamp) -> list[str]:
    """The files of a bundle's part that a graph keeps its weights in.

    Args:
        path: of the graph.
        name: of the graph in the manifest.
        sizes: bytes of every file that the manifest lists, by name.
        stamp: of the graph.

    Raises:
        ManifestInvalid: the graph is damaged, or names a file that the manifest does not list.
        FileChanged: the graph is no longer the one with this stamp.
    """
    with open_checked(path, stamp) as stream:
        if not sizes[name]:
            raise ManifestInvalid(f"{path} is no ONNX graph: it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                entries = list(_entries(content))
            except (IndexError, ValueError) as error:
                raise ManifestInvalid(f"{path} is no ONNX graph: {error}") from None
    beside, found = PurePosixPath(name).parent, set[str]()
    for key, value in entries:
        if key == "location":
            place = PurePosixPath(value)
            listed = (beside / place).as_posix()
            if place.is_absolute() or ".." in place.parts or listed not in sizes:
                raise ManifestInvalid(
                    f"{path} keeps weights in {value[:60]!a}, which the manifest does not list",
                    hint="export the bundle again; do not use one of unknown origin",
                )
            found.add(listed)
    return sorted(found)


def _entries(content: mmap.mmap) -> Iterator[tuple[str, str]]:
    """Key and value of every tensor's external data."""
    waiting = [_Range("model", 0, len(content), 0)]
    while waiting:
        message = waiting.pop()
        if message.depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        texts: dict[str, str] = {}
        for number, start, end in _fields(content, message):
            kind = _FIELDS[message.kind].get(number)
            if kind is None:
                continue
            if kind not in _TEXT:
                waiting.append(_Range(kind, start, end, message.depth + (kind == "graph")))
                continue
            texts[kind] = content[start:end].decode("utf-8")
            if texts[kind] == "EPContext" and kind == "operator":
                raise ValueError("it holds an engine of another library")
        if message.kind == "entry":
            yield texts.get("key", ""), texts.get("value", "")


def _fields(content: mmap.mmap, message: _Range) -> Iterator[tuple[int, int, int]]:
    """Number and place of each field of a message that has a length."""
    at, end = message.start, message.end
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
