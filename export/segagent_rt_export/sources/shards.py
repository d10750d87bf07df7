"""Files of weights, opened without reading them: safetensors, and PyTorch's zip files.

They are foreign: headers are bounded, places are checked against the file's size, an index may
name only files beside it, and a pickle may build nothing but tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.files import open_regular, read_bounded
from segagent_rt_export.sources.weights import Stored, Weight, missing

LONGEST_HEADER = 16_000_000
"""Bytes of a safetensors header, or of another JSON file; those of the largest models have two
million."""

MOST_AXES = 8
"""Axes of a tensor; convolutions have five."""

_TYPES: dict[str, npt.DTypeLike] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
    "F8_E4M3": "u1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A tensor of a safetensors file, mapped into memory when it is read."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        return np.dtype(_TYPES[self.dtype]).itemsize

    def stored(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        """These rows as they are stored; bfloat16 and E4M3 as the bits of each number."""
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, _TYPES[self.dtype])
        mapped = np.memmap(self.path, _TYPES[self.dtype], "r", self.offset, self.shape or (1,))
        return np.asarray(mapped.reshape(self.shape)[rows] if self.shape else mapped[0])

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        """These rows as float32.

        Raises:
            CheckpointInvalid: they are E4M3, which means nothing without a scale.
        """
        if self.dtype == "F8_E4M3":
            raise CheckpointInvalid(
                f"{self.path} holds a tensor of the type F8_E4M3 without its scale",
                hint="export the checkpoint that it was quantised from",
            )
        chosen = self.stored(rows)
        if self.dtype == "BF16":
            wide: Weight = np.left_shift(chosen, 16, dtype=np.uint32)
            return wide.view(np.float32)
        return chosen.astype(np.float32)


def mapped_tensor(
    tensors: Mapping[str, Stored], name: str, types: Collection[str] = ()
) -> MappedTensor:
    """A tensor of a quantised checkpoint, whose stored bits are needed.

    Args:
        tensors: of the checkpoint.
        name: of the tensor.
        types: those that it may have; none if any will do.

    Raises:
        CheckpointInvalid: it is missing, of another type, or not in a safetensors file.
    """
    found = tensors.get(name)
    if found is None:
        raise missing(name)
    if not isinstance(found, MappedTensor):
        raise CheckpointInvalid(
            f"the tensor `{name}` is not in a safetensors file",
            hint="quantised checkpoints are read from safetensors files",
        )
    if types and found.dtype not in types:
        raise CheckpointInvalid(
            f"the tensor `{name}` has the type {found.dtype}, not {' or '.join(types)}",
            hint="is the quantization_config of config.json that of these weights?",
        )
    return found


def open_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointInvalid: it is truncated, or its header is not what the format says.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(LONGEST_HEADER, size - 8):
            raise _damaged(path, "its header is longer than the file, or absurdly long")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table of tensors")
    header.pop("__metadata__", None)
    return {name: _place(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _place(path: Path, name: str, entry: Any, base: int, size: int) -> Stored:
    """Check one entry of a header; `base` is where the file's data begins."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise _damaged(path, f"the entry of `{name}` is not a tensor")
    if dtype not in _TYPES:
        raise CheckpointInvalid(
            f"{path}: the tensor `{name}` has the type {dtype}, which cannot be exported",
            hint="export the checkpoint that it was quantised from",
        )
    if len(shape) > MOST_AXES or not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in shape):
        raise _damaged(path, f"the shape of `{name}` is not a list of sizes")
    tensor = MappedTensor(path, base + start, tuple(shape), dtype)
    if start < 0 or end - start != math.prod(shape) * tensor.width:
        raise _damaged(path, f"`{name}` does not fill its place")
    if base + end > size:
        raise _damaged(path, f"it ends before `{name}` does; it was not copied completely")
    return tensor


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """A tensor of a PyTorch file, mapped into memory by PyTorch."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def width(self) -> int:
        return int(self.tensor.element_size())

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        chosen = self.tensor[rows] if self.shape else self.tensor
        return np.array(chosen.detach().float().numpy())


def open_torch(path: Path) -> dict[str, Stored]:
    """The tensors of a file that torch.save wrote; nothing but tensors and plain data is unpickled.

    Raises:
        CheckpointInvalid: it is damaged, or holds anything else.
    """
    from segagent_rt_export.sources.checkpoints import read_checkpoint  # only here is torch needed

    content = read_checkpoint(path)
    if not isinstance(content, Mapping):
        raise _damaged(path, "it does not hold a table of tensors")
    return {
        str(name): TorchTensor(t) for name, t in content.items() if hasattr(t, "untyped_storage")
    }


def open_shards(folder: Path, stem: str = "model") -> dict[str, Stored]:
    """All tensors of a folder that transformers or peft saved.

    Raises:
        CheckpointInvalid: there are no weights, or a file is damaged, or the index is.
    """
    torch_stem = "pytorch_model" if stem == "model" else stem
    for name in (f"{stem}.safetensors", f"{torch_stem}.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_index(index)
        if (folder / name).is_file():
            return _open_file(folder / name)
    raise CheckpointInvalid(
        f"{folder} holds no weights",
        hint=f"expected {stem}.safetensors, its shards with an index, or {torch_stem}.bin",
    )


def _open_index(index: Path) -> dict[str, Stored]:
    content = read_object(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise _damaged(index, "it has no `weight_map` of file names")
    shards = {}
    for name in sorted(set(places.values())):
        if not _plain(name) or not name.endswith((".safetensors", ".bin")):
            raise _damaged(index, f"it names `{name[:80]}`, which is no shard beside it")
        if not (index.parent / name).is_file():
            raise _damaged(index, f"its shard `{name}` is missing")
        shards[name] = _open_file(index.parent / name)
    for tensor, shard in places.items():
        if tensor not in shards[shard]:
            raise _damaged(index, f"the shard `{shard}` does not hold `{tensor}`")
    return {tensor: shards[shard][tensor] for tensor, shard in places.items()}


def _plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def _open_file(path: Path) -> dict[str, Stored]:
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a foreign file.

    Raises:
        CheckpointInvalid: it is missing, too large, or no JSON object.
    """
    if not path.exists():
        raise CheckpointInvalid(f"there is no {path}", hint="is it a folder of a whole model?")
    try:
        content = json.loads(read_bounded(path, LONGEST_HEADER))
    except (ValueError, RecursionError):
        raise _damaged(path, "it is not JSON") from None
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _damaged(path: Path, why: str) -> CheckpointInvalid:
    return CheckpointInvalid(f"{path} is damaged: {why}", hint="copy or save it again")
