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

from segagent_rt.bundle.constant_work import DEEPEST, check_constant_work
from segagent_rt.bundle.integrity import Stamp, open_checked
from segagent_rt.bundle.protobuf import message_fields
from segagent_rt.errors import ManifestInvalid

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


@dataclass(frozen=True, slots=True)
class _Range:
    """A message between two places of a file."""

    kind: str
    start: int
    end: int
    depth: int


def external_files(path: Path, name: str, sizes: Mapping[str, int], stamp: Stamp) -> list[str]:
    """The files of a bundle's part that a graph keeps its weights in; the graph is checked, too.

    Args:
        path: of the graph.
        name: of the graph in the manifest.
        sizes: bytes of every file that the manifest lists, by name.
        stamp: of the graph.

    Raises:
        ManifestInvalid: the graph is damaged, names a file that the manifest does not list, or
            would compute more than its weights while it is loaded.
        FileChanged: the graph is no longer the one with this stamp.
    """
    with open_checked(path, stamp) as stream:
        if not sizes[name]:
            raise ManifestInvalid(f"{path} is not an ONNX graph: it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                places = [value for key, value in _entries(content) if key == "location"]
                listed = [_listed(path, name, place, sizes) for place in places]
                check_constant_work(content)
            except (IndexError, ValueError) as error:
                raise ManifestInvalid(f"{path} cannot be used: {error}") from None
    return sorted(set(listed))


def _listed(path: Path, name: str, value: str, sizes: Mapping[str, int]) -> str:
    place = PurePosixPath(value)
    listed = (PurePosixPath(name).parent / place).as_posix()
    if place.is_absolute() or ".." in place.parts or listed not in sizes:
        raise ManifestInvalid(
            f"{path} keeps weights in {value[:60]!a}, which the manifest does not list",
            hint="export the bundle again; do not use one of unknown origin",
        )
    return listed


def _entries(content: mmap.mmap) -> Iterator[tuple[str, str]]:
    """Key and value of every tensor's external data."""
    waiting = [_Range("model", 0, len(content), 0)]
    while waiting:
        message = waiting.pop()
        if message.depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        texts: dict[str, str] = {}
        for number, start, end in message_fields(content, message.start, message.end):
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
