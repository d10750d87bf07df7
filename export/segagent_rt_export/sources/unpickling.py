"""Unpickle torch's checkpoints without running anything that is in them.

The instructions and the bounds are those of `segagent_rt.data.pickles`. A checkpoint also builds
references to tensors. Whatever else it names becomes an inert `Foreign` object, and a call of that
is refused.

`torch.load(weights_only=True)` is no substitute: it hashes whatever a pickle uses as a key, so some
nested tuples in 88 bytes keep it busy for ever, and it refuses SimpleClick's checkpoints.
"""

from __future__ import annotations

import io
import mmap
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import torch

from segagent_rt.data.pickles import BoundedUnpickler, check_keys
from segagent_rt_export.errors import CheckpointInvalid

PICKLE_LIMIT = 8 << 20
"""Bytes of one pickle; those of large models have some hundred thousand."""

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class StorageRef(NamedTuple):
    """A flat run of numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int


class TensorRef(NamedTuple):
    """A tensor as a view of a storage; nothing about it has been checked."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Unpickled(NamedTuple):
    """The value of a pickle, the storages that it mentions, and where it ends in the file."""

    value: Any
    storages: list[StorageRef]
    end: int


class Foreign(dict[Any, Any]):
    """Stands for an object of a class that is not read: its items, and its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ForeignClass(type):
    """A foreign name. Pickle may make objects of it, but not call it."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise CheckpointInvalid(
            f"loading it would call `{cls.__name__}`",
            hint="only checkpoints made of tensors and plain data are read",
        )


class _RebuildTensor:
    """`torch._utils._rebuild_tensor_v2`; without attributes, so that a pickle can change none."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRef:
        return TensorRef(storage, offset, size, stride)


class _RebuildParameter:
    """`torch._utils._rebuild_parameter`: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _MakeOrderedDict:
    """`collections.OrderedDict`."""

    __slots__ = ()

    def __call__(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        listed = [(key, value) for key, value in pairs]
        check_keys(key for key, _ in listed)
        return OrderedDict(listed)


class _MakeSet:
    """`set`."""

    __slots__ = ()

    def __call__(self, items: Any = ()) -> set[Any]:
        listed = list(items)
        check_keys(listed)
        return set(listed)


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _MakeOrderedDict(),
    ("builtins", "set"): _MakeSet(),
    ("__builtin__", "set"): _MakeSet(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class _Unpickler(BoundedUnpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: list[StorageRef] = []
        self._foreign: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        full = f"{module}.{name}"
        return self._foreign.setdefault(full, _ForeignClass(full, (Foreign,), {}))

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the old layout keeps the source code of a class beside its name
            return pid[1]
        kind, dtype, key, _, numel, *view = pid
        known = kind == "storage" and isinstance(dtype, torch.dtype) and not any(view)
        if not known or not isinstance(key, str) or not isinstance(numel, int):
            raise CheckpointInvalid("it stores tensors in a way that is not known here")
        self.storages.append(StorageRef(key, dtype, numel))
        return self.storages[-1]


def unpickle(content: mmap.mmap, start: int) -> Unpickled:
    """Read the pickle that begins at `start`.

    Tensors come as `TensorRef`, objects of unknown classes as `Foreign`.

    Raises:
        CheckpointInvalid: it is too long, or would do what is not allowed. Damaged pickles can
            raise any other exception.
    """
    stream = io.BytesIO(content[start : start + PICKLE_LIMIT])
    unpickler = _Unpickler(stream)
    try:
        value = unpickler.load()
    except CheckpointInvalid:
        raise
    except Exception as error:
        if stream.tell() == PICKLE_LIMIT:
            raise CheckpointInvalid("it is not a pickle as torch.save writes it") from error
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointInvalid(str(error)) from error
        raise
    return Unpickled(value, unpickler.storages, start + stream.tell())
