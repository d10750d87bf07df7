"""Read torch checkpoints, whoever made them: tensors and plain data, and no code.

Both layouts of `torch.save` are read: the zip archive since torch 1.6, and the row of pickles
followed by raw numbers before it. Tensors are views of the file, which is mapped into memory.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.files import open_regular
from segagent_rt_export.sources.unpickling import (
    PICKLE_LIMIT,
    Foreign,
    StorageRef,
    TensorRef,
    unpickle,
)

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ZIP_ENTRY = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, length of the name and length of the extra field of a zip entry."""


class Place(NamedTuple):
    """Where the bytes of a storage lie in the file; zip archives know their checksum."""

    start: int
    size: int
    crc: int | None = None


def read_checkpoint(path: Path) -> Any:
    """The object in a checkpoint, usually a dict, with its tensors on the CPU.

    Objects of classes that are not read are `segagent_rt_export.sources.unpickling.Foreign`.

    Raises:
        CheckpointInvalid: no such file, another format, damaged, or it would run code.
    """
    with _explained(path):
        with open_regular(path) as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            zipped = content[:4] == ZIP_ENTRY
            tree, places = _read_archive(stream, content) if zipped else _read_legacy(content)
        return _Tensors(content, places).put_into(tree)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is said in one sentence that names the file."""
    try:
        yield
    except CheckpointInvalid as error:
        said = _plain(error)
        said = said if str(path) in said else f"{path} is refused: {said}"
        raise CheckpointInvalid(said, hint=error.hint) from None
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointInvalid(
            f"{path} is no checkpoint of torch, or a damaged one ({_plain(error)})",
            hint="files written by torch.save are read; was it downloaded completely?",
        ) from error


def _plain(error: Exception) -> str:
    """What an error says, on one line: parts of it may come from the file."""
    words = " ".join(str(error).split())
    return "".join(letter for letter in words if letter.isprintable())[:200]


def _read_archive(stream: BinaryIO, content: mmap.mmap) -> tuple[Any, Mapping[str, Place]]:
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise CheckpointInvalid("it is a zip archive, but not one of torch.save")
    root = programs[0].removesuffix("data.pkl")
    places = {name.removeprefix(root): _place(content, entry) for name, entry in entries.items()}
    if "byteorder" in places and _bytes(content, places["byteorder"]) != b"little":
        raise CheckpointInvalid("its numbers are big-endian")
    program = places["data.pkl"]
    if program.size > PICKLE_LIMIT or zlib.crc32(_bytes(content, program)) != program.crc:
        raise CheckpointInvalid("its pickle is damaged")
    tree = unpickle(content, program.start).value
    return tree, {n.removeprefix("data/"): p for n, p in places.items() if n.startswith("data/")}


def _place(content: mmap.mmap, entry: zipfile.ZipInfo) -> Place:
    """Where an entry's bytes are. torch never compresses them."""
    signature, name, extra = LOCAL_HEADER.unpack_from(content, entry.header_offset)
    start = entry.header_offset + LOCAL_HEADER.size + name + extra
    stored = entry.compress_type == zipfile.ZIP_STORED
    if signature != ZIP_ENTRY or not stored or start + entry.file_size > len(content):
        raise CheckpointInvalid(f"its entry {entry.filename} is damaged or compressed")
    return Place(start, entry.file_size, entry.CRC)


def _read_legacy(content: mmap.mmap) -> tuple[Any, Mapping[str, Place]]:
    magic = unpickle(content, 0)
    protocol = unpickle(content, magic.end)
    if (magic.value, protocol.value) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise CheckpointInvalid("it was not written by torch.save")
    system = unpickle(content, protocol.end)
    if system.value["little_endian"] is not True:
        raise CheckpointInvalid("its numbers are big-endian")
    tree = unpickle(content, system.end)
    keys = unpickle(content, tree.end)
    item_sizes = {storage.key: storage.dtype.itemsize for storage in tree.storages}
    places, at = {}, keys.end
    for key in keys.value:
        if not isinstance(key, str) or key not in item_sizes:
            raise CheckpointInvalid("it lists a storage that no tensor uses")
        size = int.from_bytes(content[at : at + 8], "little") * item_sizes[key]
        places[key] = Place(at + 8, size)
        at += 8 + size
    if at > len(content):
        raise CheckpointInvalid("its last tensors are missing")
    return tree.value, places


class _Tensors:
    """Turns references into tensors, each storage being mapped once."""

    def __init__(self, content: mmap.mmap, places: Mapping[str, Place]) -> None:
        self._content, self._places = content, places
        self._flat: dict[StorageRef, Tensor] = {}
        self._done: dict[int, tuple[Any, Any]] = {}

    def put_into(self, value: Any) -> Any:
        """The value with tensors in place of references; containers are changed, tuples remade."""
        if id(value) in self._done:
            return self._done[id(value)][1]
        if isinstance(value, TensorRef):
            return self._remember(value, self._tensor(value))
        if isinstance(value, tuple):
            return self._remember(value, tuple(map(self.put_into, value)))
        if isinstance(value, (dict, list)):
            self._remember(value, value)
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                value[key] = self.put_into(item)
        if isinstance(value, Foreign):
            value.state = self.put_into(value.state)
        return value

    def _remember(self, before: Any, after: Any) -> Any:
        self._done[id(before)] = (before, after)  # `before` must live, or its id is used again
        return after

    def _tensor(self, ref: TensorRef) -> Tensor:
        storage, offset, size, stride = ref
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        smallest = min((offset, storage.numel, *size, *stride))
        if smallest < 0 or (0 not in size and max(reach, math.prod(size)) > storage.numel):
            raise CheckpointInvalid("a tensor in it is larger than its storage")
        return torch.as_strided(self._storage(storage), size, stride, offset)

    def _storage(self, ref: StorageRef) -> Tensor:
        if ref not in self._flat:
            self._flat[ref] = self._map(ref)
        return self._flat[ref]

    def _map(self, ref: StorageRef) -> Tensor:
        place = self._places.get(ref.key)
        if place is None or place.size != ref.numel * ref.dtype.itemsize:
            raise CheckpointInvalid(f"its storage {ref.key} is missing or of another size")
        if not ref.numel:
            return torch.empty(0, dtype=ref.dtype)
        numbers = memoryview(self._content)[place.start : place.start + place.size]
        if place.crc is not None and zlib.crc32(numbers) != place.crc:
            raise CheckpointInvalid(f"its storage {ref.key} is damaged")
        aligned = place.start % ref.dtype.itemsize == 0
        return torch.frombuffer(numbers if aligned else bytearray(numbers), dtype=ref.dtype)


def _bytes(content: mmap.mmap, place: Place) -> bytes:
    return content[place.start : place.start + place.size]
